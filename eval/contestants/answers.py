"""What one model answered to the rows, and what that took. Reads nothing, writes nothing."""

from typing import NamedTuple

from eval.generate import AnswerLoss


class Usage(NamedTuple):
    """What answering took, over all runs: no answer that was kept is asked for again.

    The tokens are the model's own. The seconds are those of answering, with the likelihood of the expected
    answers where the model gives it, without loading.
    """

    prompt_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
    is_counted: bool = True  # False: a server did not count, and the tokens are an estimate

    def plus(self, other: "Usage") -> "Usage":
        """Both together."""
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
            self.seconds + other.seconds,
            self.is_counted and other.is_counted,
        )


class Answers(NamedTuple):
    """What one model answered to each row, and how unlikely it found the expected answers.

    The loss is None of a model that gives no likelihoods: one behind an endpoint.
    """

    texts: list[str]
    loss: AnswerLoss | None
    usage: Usage = Usage()
