"""Take an adapter out of the trainer: for plain PEFT, vLLM or SGLang, or merged into the base's checkpoint.

Reads an adapter folder and the base; writes a folder with a stamp (export.json). Every export reads back what
it wrote and compares it with the adapter; when that differs, nothing stays.

    local-experts export --adapter runs/quickstart/adapter --to peft --output out/peft
    local-experts export --adapter ADAPTER --to merged --base /models/my-moe --check deltas --output DIR
"""

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open

from data_recipes.artefact import UserError, whole_folder
from finetune import cli
from finetune.adapters.adapter import adapter_disabled, detach, load_adapter
from finetune.config import BaseConfig
from finetune.exporting.adapter_parts import parts_of_tensors, read_adapter
from finetune.exporting.checkpoint_files import checkpoint_folder, read_places
from finetune.exporting.checkpoint_fingerprint import require_base_files
from finetune.exporting.checkpoint_names import conversion_table, model_type, skeleton, stored_as
from finetune.exporting.layouts import (
    PREFIX,
    AdapterParts,
    evened,
    experts_modules,
    largest_difference,
    pair_names,
    to_peft,
    to_per_expert,
)
from finetune.exporting.merged_checkpoint import (
    check_merged,
    not_loaded,
    planned_changes,
    write_merged,
)
from finetune.exporting.peft_folder import TENSORS_FILE, read_peft_config, write_peft_folder, write_stamp
from finetune.model import load_model, resolve_model_path
from finetune.processes import say

PURPOSE = "write an adapter for plain PEFT, vLLM or SGLang, or merged into the checkpoint"
FORMATS = ("peft", "vllm", "sglang", "merged")
CHECKS = ("logits", "deltas")
Tensors = Iterator[tuple[str, torch.Tensor]]
# Of an update: float32 rounds once when a scaling is multiplied into B.
DELTA_TOLERANCE = 1e-6
# Of the logits, in L2. float32 sums in another order. bfloat16 rounds W + update where we round the update,
# which moves tokens between experts: 0.012 to 0.036 on a random tiny GLM.
LOGIT_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
PROBE_SHAPE = (4, 64)  # rows, tokens
# These are read by vLLM in PEFT's 3-D layout only (`is_3d_moe_weight` in vllm/model_executor/models/*.py).
VLLM_STACKED = ("gpt_oss", "qwen3_vl_moe", "qwen3_5_moe", "qwen3_5_moe_text")
# Multi-head latent attention multiplies this weight into others at load, past any LoRA on it.
VLLM_UNAPPLIED = ".kv_b_proj"


def export_adapter(adapter: Path, to: str, output: Path, base: BaseConfig, check: str = "logits") -> Path:
    """Write the adapter in the folder `adapter` for another program; returns `output`.

    `check` "logits" loads the base and compares logits on a probe batch, for "peft" and "merged"; "deltas"
    does not. The updates themselves are compared always, expert by expert, and so is the base's fingerprint.

    Raises:
        UserError: the adapter is damaged or of another base, the format cannot hold it, or what was written
            differs from the adapter.
    """
    with_weights = check == "logits" and to in ("peft", "merged")
    model: Any = load_model(base)[0] if with_weights else skeleton(base)
    probe = _probe(model, adapter) if with_weights else None
    saved, parts = read_adapter(model, adapter, announces=probe is None)
    if to == "merged":
        # First of all, because it names the tensor that is wrong; to load them would fail without a name.
        planned_changes(model, parts, read_places(checkpoint_folder(base)))
    if not with_weights:
        require_base_files(adapter, saved, base, model)
    _refuse_base(output, base)
    with whole_folder(output, "adapter_export") as partial:
        if to == "merged":
            report, dtype = _export_merged(model, parts, base, partial)
            model = None  # before the merged one is loaded: never two
        else:
            report, dtype = _export_adapter_file(model, parts, base, to, partial), base.dtype
        if probe is not None:
            report |= _compare_logits(model, probe, base, to, partial, dtype)
        write_stamp(partial, to, saved["model_fingerprint"], saved["sha256"], report)
    listed = ", ".join(f"{name} {value:.3g}" for name, value in sorted(report.items()))
    say(f"export    {to}: {listed} -> {output}")
    return output


