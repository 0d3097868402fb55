"""Comparison of predicted with annotated cells."""
