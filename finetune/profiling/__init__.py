"""Rows and the base -> profile.json: what the routers choose, in memory or layer by layer from disk."""
