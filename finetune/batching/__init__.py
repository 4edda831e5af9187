"""Which rows make a step and how they lie in it: order, mixture, packs, and rows as tokens on disk."""
