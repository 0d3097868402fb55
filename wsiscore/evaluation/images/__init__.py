"""Pictures, masks and virtual stains against true ones."""
