"""Deterministic simulation: a broker and its clients in one process, with a seed for everything that could differ."""
