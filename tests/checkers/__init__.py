"""Correctness as a function of a recorded history: what clients asked, when, and what they were told."""
