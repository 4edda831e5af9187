"""Rows as people also write them: in Latin letters, or with English words among their own."""
