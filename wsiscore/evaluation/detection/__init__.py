"""Predicted cells against annotated ones."""
