"""The broker itself: its doors, its lane, its rules."""
