"""The Penstock broker: the daemon between the wire protocol and the store, and its command line."""
