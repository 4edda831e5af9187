"""The card of an adapter or of a merged checkpoint: README.md with the metadata that the Hub reads.

Reads a finished run and the template beside this file. What comes from files is escaped: a name may hold
Markdown or HTML. Every number is one of the run's files.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from data_recipes.publishing import manifest_facts as facts
from data_recipes.publishing.card import escape_markdown, rows_text
from finetune.hub.run_folder import FinishedRun
from finetune.hub.scores import GROUP_NAMES, METRIC_NAMES, model_index, scores_of

# vLLM takes these and no others (`MaxLoRARanks` in vllm/config/lora.py).
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class CardOf(NamedTuple):
    """What a card is for."""

    repo: str
    formats: Sequence[str]  # that lie in it
    dataset: str | None  # where the rows are on the Hub
    merged: str | None  # where the merged checkpoint is
    has_report: bool
    licence: str | None  # the Hub's name


def model_card(run: FinishedRun, card: CardOf) -> str:
    """The text of README.md: front matter, and the template filled in."""
    assert run.plan and run.lora and run.results and run.train and run.report, "an adapter's run is whole"
    rank = max(run.lora["rank"], run.lora.get("down_rank") or 0)
    text = _template().render(
        card=card,
        run=run,
        title=_title(run),
        targets=target_languages(run.manifest),
        sources=facts.source_facts(run.manifest),
        licences=facts.licences(run.manifest),
        scores=scores_of(run.results),
        metric_names=METRIC_NAMES,
        group_names=GROUP_NAMES,
        n_by_layer={layer: len(experts) for layer, experts in run.plan["experts"].items()},
        rank=rank,
        vllm_rank=next((allowed for allowed in VLLM_RANKS if allowed >= rank), rank),
        auto_class=_auto_class(run.results["settings"]["model_type"]),
        fell=[one for one in scores_of(run.results) if one.is_loss],
    )
    return f"---\n{front_matter(run, card)}---\n\n{text}"


def front_matter(run: FinishedRun, card: CardOf) -> str:
    """The card's metadata as YAML.

    A merged checkpoint is `finetune` of its base: the Hub keeps `merge` for what was made of several models.
    """
    is_merged = list(card.formats) == ["merged"]
    assert run.results is not None, "a card has results"
    library = "transformers" if is_merged else "peft" if "peft" in card.formats else "local-experts"
    base = {"base_model": run.hub_base, "base_model_relation": "finetune" if is_merged else "adapter"}
    codes = target_languages(run.manifest)
    body: dict[str, Any] = {
        "language": codes + [code for code in facts.language_codes(run.manifest) if code not in codes],
        "license": card.licence,
        "library_name": library,
        "pipeline_tag": "text-generation",
        **(base if run.hub_base else {}),
        "datasets": [card.dataset] if card.dataset else [],
        "tags": ["local-experts", "mixture-of-experts", *([] if is_merged else ["lora"]), "localization"],
        "model-index": model_index(run.results, card.repo.partition("/")[2], card.dataset),
    }
    return yaml.safe_dump({key: one for key, one in body.items() if one}, sort_keys=False, allow_unicode=True)


def target_languages(manifest: Mapping[str, Any]) -> list[str]:
    """The languages that were to be learnt: those of the recipe, or of all rows where it names none."""
    return list(manifest["recipe"].get("languages") or facts.language_codes(manifest))


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": escape_markdown, "rows": rows_text, "form": facts.form_name}
    return environment.get_template("model_card.md.jinja")


def _title(run: FinishedRun) -> str:
    names = ", ".join(facts.form_name(code) for code in target_languages(run.manifest))
    return f"{run.hub_base or run.base.model}, tuned for {names}"


def _auto_class(model_type: str) -> str:
    """The class of transformers that loads this type of model, as finetune.model chooses it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # late: torch

    is_causal = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "AutoModelForCausalLM" if is_causal else "AutoModelForImageTextToText"
