"""Metrics of images and pixels, statistics, and the scores table by group, with the names that people read."""
