"""The command line `penstock`: the broker's start, and everything a person or script does with queues and keys."""

from penstock_broker.cli.main import main

__all__ = ["main"]
