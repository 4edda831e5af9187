"""Measure the base that ships: what it knows before any tuning, and the trace of languages in its routing.

Reads a base model's folder and held-out rows and text; writes `evaluation.json` and the model card
`README.md` into that folder. `make base` runs it.

    local-experts base-check --model finetune/tiny_glm --kolibri WHEEL
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Template

from data_recipes.artefact import UserError, read_artefact, sha256_file, write_artefact, write_text
from data_recipes.corpus import INSTRUCTED, running_text
from data_recipes.languages import LANGUAGES, language
from data_recipes.locale_rows import split_rows
from data_recipes.recipe import RecipeConfig
from data_recipes.tasks import TASKS, TASKS_WITHOUT_OWN_WORDS, check
from eval.generate import generate_answers
from finetune.config import BaseConfig
from finetune.model import load_model
from finetune.moe import moe_layers
from finetune.profiling.router_recorder import RouterRecorder

MEASURED = ("en", "hi", "bn", "ta", "te", "mr", "gu")  # the languages with phrasings
PARTS = ("all", "generalise", "remember", "own_words")
MAX_DOCUMENT_TOKENS = 192  # the length tiny-glm is trained on


def held_out_rows(code: str, n_per_task: int) -> list[dict[str, Any]]:
    """Return test rows of every task in a language, as a recipe would hold them out."""
    recipe = RecipeConfig(name="base", languages=(code,), general_languages=(), test_rows_per_task=n_per_task)
    return split_rows(recipe, "test", Counter())


def is_in_own_words(row: Mapping[str, Any]) -> bool:
    """Whether the right answer of a row is words of its language: not digits, nor the same text in hi or
    bn.
    """
    answer = row["messages"][1]["content"]
    if row["task"] in TASKS_WITHOUT_OWN_WORDS:
        return False
    return not any(
        check(row["checker"], code, row["value"], answer) for code in INSTRUCTED if code != row["language"]
    )


def exact_match(model: Any, tokenizer: Any, code: str, n_per_task: int) -> dict[str, Any]:
    """Return the share of right answers in a language: all, by kind, by task, and in its own words."""
    rows = held_out_rows(code, n_per_task)
    answers = generate_answers(model, tokenizer, [row["messages"][:1] for row in rows], 64, 64)
    right = np.array(
        [check(row["checker"], code, row["value"], answer) for row, answer in zip(rows, answers, strict=True)]
    )

    def share(is_in: Sequence[bool]) -> dict[str, float]:
        mask = np.array(is_in)
        return {"exact_match": round(float(right[mask].mean()), 4), "n": int(mask.sum())}

    return {
        "all": share([True] * len(rows)),
        "own_words": share([is_in_own_words(row) for row in rows]),
        **{kind: share([row["kind"] == kind for row in rows]) for kind in ("generalise", "remember")},
        "by_task": {
            name: share([row["task"] == name for row in rows])
            for name in TASKS
            if any(row["task"] == name for row in rows)
        },
    }


@torch.inference_mode()
def expert_shares_by_language(
    model: Any, tokenizer: Any, kolibri_wheel: Path | None
) -> dict[str, np.ndarray]:
    """Return each language's share of routed tokens [L, E] on held-out running text; rows sum to 1 over E."""
    layers = moe_layers(model)
    shares = {}
    for code in LANGUAGES:
        texts = [document.text for document in running_text(code, kolibri_wheel) if document.held_out]
        if not texts:
            continue
        with RouterRecorder(layers) as recorder:
            for text in texts:
                ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :MAX_DOCUMENT_TOKENS]
                recorder.expect(torch.ones_like(ids))
                model(input_ids=ids, use_cache=False)
        counts_LE = recorder.counts_LE.numpy().astype(np.float64)
        shares[code] = counts_LE / counts_LE.sum(axis=1, keepdims=True)
    return shares


def routing_trace(shares: Mapping[str, np.ndarray], layers: Sequence[int]) -> dict[str, Any]:
    """Return the total variation between the expert shares of languages in different scripts, by layer.

    Half the L1 distance, from 0 to 1; the smallest and the mean over all pairs of languages.
    """
    pairs = [(a, b) for a, b in combinations(shares, 2) if language(a).script != language(b).script]
    distance_PL = np.array([0.5 * np.abs(shares[a] - shares[b]).sum(axis=1) for a, b in pairs])
    least = distance_PL.argmin(axis=0)
    return {
        str(layer): {
            "least": round(float(distance_PL[least[i], i]), 4),
            "least_pair": "/".join(pairs[least[i]]),
            "mean": round(float(distance_PL[:, i].mean()), 4),
            "n_pairs": len(pairs),
        }
        for i, layer in enumerate(layers)
    }


def check_base(folder: Path, kolibri_wheel: Path | None, n_per_task: int) -> dict[str, Any]:
    """Measure a base model and write `evaluation.json` and the card beside it.

    Raises:
        UserError: there is no such model, or its manifest is missing.
    """
    manifest = read_artefact(folder / "manifest.json", "base_model")
    model, tokenizer = load_model(BaseConfig(model=str(folder)))
    body = {
        "languages": {code: exact_match(model, tokenizer, code, n_per_task) for code in MEASURED},
        "routing_trace": routing_trace(
            expert_shares_by_language(model, tokenizer, kolibri_wheel),
            [layer.index for layer in moe_layers(model)],
        ),
    }
    inputs = {"model": sha256_file(folder / "model.safetensors")}
    write_artefact(folder / "evaluation.json", "base_evaluation", inputs, body)
    write_text(folder / "README.md", card(manifest, body))
    return body


def card(manifest: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """Return the model card: what it is, what it is not, how it was made, what it scores."""
    template = Template((Path(__file__).parent / "base_card.md.jinja").read_text(encoding="utf-8"))
    return template.render(
        manifest=manifest,
        evaluation=evaluation,
        codes=list(LANGUAGES),
        names={code: row.name for code, row in LANGUAGES.items()},
        parts=PARTS,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """`local-experts base-check --model FOLDER [--kolibri WHEEL]`."""
    parser = argparse.ArgumentParser(
        prog="local-experts base-check", description="measure a base made by `local-experts base`"
    )
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--kolibri", type=Path, default=None, metavar="WHEEL", help="adds its held-out text")
    parser.add_argument("--rows-per-task", type=int, default=30)
    arguments = parser.parse_args(argv)
    if not (arguments.model / "config.json").is_file():
        raise UserError(f"{arguments.model} holds no model: give the folder that `local-experts base` wrote")
    body = check_base(arguments.model, arguments.kolibri, arguments.rows_per_task)
    for code, found in body["languages"].items():
        scores = ", ".join(f"{part} {found[part]['exact_match']:.2f}" for part in PARTS)
        print(f"{language(code).name:10s}{scores}, n = {found['all']['n']}")
    for layer, found in body["routing_trace"].items():
        least = f"{found['least']:.2f} ({found['least_pair']})"
        print(f"layer {layer}: total variation least {least}, mean {found['mean']:.2f}")
    return 0