def _refuse_base(output: Path, base: BaseConfig) -> None:
    """Refuse an output whose replacing would delete the base: a merged checkpoint of ours may be one."""
    folder, target = Path(resolve_model_path(base.model)).resolve(), output.resolve()
    if folder == target or target in folder.parents:
        raise UserError(f"--output {output} is the base's own folder, or holds it: choose another output")


def _export_adapter_file(
    model: Any, parts: AdapterParts, base: BaseConfig, to: str, folder: Path
) -> dict[str, Any]:
    rank, scaling, even = evened(parts)
    if to == "peft":
        modules, parameters = _peft_targets(even)
        tensors_of: Callable[[AdapterParts], Tensors] = partial(_peft_tensors, model)
    else:
        names, modules = _per_expert_names(model, even, to)
        parameters = None
        tensors_of = partial(_per_expert_tensors, model, names, to == "vllm")
    # With zeros for experts that are not chosen, the file can be larger than memory: first its shapes alone.
    shapes = {PREFIX + name: value.shape for name, value in tensors_of(_shapes_only(even))}
    tensors = ((PREFIX + name, value) for name, value in tensors_of(even))
    write_peft_folder(folder, shapes, tensors, rank, scaling, base.model, modules, parameters)
    difference = _difference_by_layer(model, parts, folder)
    if not difference <= DELTA_TOLERANCE:
        raise UserError(
            f"the {to} file differs from the adapter by {difference:.3g} of an update "
            f"(at most {DELTA_TOLERANCE}): nothing is written; please report this"
        )
    return {"rank": rank, "delta_difference": difference}


def _shapes_only(parts: AdapterParts) -> AdapterParts:
    """The parts on the meta device, where a tensor has a shape and no memory."""
    return AdapterParts(
        {
            key: part._replace(A_NRI=part.A_NRI.to("meta"), B_NOR=part.B_NOR.to("meta"))
            for key, part in parts.experts.items()
        },
        {
            name: part._replace(A_RI=part.A_RI.to("meta"), B_OR=part.B_OR.to("meta"))
            for name, part in parts.linears.items()
        },
    )


def _difference_by_layer(model: Any, parts: AdapterParts, folder: Path) -> float:
    """The largest difference of the written file, read one layer after the other."""
    config, path = read_peft_config(folder), folder / TENSORS_FILE
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    ours = [*(name for name, _ in parts.experts), *parts.linears]
    worst = 0.0
    for layer in sorted({_layer(name) for name in (*names, *ours)}):
        with safe_open(path, framework="pt") as file:  # anew: what was read of it goes out of memory
            tensors = {name: file.get_tensor(name) for name in names if _layer(name) == layer}
            theirs = parts_of_tensors(model, config, tensors) if tensors else AdapterParts({}, {})
            expected = AdapterParts(
                {key: part for key, part in parts.experts.items() if _layer(key[0]) == layer},
                {name: part for name, part in parts.linears.items() if _layer(name) == layer},
            )
            worst = max(worst, largest_difference(expected, theirs))
            del tensors, theirs
    return worst


def _layer(name: str) -> int:
    """The layer's number in a name of the model or of a checkpoint; -1 outside of the layers."""
    number = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return int(number[1]) if number else -1


def _peft_targets(parts: AdapterParts) -> tuple[list[str], list[str]]:
    """target_modules and target_parameters of a standard PEFT adapter."""
    parameters = [f"{name}.{parameter}" for name, parameter in parts.experts]
    # PEFT turns target_modules that end in gate_proj, up_proj or down_proj into all routed experts.
    is_mlp = {name: ".mlp." in name or "shared_expert" in name for name in parts.linears}
    parameters += [f"{name}.weight" for name in parts.linears if is_mlp[name]]
    return [name for name in parts.linears if not is_mlp[name]], parameters


