# Generated from clients/penstock/_async/__init__.py by tools/generate_blocking_client.py (make sync-client): edit that file.
"""The blocking client: the source from which the blocking one in `_sync` is generated."""
