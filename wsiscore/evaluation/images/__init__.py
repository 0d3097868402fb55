"""Comparison of predicted pictures, masks and virtual stains with true ones."""
