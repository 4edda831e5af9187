"""Conversations as a trainer sees them: the tokenizer's chat template, what is trained, what must not be."""
