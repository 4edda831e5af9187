"""Instruction data built from recipes: sources, languages, tasks and their checkers.

Reads YAML recipes, writes Arrow and a manifest.
"""
