"""Measure the base that ships: what it knows before any tuning, and the trace that languages leave in its routing.

Reads a base model's folder and the held-out rows and text; writes `evaluation.json` and the model card `README.md`
into that folder. Command: `local-experts base-check --model finetune/tiny_glm --kolibri WHEEL` (`make base` runs it).
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_recipes.artefact import UserError, read_artefact, sha256_file, write_artefact
from data_recipes.build import split_rows
from data_recipes.corpus import INSTRUCTED, running_text
from data_recipes.languages import LANGUAGES, language
from data_recipes.recipe import RecipeConfig
from data_recipes.tasks import TASKS, TASKS_WITHOUT_OWN_WORDS, check
from eval.generate import generate_answers
from finetune.config import BaseConfig
from finetune.model import load_model
from finetune.moe import moe_layers
from finetune.routing import RouterRecorder

MEASURED = ("en", "hi", "bn", "ta", "te", "mr", "gu")  # the languages with phrasings
MAX_DOCUMENT_TOKENS = 192  # the length tiny-glm is trained on


def held_out_rows(code: str, n_per_task: int) -> list[dict[str, Any]]:
    """Return test rows of every task in a language: values and phrasings that no training row has."""
    recipe = RecipeConfig(name="base", languages=(code,), general_languages=(), test_rows_per_task=n_per_task)
    return split_rows(recipe, "test", Counter())


def is_in_own_words(row: Mapping[str, Any]) -> bool:
    """Whether the right answer of a row is words of its language: not digits, nor the same text in hi or bn."""
    answer = row["messages"][1]["content"]
    if row["task"] in TASKS_WITHOUT_OWN_WORDS:
        return False
    return not any(
        check(row["checker"], code, row["value"], answer) for code in INSTRUCTED if code != row["language"]
    )


def exact_match(model: Any, tokenizer: Any, code: str, n_per_task: int) -> dict[str, Any]:
    """Return the share of right answers in a language: all, by kind and task, and of answers in its own words."""
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
    (folder / "README.md").write_text(card(manifest, body), encoding="utf-8")
    return body


def card(manifest: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """Return the model card: what it is, what it is not, how it was made, what it scores."""
    tags = "\n".join(f"- {code}" for code in LANGUAGES)
    rows = [
        f"| {language(code).name} | {found['all']['exact_match']:.2f} | {found['generalise']['exact_match']:.2f} | "
        f"{found['remember']['exact_match']:.2f} | {found['own_words']['exact_match']:.2f} | {found['all']['n']} |"
        for code, found in evaluation["languages"].items()
    ]
    trace = [
        f"| {layer} | {found['least']:.2f} ({found['least_pair']}) | {found['mean']:.2f} |"
        for layer, found in evaluation["routing_trace"].items()
    ]
    head = f"---\nlicense: apache-2.0\nlibrary_name: transformers\nlanguage:\n{tags}\ntags:\n- glm_moe_dsa\n- test-model\n---\n"
    return head + (
        "\n# tiny-glm\n\n"
        f"GLM-5.2's architecture (`glm_moe_dsa`) in small: {manifest['n_parameters'] / 1e6:.1f} M parameters, one dense "
        f"and {len(trace)} MoE layers, {manifest['config']['experts']} routed experts of which "
        f"{manifest['config']['experts_per_token']} are active, one shared expert, MLA attention and a DSA indexer shared "
        "between layers. It exists to prove the mechanics of local-experts on a real, trained model.\n\n"
        "**What it is not.** It is not a chat model, not a translator and not a small GLM-5.2: it knows a dozen locale "
        "tasks in English, Hindi and Bengali and raw text in the other 20 languages, and nothing else. Nothing it shows "
        "is evidence of quality at 744 B parameters. Its indexer was never trained and never chooses (its top-k is wider "
        "than any text the model is made for).\n\n"
        f"**How it was made.** From scratch on two CPU cores in {manifest['minutes']:.0f} minutes, "
        f"{manifest['n_tokens_trained'] / 1e6:.1f} M tokens, seed {manifest['config']['seed']}; `manifest.json` holds the "
        "config, the data's hash, the versions and the loss curve. Text: CLDR through Babel (Unicode-3.0), `holidays` (MIT), "
        "`indic-numtowords` (MIT), the interface strings of Kolibri (MIT) and Django (BSD-3-Clause), and our own phrasings. "
        "Names and software text, hardly any prose.\n\n"
        "**Exact match on held-out rows** (greedy). *Generalise*: values never trained on. *Remember*: names, asked in a "
        "phrasing never trained on. *Own words*: answers that are words of the language itself.\n\n"
        "| language | all | generalise | remember | own words | rows |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n\n**Trace of languages in the routing.** Total variation between the expert shares of two languages in "
        "different scripts, on held-out running text.\n\n| layer | least, and which pair | mean |\n|---|---|---|\n"
        + "\n".join(trace)
        + "\n"
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
        print(
            f"{language(code).name:10s}"
            + ", ".join(
                f"{name} {found[name]['exact_match']:.2f}"
                for name in ("all", "generalise", "remember", "own_words")
            )
            + f", n = {found['all']['n']}"
        )
    for layer, found in body["routing_trace"].items():
        print(
            f"layer {layer}: total variation least {found['least']:.2f} ({found['least_pair']}), mean {found['mean']:.2f}"
        )
    return 0
