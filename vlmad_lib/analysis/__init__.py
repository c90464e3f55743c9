"""Breakdowns of the scores table, comparisons, and what they say; nothing here encodes or scores by itself."""
