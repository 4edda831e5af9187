"""Every contestant beside base and tuned: looked at before anything loads, asked, and put into the results.

Reads the folders that `eval.contestants` of a run names, and asks the endpoints that it names. What was
answered is kept in the run's answers (answer_cache.py).
"""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_recipes.artefact import UserError, sha256_file, sha256_json
from data_recipes.translate.cache import ReplyCache
from eval.contestants.answers import Answers
from eval.contestants.endpoint import ask_endpoint, require_key
from eval.contestants.local_model import ask_model, model_identity, of_contestant
from eval.contestants.training_data import require_unseen
from finetune.adapters.adapter import detach, load_adapter
from finetune.adapters.adapter_folder import PEFT_TYPE, peft_type
from finetune.config import RunConfig
from finetune.eval_options import ContestantConfig
from finetune.exporting.import_adapter import attach_import, read_import
from finetune.exporting.peft_folder import CONFIG_FILE
from finetune.model import load_model

Row = Mapping[str, Any]
_MADE_AS = {
    "adapter": "a run or of an adapter",
    "merged": "a checkpoint, as `local-experts export --to merged` makes one",
}
NO_LIKELIHOODS = "an endpoint gives no likelihoods, so that nobody knows its bits per byte"


def check_contestants(config: RunConfig, content_hash: str, test_rows: Sequence[Row]) -> None:
    """Refuse what can be seen to be wrong before a model loads or a row is sent.

    Raises:
        UserError: a folder is not there, an adapter may have learned test rows, or a key is not set.
    """
    for name, contestant in config.eval.contestants.items():
        with of_contestant(name):
            if contestant.kind == "endpoint":
                require_key(contestant.endpoint)
            else:
                _require_folder(contestant, config.output)
            if contestant.kind == "adapter":
                require_unseen(contestant, Path(config.output), content_hash, test_rows)


def ask_endpoints(config: RunConfig, rows: Sequence[Row], cache: ReplyCache) -> dict[str, Answers]:
    """The answers of each endpoint, by its name.

    Raises:
        UserError: as `ask_endpoint`.
    """
    answers = {}
    for name, contestant in _of_kind(config, "endpoint").items():
        with of_contestant(name):
            answers[name] = ask_endpoint(name, contestant, rows, cache)
    return answers


def ask_adapters(
    model: Any,
    tokenizer: Any,
    config: RunConfig,
    rows: Sequence[Row],
    base_identity: Mapping[str, Any],
    cache: ReplyCache,
) -> dict[str, Answers]:
    """The answers of each further adapter, by its name, on the loaded base, whose own is taken off.

    Raises:
        UserError: an adapter is damaged or of another base.
    """
    answers, adapters = {}, _of_kind(config, "adapter")
    if not adapters:
        return {}
    detach(model)
    for name, contestant in adapters.items():
        folder = contestant.place(config.output)
        with of_contestant(name):
            if peft_type(folder) in (None, PEFT_TYPE):
                load_adapter(model, folder)
            else:
                attach_import(model, read_import(folder))
            model.eval()
            identity = {**base_identity, "adapter": adapter_hash(folder)}
            answers[name] = ask_model(model, tokenizer, rows, config.eval, identity, cache, name)
            detach(model)
    return answers


def ask_merged(config: RunConfig, rows: Sequence[Row], cache: ReplyCache) -> dict[str, Answers]:
    """The answers of each merged checkpoint, by its name; no other model should be in memory.

    Raises:
        UserError: a checkpoint cannot be loaded.
    """
    answers = {}
    gc.collect()  # a model is a web of modules: it goes with the collector, not with its last name
    for name, contestant in _of_kind(config, "merged").items():
        base = replace(config.base, model=str(contestant.place(config.output)), revision=None)
        with of_contestant(name):
            model, tokenizer = load_model(base)
            identity = model_identity(model, tokenizer, base)
            answers[name] = ask_model(model, tokenizer, rows, config.eval, identity, cache, name)
        del model
        gc.collect()
    return answers


def adapter_hash(folder: Path) -> str:
    """A hash of all that decides what an adapter's folder computes."""
    tensors = sorted(folder.glob("*.safetensors"))
    return sha256_json([sha256_file(folder / CONFIG_FILE), *map(sha256_file, tensors)])


def other_result(
    contestant: ContestantConfig, compared: Mapping[str, Any], against_tuned: Mapping[str, Any]
) -> dict[str, Any]:
    """What the results say of a contestant.

    `compared` has it in the place of tuned, beside base; `against_tuned` in that of base, beside tuned.
    """
    names = [name for name in compared["rows"][0] if name.startswith("tuned_")]
    rows = [
        {"id": row["id"], "answer": row["tuned"]} | {name.removeprefix("tuned_"): row[name] for name in names}
        for row in compared["rows"]
    ]
    missing = {name: NO_LIKELIHOODS for name, table in compared["metrics"].items() if table is None}
    return {
        "kind": contestant.kind,
        "settings": contestant.shown(),
        "metrics": compared["metrics"],
        "against_tuned": against_tuned["metrics"],
        "missing": missing,
        "rows": rows,
    }


def costs(answers: Mapping[str, Answers], contestants: Mapping[str, ContestantConfig]) -> dict[str, Any]:
    """What each one's answers took, by name: tokens, seconds, and money where it has prices (a million)."""
    found = {}
    for name, one in answers.items():
        found[name] = {**one.usage._asdict(), "price": None, "amount": None, "currency": None}
        if name in contestants and contestants[name].endpoint.price_prompt is not None:
            endpoint = contestants[name].endpoint
            found[name] |= {
                "price": {"prompt": endpoint.price_prompt, "answer": endpoint.price_reply},
                "amount": endpoint.amount(one.usage.prompt_tokens, one.usage.answer_tokens),
                "currency": endpoint.currency,
            }
    return found


def _of_kind(config: RunConfig, kind: str) -> dict[str, ContestantConfig]:
    return {name: one for name, one in config.eval.contestants.items() if one.kind == kind}


def _require_folder(contestant: ContestantConfig, output: str) -> None:
    folder = contestant.place(output)
    file = {"adapter": CONFIG_FILE, "merged": "config.json"}[contestant.kind]
    if (folder / file).is_file():
        return
    if contestant.plan:
        made = sorted(path.parent.parent.name for path in Path(output).glob(f"ablation/*/adapter/{file}"))
        raise UserError(
            f"plan={contestant.plan}: {folder} holds no adapter: `local-experts ablate FILE` makes those of "
            f"random_0, random_1, random_2, all and attention_only; there are {', '.join(made) or 'none'}"
        )
    raise UserError(f"{folder} holds no {file}: set folder to that of {_MADE_AS[contestant.kind]}")
