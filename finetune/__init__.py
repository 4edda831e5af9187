"""Routing profile, choice of experts, and LoRA training on the chosen experts only.

Reads a dataset, writes an adapter.
"""
