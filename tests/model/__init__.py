"""One queue, as a pure state machine over a store in memory, against short references."""
