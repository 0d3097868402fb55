"""Generator families: one module each, whose name is that of the family."""
