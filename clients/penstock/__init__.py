"""The Python SDK of Penstock."""
