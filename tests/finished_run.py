"""A finished run in a folder: a real small base, adapter and dataset, with made-up results and report."""

from pathlib import Path
from typing import Any

from made_up_dataset import HASH, made_up_manifest, made_up_samples, save_made_up
from tuned_bases import GLM_EXPERTS, give_values

from data_recipes.artefact import read_artefact, sha256_file, write_artefact, write_text
from data_recipes.publishing.publish import publish
from data_recipes.settings import settings_dict
from finetune.adapters.adapter import attach, save_adapter
from finetune.config import BaseConfig, LoraConfig
from finetune.model import load_model, model_fingerprint

HUB_BASE = "zai-org/GLM-5.2"


def compared(base: float, tuned: float, low: float, high: float, n: int) -> dict[str, Any]:
    verdict = "loss" if high < 0 else "gain" if low > 0 else "too few rows to tell"
    found = {"base": base, "tuned": tuned, "difference": tuned - base, "low": low, "high": high, "n": n}
    return {**found, "verdict": verdict}


def made_up_results() -> dict[str, Any]:
    """Exact match of two groups, the general one lost."""
    target, general = compared(0.25, 0.75, 0.25, 0.625, 40), compared(0.875, 0.75, -0.25, -0.0625, 24)
    metrics: dict[str, dict[str, Any]] = {
        "exact_match": {
            "target": target,
            "general": general,
            "by_language": {"target": {"hi": target}, "general": {"en": general}},
        },
        "bits_per_byte": {"target": compared(2.0, 1.5, -0.75, -0.25, 40), "general": None, "by_language": {}},
    }
    settings = {"model_type": "glm_moe_dsa", "n_parameters": 1234, "n_bootstrap": 200}
    settings |= {"confidence_percent": 95.0, "dtype": "float32", "seed": 0}
    rows = [{"id": "made-up/hi/5", "prompt": "?", "expected": "!", "base": "?", "tuned": "!"}]
    return {"metrics": metrics, "settings": settings, "rows": rows, "signatures": {"chrf": "nrefs:1"}}


def save_run(folder: Path, base: BaseConfig, **manifest: Any) -> Path:
    """Write the whole run; `manifest` are changes to the dataset's."""
    save_data(folder / "data", **manifest)
    save_small_adapter(folder / "adapter", base)
    save_results(folder, base)
    return folder


def save_data(folder: Path, **manifest: Any) -> None:
    save_made_up(folder)
    body = made_up_manifest(**manifest)
    write_artefact(folder / "manifest.json", "dataset_manifest", {}, body)
    publish(folder, body, made_up_samples())


def save_small_adapter(folder: Path, base: BaseConfig, seed: int = 5) -> None:
    """LoRA on three experts, with values in all tensors; vLLM and SGLang take it."""
    model = load_model(base)[0]
    plan = {"model_fingerprint": model_fingerprint(model), "experts": GLM_EXPERTS, "n_experts": 8}
    plan |= {"method": "token_share", "share": 0.5, "warnings": ["a warning of the plan"]}
    config = LoraConfig(rank=3, alpha=6.0)
    attach(model, plan, config, seed=0)
    give_values(model, seed)
    save_adapter(model, plan, config, folder)
    numbers = {"steps": 20, "tokens": 900, "first_loss": 3.0, "last_loss": 1.0}
    write_artefact(folder / "train.json", "train_result", {"data": HASH}, numbers)


def save_results(folder: Path, base: BaseConfig) -> None:
    """results.json, report.json and report.html, which name the base by its folder as the real ones do."""
    inputs = {"adapter": sha256_file(folder / "adapter" / "adapter_config.json"), "dataset": HASH}
    results = made_up_results()
    results["settings"]["model"] = base.model
    write_artefact(folder / "results.json", "eval_results", inputs, results)
    of_results = {"results.json": sha256_file(folder / "results.json")}
    report = {
        "config": {"base": settings_dict(base), "output": str(folder)},
        "finding": {
            "target": "Exact match rose.",
            "general": "On 24 held-out general rows exact match fell.",
        },
        "training": {"steps": 20},
        "model": {"model": base.model, "note": f"{base.model}: glm_moe_dsa"},
    }
    write_artefact(folder / "report.json", "report", of_results, report)
    page = f"<p>{base.model}: glm_moe_dsa, {of_results['results.json']}</p><p>{folder}/adapter</p>"
    write_text(folder / "report.html", page)
    plan = read_artefact(folder / "adapter" / "plan.json", "expert_plan")
    body = {key: plan[key] for key in plan.keys() - {"kind", "schema", "inputs", "versions"}}
    write_artefact(folder / "plan.json", "expert_plan", {}, body)
