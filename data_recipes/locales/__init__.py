"""Dates, numbers, rupees, units and names of 24 tags: written and read back from the same checked tables."""
