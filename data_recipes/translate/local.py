"""A teacher on this machine: a chat model of transformers, loaded when it is made and not before.

Reads the model's folder or the Hub; writes nothing. torch and transformers are imported late: whoever uses an
endpoint does not wait for them. Axes: B requests of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from data_recipes.artefact import UserError
from data_recipes.chats.chat_template import stop_token_ids
from data_recipes.translate.options import LocalConfig
from data_recipes.translate.teachers import Reply, Request


def local_identity(config: LocalConfig) -> dict[str, Any]:
    """Return what decides the replies."""
    return {
        "teacher": "local",
        "model": config.model,
        "revision": config.revision,
        "dtype": config.dtype,
        "max_new_tokens": config.max_new_tokens,
    }


class LocalTeacher:
    """A causal language model with a chat template: greedy replies in batches, drawn ones one by one."""

    def __init__(self, model: Any, tokenizer: Any, config: LocalConfig) -> None:
        if not tokenizer.chat_template:
            raise UserError(f"the tokenizer of {config.model} has no chat template: name a chat model")
        self._model, self._tokenizer, self._config = model, tokenizer, config
        stops = stop_token_ids(model.generation_config, tokenizer)
        if not stops:
            raise UserError(f"{config.model} names no stop token: set eos_token in tokenizer_config.json")
        self._stops = sorted(stops)
        pad = tokenizer.pad_token_id
        self._pad = pad if pad is not None else self._stops[0]
        self.identity = local_identity(config)

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Yield the replies batch by batch, the longest prompts first: what does not fit fails at once."""
        prompts = [self._prompt_tokens(request) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: (-len(prompts[i]), i))
        greedy = [i for i in order if requests[i].temperature == 0]
        drawn = [i for i in order if requests[i].temperature > 0]
        # A drawn reply must not depend on who else is in its batch.
        size = self._config.batch_size
        batches = [greedy[i : i + size] for i in range(0, len(greedy), size)] + [[i] for i in drawn]
        for batch in batches:
            replies = self._generated([prompts[i] for i in batch], requests[batch[0]])
            yield from zip(batch, replies, strict=True)

    def _prompt_tokens(self, request: Request) -> list[int]:
        messages = [{"role": role, "content": content} for role, content in request.messages]
        encoded = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return list(encoded["input_ids"])

    def _generated(self, prompts: list[list[int]], request: Request) -> list[Reply]:
        import torch
        from transformers import GenerationConfig

        drawn = {"do_sample": True, "temperature": request.temperature} if request.temperature else {}
        settings = GenerationConfig(
            **{"do_sample": False, **drawn},
            max_new_tokens=self._config.max_new_tokens,
            eos_token_id=self._stops,
            pad_token_id=self._pad,
        )
        length = max(map(len, prompts))
        n_missing = [length - len(prompt) for prompt in prompts]
        padded = [[self._pad] * n + prompt for n, prompt in zip(n_missing, prompts, strict=True)]
        mask = [[0] * n + [1] * (length - n) for n in n_missing]
        device = self._model.device
        input_BT, mask_BT = torch.tensor(padded, device=device), torch.tensor(mask, device=device)
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(request.seed)
            output_BT = self._model.generate(
                input_ids=input_BT, attention_mask=mask_BT, generation_config=settings
            )
        answers = output_BT[:, length:].tolist()
        return [self._reply(len(prompt), tokens) for prompt, tokens in zip(prompts, answers, strict=True)]

    def _reply(self, n_prompt_tokens: int, tokens: list[int]) -> Reply:
        end = next((i for i, token in enumerate(tokens) if token in self._stops), None)
        if end is None:  # cut, so not the whole translation
            return Reply("", n_prompt_tokens, len(tokens))
        text = self._tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return Reply(text, n_prompt_tokens, end)


@lru_cache(maxsize=1)  # the parts of a build ask for it one after the other
def load_local_teacher(config: LocalConfig) -> LocalTeacher:
    """Load the model and its tokenizer.

    Raises: UserError when they cannot be loaded, or are no chat model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model, revision=config.revision)
        model: Any = AutoModelForCausalLM.from_pretrained(
            config.model, revision=config.revision, dtype=getattr(torch, config.dtype)
        )
        model = model.to(config.device).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise UserError(f"cannot load the teacher {config.model!r}: {first_line}") from error
    return LocalTeacher(model, tokenizer, config)
