"""Torture: real brokers and real clients under kill -9, power cuts, random frames, and many more seeds than a test run has."""