def _peft_tensors(model: Any, parts: AdapterParts) -> Tensors:
    """Tensors of a standard PEFT adapter by name, one stack after the other."""
    for name, module in experts_modules(model).items():
        # PEFT nests in the order of declaration: the last parameter is outside, under the module's own name.
        own = [parameter for parameter in module.sizes if (name, parameter) in parts.experts]
        for depth, parameter in enumerate(reversed(own)):
            pair = to_peft(parts.experts[name, parameter], module.n_experts)
            yield from zip(pair_names(name + ".base_layer" * depth), pair, strict=True)
    for name, linear in parts.linears.items():
        yield from zip(pair_names(name), linear[:2], strict=True)


def _per_expert_names(
    model: Any, parts: AdapterParts, to: str
) -> tuple[dict[tuple[str, str], list[str]], list[str]]:
    """Names in a checkpoint ("*" for the expert) of each part, and their last names: target_modules.

    A linear layer's part goes by (its name, "weight").
    """
    family, table = model_type(model), conversion_table(model)
    if to == "vllm" and family in VLLM_STACKED:
        raise UserError(f"vLLM reads the experts of {family} in PEFT's 3-D layout only: use --to peft")
    unapplied = sorted(name for name in parts.linears if name.endswith(VLLM_UNAPPLIED))
    if to == "vllm" and any(parts.linears[name].B_OR.any() for name in unapplied):
        raise UserError(
            f"vLLM loads LoRA on {unapplied[0]} and never applies it (vllm-project/vllm issue 48974): "
            "use --to merged, or train with lora.attention=false"
        )
    names: dict[tuple[str, str], list[str]] = {}
    for name, parameter in parts.experts:
        stored = stored_as(table, f"{name}.{parameter}")
        if not stored.is_per_expert:
            raise UserError(
                f"checkpoints of {family} have one tensor for all experts ({stored.names[0]}), so {to} knows "
                "no names for each of them: use --to peft or --to merged"
            )
        names[name, parameter] = [stored_name.removesuffix(".weight") for stored_name in stored.names]
    for name in parts.linears:
        names[name, "weight"] = [stored_as(table, f"{name}.weight").names[0].removesuffix(".weight")]
    leaves = {name.rpartition(".")[2] for of_part in names.values() for name in of_part}
    return names, sorted(leaves)


def _per_expert_tensors(
    model: Any, names: Mapping[tuple[str, str], list[str]], has_all_experts: bool, parts: AdapterParts
) -> Tensors:
    """Tensors of a file with one pair for each expert and projection, one stack after the other.

    vLLM stacks the experts of a layer, so that each must be there; SGLang fills up with zeros itself.
    """
    modules = experts_modules(model)
    for (name, parameter), part in parts.experts.items():
        module = modules[name]
        n_experts = module.n_experts if has_all_experts else None
        yield from to_per_expert(part, names[name, parameter], module.is_concatenated, n_experts).items()
    for name, linear in parts.linears.items():
        yield from zip(pair_names(*names[name, "weight"]), linear[:2], strict=True)


def _export_merged(
    model: Any, parts: AdapterParts, base: BaseConfig, folder: Path
) -> tuple[dict[str, Any], str]:
    """Returns what was compared, and the narrowest dtype that W + update was rounded to."""
    source = checkpoint_folder(base)
    places = read_places(source)
    changes = planned_changes(model, parts, places)
    write_merged(source, folder, changes, places)
    report = check_merged(source, folder, changes, places)
    report["kept_and_not_loaded"] = len(not_loaded(places, model.config.get_text_config().num_hidden_layers))
    is_float32 = {places[change.name].dtype for change in changes} == {"F32"}
    return report, base.dtype if is_float32 else "bfloat16"


