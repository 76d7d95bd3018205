"""The asynchronous client: the source from which the blocking one in `_sync` is generated."""
