"""The results of a run as the Hub reads them: `model-index` of a card, and `.eval_results/*.yaml`.

Reads the dict of results.json; writes nothing. Each score is the tuned model's, with its n, its base and the
interval of the difference beside it.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index

from data_recipes.publishing.manifest_facts import form_name

METRIC_NAMES = {
    "exact_match": "exact match by checker",
    "chrf": "chrF++",
    "bits_per_byte": "bits per byte of the expected answer",
    "script_share": "share of letters in the expected script",
}
GROUP_NAMES = {"target": "languages that were trained", "general": "languages that must not be forgotten"}


class Score(NamedTuple):
    """One compared metric of one group of rows, of one language or of all."""

    metric: str
    group: str  # "target" or "general"; "all" of a task that has no groups
    language: str | None
    compared: Mapping[str, Any]
    task: str | None = None  # None: the run's own held-out rows

    @property
    def rows(self) -> str:
        """Which rows, in words."""
        of_group = "rows" if self.group == "all" else f"{self.group} rows"
        said = f"all {of_group}" if self.language is None else f"{form_name(self.language)}, {of_group}"
        return f"{self.task}, {said}" if self.task else said

    @property
    def is_loss(self) -> bool:
        """Whether the results judge it a loss, corrected over all languages."""
        return self.compared.get("verdict") == "loss"

    @property
    def against(self) -> str:
        """What the score is to be read against."""
        found = self.compared
        return (
            f"base {found['base']:.4g}, difference {found['difference']:+.4g} "
            f"({found['low']:+.4g} to {found['high']:+.4g}), n = {found['n']}"
        )


def scores_of(results: Mapping[str, Any]) -> list[Score]:
    """Every metric of each group, in all and by language, the well-known first; then the tasks."""
    own = list(_scores(results["metrics"], None))
    return own + [
        one for name, task in results.get("tasks", {}).items() for one in _scores(task["metrics"], name)
    ]


def model_index(results: Mapping[str, Any], name: str, dataset: str | None) -> list[dict[str, Any]]:
    """The `model-index` of a card; `dataset` is the data's name on the Hub, None when it is not there."""
    revision = results["inputs"].get("dataset")
    percent = results["settings"].get("confidence_percent")
    found = [
        EvalResult(
            task_type="text-generation",
            task_name="Localized instructions",
            dataset_type=dataset or "local-experts",
            dataset_name=f"{'Task' if score.task else 'Held-out rows'}: {score.rows}",
            # The library takes scores together by this and not by the name.
            dataset_config="-".join(filter(None, (score.task, score.group, score.language))),
            dataset_split="test",
            dataset_args={"content_hash": revision} if score.task is None else None,
            metric_type=score.metric,
            metric_name=METRIC_NAMES.get(score.metric, score.metric),
            metric_value=score.compared["tuned"],
            metric_args={**score.compared, "interval_percent": percent},
        )
        for score in scores_of(results)
    ]
    return eval_results_to_model_index(name, found)


def eval_results_yaml(results: Mapping[str, Any], dataset: str) -> str:
    """The text of `.eval_results/local-experts.yaml`: what was measured on rows of the Hub's `dataset`."""
    settings = results["settings"]
    entries = [
        EvalResultEntry(
            dataset_id=dataset,
            task_id="_".join(filter(None, (score.metric, score.group, score.language))),
            value=score.compared["tuned"],
            notes=f"{score.against}; {settings.get('confidence_percent', 95):g} % paired bootstrap",
        )
        for score in scores_of(results)
        if score.task is None
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


def _scores(metrics: Mapping[str, Any], task: str | None) -> Iterator[Score]:
    known = [metric for metric in METRIC_NAMES if metric in metrics]
    for metric in (*known, *sorted(metrics.keys() - known)):
        table = metrics[metric]
        for group in (*GROUP_NAMES, "all"):
            if table.get(group) is None:
                continue
            yield Score(metric, group, None, table[group], task)
            by_language = table.get("by_language", {})
            # A task without groups has its languages right there.
            for language, compared in sorted(
                (by_language if group == "all" else by_language.get(group, {})).items()
            ):
                yield Score(metric, group, language, compared, task)
