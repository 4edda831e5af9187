"""More kinds of personal data, by Presidio's own pattern recognisers; an extra that brings spaCy.

Reads and writes nothing. The recognisers are called one by one, over the text with ASCII digits: no NLP
engine, so no model is downloaded. Those of Presidio that fetch a list at run time (e-mail, URL) are left out.
"""

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

from data_recipes.artefact import UserError
from data_recipes.pii.candidates import Candidate

# entity -> the class in presidio_analyzer.predefined_recognizers
RECOGNISERS = {
    "CREDIT_CARD": "CreditCardRecognizer",
    "CRYPTO": "CryptoRecognizer",
    "IBAN_CODE": "IbanRecognizer",
    "IP_ADDRESS": "IpRecognizer",
    "MAC_ADDRESS": "MacAddressRecognizer",
}
MIN_SCORE = 0.5  # a checksum or a strict form; what is below wants context words, and Presidio's are English


def find_by_presidio(folded: str, entities: tuple[str, ...]) -> Iterator[Candidate]:
    """Yield what Presidio's recognisers of some entities are sure of in a text with ASCII digits.

    Raises:
        UserError: an entity that is not in `RECOGNISERS`, or Presidio is not installed.
    """
    for entity in entities:
        for result in _recogniser(entity).analyze(folded, [entity], None):
            if result.score >= MIN_SCORE:
                yield Candidate(entity, result.start, result.end, True)


@cache
def _recogniser(entity: str) -> Any:
    if entity not in RECOGNISERS:
        raise UserError(
            f"pii: presidio has {entity!r} not to offer here; choose of {', '.join(sorted(RECOGNISERS))}"
        )
    try:
        # Seconds and 400 MB: only on demand.
        classes = import_module("presidio_analyzer.predefined_recognizers")
    except ImportError as error:
        raise UserError(
            f"pii: {entity} is found by Presidio, which is not installed: "
            "pip install 'local-experts[presidio]', or leave `presidio` empty"
        ) from error
    return getattr(classes, RECOGNISERS[entity])()
