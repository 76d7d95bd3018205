"""The wire protocol of Penstock: bytes to messages and back, without sockets, clocks or threads.

PROTOCOL.md beside this package is the specification; the modules follow it: `frames` (the header), `codec` (msgpack with
limits), `errors`, `session_messages` and `queue_messages` (what is said), `operations` (the table of everything that
can be asked) and `connection` (the state machine both ends use).
"""
