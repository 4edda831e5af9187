"""Stages over part files: who runs them, in this process, in several, or on several machines."""
