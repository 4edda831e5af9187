"""How each language is written: scripts, digits, graphemes, and the policies that text is put under."""
