"""The `penstock` command: it lives in the broker's package and says so when that is not installed."""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Runs the command line; exits with 2 when only the SDK is installed."""
    if importlib.util.find_spec("click") is None or importlib.util.find_spec("penstock_broker") is None:
        sys.exit("the command line needs more than the SDK: pip install 'penstock[broker]'")
    cli = importlib.import_module("penstock_broker.cli")
    cli.main()
