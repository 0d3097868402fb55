"""Models: the contract of generator families, their registry, cards and folders."""
