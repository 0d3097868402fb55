"""Regions of interest: drawn annotations, outlines and found tissue."""
