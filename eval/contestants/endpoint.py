"""Ask a model behind an OpenAI-compatible address: the rows' questions leave the machine.

That a run's config names the address is the consent; what goes where is said before the first call. The
client is that of the translations, and so are retries, limits and what counts as junk.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from data_recipes.artefact import UserError
from data_recipes.progress import progress_bar
from data_recipes.translate.cache import ReplyCache
from data_recipes.translate.endpoint import Endpoint
from data_recipes.translate.endpoint_options import EndpointConfig
from data_recipes.translate.teachers import Reply, Request
from eval.contestants.answer_cache import entry
from eval.contestants.answers import Answers, Usage
from finetune.eval_options import ContestantConfig

N_SHOWN = 3  # reasons of failures


def ask_endpoint(
    name: str, contestant: ContestantConfig, rows: Sequence[Mapping[str, Any]], cache: ReplyCache
) -> Answers:
    """The endpoint's answers to dataset rows in their order; each is kept as soon as it is there.

    Equal questions are sent once. An answer that was cut at `max_tokens` is taken as it is, as that of any
    other contestant.

    Raises:
        UserError: as `Endpoint`, or some rows got no answer; what was answered is kept.
    """
    config = contestant.endpoint
    # Not the model's name alone: behind another address it may be another model.
    identity = {"endpoint": config.base_url, "model": config.model, "parameters": config.parameters}
    requests = [_request(row, contestant.max_tokens) for row in rows]
    keys = [request.key(identity) for request in requests]
    found = {key: reply for key in dict.fromkeys(keys) if (reply := cache.get(key)) is not None}
    missing = {key: one for key, one in zip(keys, requests, strict=True) if key not in found}
    if missing:
        print(
            f"{name}: {len(missing)} prompts of held-out rows go to {urlsplit(config.base_url).netloc}; "
            f"{len(found)} answers are kept from before",
            flush=True,
        )
        asked = _asked(config, missing, list(found.values()))
        for key, reply in progress_bar(asked, desc=name, total=len(missing)):
            cache.put(key, reply)
            found[key] = reply
    usage = Usage()
    for reply in found.values():
        usage = usage.plus(Usage(*json.loads(reply.text)["usage"]))
    return Answers([json.loads(found[key].text)["text"] for key in keys], None, usage)


def require_key(config: EndpointConfig) -> None:
    """Raise UserError when the environment variable with the key is not there or holds none."""
    with Endpoint(config):
        pass


def _request(row: Mapping[str, Any], max_tokens: int) -> Request:
    messages = row["messages"][:-1]
    for message in messages:
        if message.keys() - {"role", "content"} or not isinstance(message["content"], str):
            raise UserError(
                f"row {row['id']} has a message that is more than text ({', '.join(sorted(message))}): only "
                "text is sent to an endpoint; leave the contestant out, or such rows out of the data"
            )
    texts = tuple((message["role"], message["content"]) for message in messages)
    return Request(texts[-1][1], texts, temperature=0.0, seed=0, max_tokens=max_tokens)


def _asked(
    config: EndpointConfig, missing: Mapping[str, Request], kept: Sequence[Reply]
) -> Iterator[tuple[str, Reply]]:
    """Yield key and reply as they come, with the seconds since the one before: together the time it took."""
    spent = sum(reply.n_prompt_tokens for reply in kept), sum(reply.n_reply_tokens for reply in kept)
    keys, failures = list(missing), []
    last_s = time.perf_counter()
    with Endpoint(config, spent) as endpoint:
        for index, reply in endpoint.ask(list(missing.values())):
            if reply.failure:
                failures.append(reply.failure)
                continue
            now_s = time.perf_counter()
            usage = Usage(reply.n_prompt_tokens, reply.n_reply_tokens, now_s - last_s, reply.is_counted)
            last_s = now_s
            yield keys[index], entry({"text": reply.text.strip(), "usage": list(usage)}, usage)
    if failures:
        reasons = "; ".join(list(dict.fromkeys(failures))[:N_SHOWN])
        raise UserError(
            f"{len(failures)} of {len(missing)} prompts got no answer from {config.base_url}: {reasons}. The "
            "others are kept: run again to send these again, or leave the contestant out"
        )
