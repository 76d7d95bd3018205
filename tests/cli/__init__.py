"""The command line as a user types it, against a real broker."""
