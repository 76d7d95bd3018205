"""Streams as pure state machines: shards, their hash ranges, iterators. No event loop, no clock, no chance, no store.

`limits` has the numbers, `settings` the attributes of a stream, `topology` who owns which hashes, `shard` the log of one shard,
`iterators` the places to read from.
"""
