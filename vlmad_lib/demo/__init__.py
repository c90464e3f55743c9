"""Procedural demo data: drawn categories with defects, to test on, to train on and to show."""

from .data import CATEGORIES, CONTRASTS, Category, delta_e, names, render, write

__all__ = ["CATEGORIES", "CONTRASTS", "Category", "delta_e", "names", "render", "write"]
