"""Slides: readers of every format, and any region at any resolution."""
