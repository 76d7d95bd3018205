"""`python -m penstock_broker` is `penstock`."""

from penstock_broker.cli.main import main

main()