def _probe(model: Any, adapter: Path) -> dict[str, torch.Tensor]:
    """Logits of a probe batch with the adapter and without; the adapter is taken off again."""
    generator = torch.Generator().manual_seed(0)
    config = model.config.get_text_config()  # of a model that sees images too, the part that reads
    length = min(PROBE_SHAPE[1], getattr(config, "max_position_embeddings", None) or PROBE_SHAPE[1])
    tokens = torch.randint(config.vocab_size, (PROBE_SHAPE[0], length), generator=generator)
    load_adapter(model, adapter)  # compares the base's fingerprint
    try:
        tuned = _logits(model, tokens)
        return {"tokens": tokens, "tuned": tuned, "base": _logits(model, tokens, adapter_disabled(model))}
    finally:
        detach(model)


@torch.no_grad()
def _logits(
    model: Any, tokens: torch.Tensor, within: AbstractContextManager[None] | None = None
) -> torch.Tensor:
    with within or nullcontext():
        return model(tokens.to(model.device), use_cache=False).logits.cpu().double()


def _compare_logits(
    model: Any, probe: dict[str, torch.Tensor], base: BaseConfig, to: str, folder: Path, dtype: str
) -> dict[str, Any]:
    """Load what was written with the program it is for, or with transformers, and compare logits."""
    if to == "peft":
        with warnings.catch_warnings():
            # peft 0.21.2 still asks transformers 5.23 for a property by its deprecated name.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            loaded: Any = PeftModel.from_pretrained(model, str(folder))
        found = _logits(loaded, probe["tokens"])
    else:
        loaded = load_model(replace(base, model=str(folder), revision=None))[0]
        found = _logits(loaded, probe["tokens"])
    size = float(probe["tuned"].norm())
    difference = float((found - probe["tuned"]).norm()) / size
    effect = float((probe["tuned"] - probe["base"]).norm()) / size
    allowed = LOGIT_TOLERANCE[dtype]
    if not difference <= allowed:
        raise UserError(
            f"logits of the {to} export differ from the adapter's by {difference:.3g} (at most {allowed}; "
            f"the adapter itself changes them by {effect:.3g}): nothing is written; please report this"
        )
    return {"logit_difference": difference, "logit_effect": effect}


def main(argv: Sequence[str] | None = None) -> int:
    """`--adapter DIR --to FORMAT --output DIR [--base MODEL]`: export and print what was compared."""
    parser = argparse.ArgumentParser(prog="local-experts export", description=PURPOSE)
    parser.add_argument(
        "--adapter", required=True, type=Path, metavar="DIR", help="as runs/quickstart/adapter"
    )
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--check", choices=CHECKS, default=CHECKS[0], help="deltas: run no model")
    add_base_arguments(parser)
    arguments = parser.parse_args(argv)
    export_adapter(
        arguments.adapter, arguments.to, arguments.output, base_of_arguments(arguments), arguments.check
    )
    return 0


def add_base_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say which base an adapter belongs to, as `base.*` of a run."""
    parser.add_argument(
        "--base", default=BaseConfig.model, metavar="MODEL", help="a folder, a Hub id or tiny-glm"
    )
    parser.add_argument("--revision", help="of the Hub id")
    parser.add_argument("--dtype", choices=tuple(LOGIT_TOLERANCE), default=BaseConfig.dtype)
    parser.add_argument("--device", default=BaseConfig.device)


def base_of_arguments(arguments: argparse.Namespace) -> BaseConfig:
    """The base that `add_base_arguments` was given."""
    return BaseConfig(
        model=arguments.base, revision=arguments.revision, dtype=arguments.dtype, device=arguments.device
    )


if __name__ == "__main__":
    sys.exit(cli.main(["export", *sys.argv[1:]]))
