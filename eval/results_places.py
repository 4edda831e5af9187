"""Where a number stands in results.json.

Reads nothing, writes nothing, and imports nothing heavy: the gate uses it, which draws no figures.
"""


def pointer(*parts: str) -> str:
    """The JSON pointer (RFC 6901) of a place in results.json."""
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)
