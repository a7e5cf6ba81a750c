"""Which models on which machines, where, at what cost: deployment plans for hybrid clouds, explained and proved."""
