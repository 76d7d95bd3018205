"""Penstock's tests."""
