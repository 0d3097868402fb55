"""Scores of a cohort against clinical values."""
