"""Quality control: what the pixels of each tile say of focus, stain and artefacts, and what follows for the slide."""
