"""Queues, standard and FIFO, as pure state machines.

Nothing here waits, reads a clock, rolls dice or talks to a store: `now_ms` and secrets are arguments, rows go in and come
out. `queue` is the machine itself; `ready` and `fifo` decide who is served next; `segment` holds messages, `deliveries`
what was taken, `deduplication` what was seen, `settings` the attributes with their rules.
"""
