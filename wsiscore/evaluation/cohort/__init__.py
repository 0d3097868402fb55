"""Comparison of scores with clinical values."""
