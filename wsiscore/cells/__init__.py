"""Cells: the table of them, and how the maps of a mosaic become one."""
