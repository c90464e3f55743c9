"""Data sets, pictures and masks, and what other tools computed."""
