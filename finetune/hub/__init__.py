"""Take a finished run to the Hub: what goes, its cards, what may not go, and the sending."""
