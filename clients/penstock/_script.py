"""The `penstock` command: it lives in the broker's package and says so when that is not installed."""

from __future__ import annotations

import importlib
import sys

OURS = ("penstock", "penstock_broker", "penstock_protocol", "penstock_storage")


def main() -> None:
    """Runs the command line; exits with 2 when only the SDK is installed.

    The wheel always contains the command line's modules; what an installation of the SDK alone lacks is what they import,
    some of it only when a command needs it.
    """
    try:
        importlib.import_module("penstock_broker.cli.main").main()
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in OURS:
            raise
        print(f"the command line needs: pip install 'penstock[broker]' ({error.name} is missing)", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:  # while it was loaded; the command line itself ends likewise
        sys.exit(130)
