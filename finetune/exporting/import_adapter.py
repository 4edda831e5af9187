"""Take an adapter of PEFT, vLLM, SGLang or our PeftModel into our format, or an ESFT list as a plan.

Reads an adapter folder (the layout is told from its tensors) or an ESFT JSON, and the base; writes an adapter
folder as training does, or a plan. What was written is read back and compared; from a PeftModel of ours it is
the same adapter bit for bit.

    local-experts import out/vllm --base /models/my-moe --output runs/mine/adapter
    local-experts import all_experts/ --plan runs/mine/plan.json --output DIR     # cut to a plan
    local-experts import expert_cfg.json --base /models/my-moe --output runs/mine/plan.json

An ESFT list (github.com/deepseek-ai/ESFT, scripts/expert/generate_expert_config.py) maps a layer index to
expert ids under "experts", and says whether "shared_experts" and "non_expert_modules" were trained as well.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from data_recipes.artefact import UserError, sha256_file, whole_folder, write_artefact
from finetune import cli
from finetune.adapters.adapter import attach, detach
from finetune.adapters.adapter_folder import (
    PEFT_TYPE,
    peft_type,
    read_adapter_folder,
    require_base,
    write_adapter_files,
)
from finetune.config import BaseConfig, LoraConfig
from finetune.exporting.adapter_parts import parts_of_tensors, read_adapter
from finetune.exporting.export import DELTA_TOLERANCE, add_base_arguments, base_of_arguments
from finetune.exporting.layouts import (
    AdapterParts,
    ExpertPart,
    ExpertsModule,
    evened,
    experts_modules,
    largest_difference,
)
from finetune.exporting.peft_folder import read_peft_folder, read_stamp
from finetune.model import load_model, model_fingerprint
from finetune.moe import moe_layers
from finetune.processes import say
from finetune.selecting.selection import read_plan

PURPOSE = "read an adapter of PEFT, vLLM, SGLang or a PeftModel of ours, or an ESFT list of experts"


def import_adapter(
    source: Path, output: Path, base: BaseConfig, plan_path: Path | None = None, is_old: bool = False
) -> Path:
    """Write the adapter of the folder `source` as one of ours; returns `output`.

    With `plan_path` only the plan's experts are kept, else all whose update is not zero, or those that a
    PeftModel of ours has chosen. `is_old` says that PEFT <= 0.19.0 wrote it.

    Raises:
        UserError: the folder is damaged, of another base, or holds what our adapter has no place for.
    """
    read = read_import(source)  # before the base is loaded
    model: Any = load_model(base)[0]
    plan, lora, wanted = attach_import(model, read, plan_path, is_old)
    with whole_folder(output, "expert_adapter") as partial:
        write_adapter_files(model, plan, lora, partial)
        detach(model)
        difference = largest_difference(wanted, read_adapter(model, partial)[1])
        if not difference <= DELTA_TOLERANCE:
            raise UserError(
                f"the imported adapter differs from {source} by {difference:.3g} of an update (at most "
                f"{DELTA_TOLERANCE}): nothing is written; please report this"
            )
    n_experts = sum(map(len, plan["experts"].values()))
    say(f"import    {n_experts} experts, rank {lora.rank}, delta_difference {difference:.3g} -> {output}")
    return output


class ReadImport(NamedTuple):
    """What is read of an adapter's folder before there is a model to hold it against."""

    source: Path
    stamp: dict[str, Any] | None
    is_ours: bool  # one of our PeftModel
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]


class Imported(NamedTuple):
    """The plan and the options of an adapter that was attached, and the updates it was to hold."""

    plan: dict[str, Any]
    lora: LoraConfig
    wanted: AdapterParts


def read_import(source: Path) -> ReadImport:
    """Read the folder of an adapter of PEFT, vLLM, SGLang or our PeftModel.

    Raises:
        UserError: a file is missing, damaged, of another type, or has a setting that we do not compute.
    """
    stamp = read_stamp(source)
    is_ours = peft_type(source) == PEFT_TYPE
    return ReadImport(source, stamp, is_ours, *read_peft_folder(source, PEFT_TYPE if is_ours else "LORA"))


def attach_import(
    model: Any, read: ReadImport, plan_path: Path | None = None, is_old: bool = False
) -> Imported:
    """Attach an adapter that was read to a loaded model that has none, as one of ours.

    Raises:
        UserError: as `import_adapter`.
    """
    source, stamp, is_ours, config, tensors = read
    fingerprint, modules = model_fingerprint(model), experts_modules(model)
    if stamp is not None and stamp["model_fingerprint"] != fingerprint:
        raise UserError(
            f"{source} was exported for another model (fingerprint {stamp['model_fingerprint'][:12]}, "
            f"this one has {fingerprint[:12]}): set --base to the model it was trained on"
        )
    if is_ours:
        parts, plan, lora = _of_our_peft_model(model, source, fingerprint, is_old)
    else:
        parts, lora = parts_of_tensors(model, config, tensors, is_old), None
        plan = _plan(_changed_experts(parts, modules), modules, fingerprint)
    if plan_path is not None:
        plan = read_plan(plan_path, fingerprint, moe_layers(model))
    wanted = _cut(parts, plan, modules)
    if not wanted.experts:
        raise UserError(
            f"{source} changes no routed expert: there is nothing for an adapter of experts to hold"
        )
    filled = wanted
    if lora is None:
        rank, scaling, filled = evened(wanted)
        lora = LoraConfig(rank=rank, alpha=scaling * rank, **_linear_options(wanted))
    attach(model, plan, lora, seed=0)
    _fill(model, filled)
    return Imported(plan, lora, wanted)


def _of_our_peft_model(
    model: Any, source: Path, fingerprint: str, is_old: bool
) -> tuple[AdapterParts, dict[str, Any], LoraConfig]:
    """The updates, the plan and the options of an adapter that our PeftModel saved."""
    if is_old:
        raise UserError(f"{source} is not of the old PEFT layout: import it without --old-peft-layout")
    adapter = read_adapter_folder(model, source)
    require_base(source, adapter.saved, fingerprint)
    return read_adapter(model, source)[1], adapter.plan, adapter.config


def import_expert_list(source: Path, output: Path, base: BaseConfig) -> Path:
    """Write the ESFT list `source` as a plan; returns `output`.

    Raises:
        UserError: it is no ESFT list, or names layers or experts that the base does not have.
    """
    try:
        listed = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{source} is not whole JSON ({error}): copy it again") from error
    experts = listed.get("experts") if isinstance(listed, dict) else None
    if not isinstance(experts, dict) or not all(
        name.isdecimal() and isinstance(ids, list) and all(type(expert) is int for expert in ids)
        for name, ids in experts.items()
    ):
        raise UserError(
            f'{source} is no ESFT list of experts: {{"experts": {{"<layer>": [ids]}}, '
            '"shared_experts": false, "non_expert_modules": false}'
        )
    model = load_model(base)[0]
    modules = experts_modules(model)
    n_experts = {module.index: module.n_experts for module in modules.values()}
    for name, ids in experts.items():
        if int(name) not in n_experts:
            raise UserError(
                f"{source} names layer {name}, but the layers with experts are {sorted(n_experts)}"
            )
        last = n_experts[int(name)] - 1
        if len(set(ids)) < len(ids) or any(not 0 <= expert <= last for expert in ids):
            raise UserError(
                f"{source}: the experts of layer {name} must be different ids in 0..{last}, not {ids}"
            )
    chosen = {int(name): sorted(ids) for name, ids in experts.items() if ids}
    if not chosen:
        raise UserError(f"{source} chooses no expert")
    plan = _plan(chosen, modules, model_fingerprint(model)) | {"method": "esft_list"}
    write_artefact(output, "expert_plan", {"expert_list": sha256_file(source)}, plan)
    say(f"import    {sum(map(len, chosen.values()))} experts of {len(chosen)} layers -> {output}")
    for name in ("shared_experts", "non_expert_modules"):
        if listed.get(name):
            say(f"          {name} is set in the list; a plan holds routed experts only, so that is left out")
    return output


def _plan(
    experts: Mapping[int, list[int]], modules: Mapping[str, ExpertsModule], fingerprint: str
) -> dict[str, Any]:
    return {
        "model_fingerprint": fingerprint,
        "method": "import",
        "n_experts": next(iter(modules.values())).n_experts,
        "experts": {str(index): experts[index] for index in sorted(experts)},
    }


def _changed_experts(parts: AdapterParts, modules: Mapping[str, ExpertsModule]) -> dict[int, list[int]]:
    """Layer index -> the experts whose update is not zero."""
    changed: dict[int, set[int]] = {}
    for (name, _), part in parts.experts.items():
        of_layer = {
            expert
            for number, expert in enumerate(part.chosen)
            if part.A_NRI[number].any() and part.B_NOR[number].any()
        }
        if of_layer:
            changed.setdefault(modules[name].index, set()).update(of_layer)
    return {index: sorted(experts) for index, experts in changed.items()}


def _linear_options(parts: AdapterParts) -> dict[str, Any]:
    """The options of LoraConfig that give the linear layers of `parts` a LoRA."""
    shared = {name for name in parts.linears if "shared_expert" in name}
    options = {"attention": bool(parts.linears.keys() - shared), "shared_experts": bool(shared)}
    # What there is no option for is refused by name, where the values are filled in.
    return {name: value for name, value in options.items() if name in LoraConfig.__dataclass_fields__}


def _cut(parts: AdapterParts, plan: Mapping[str, Any], modules: Mapping[str, ExpertsModule]) -> AdapterParts:
    """The parts of the plan's experts only, zeros where the adapter has nothing for one of them."""
    experts: dict[tuple[str, str], ExpertPart] = {}
    for (name, parameter), part in parts.experts.items():
        chosen = plan["experts"].get(str(modules[name].index))
        if not chosen:
            continue
        A_NRI = part.A_NRI.new_zeros(len(chosen), *part.A_NRI.shape[1:])
        B_NOR = part.B_NOR.new_zeros(len(chosen), *part.B_NOR.shape[1:])
        place = {expert: number for number, expert in enumerate(part.chosen)}
        for number, expert in enumerate(chosen):
            if expert in place:
                A_NRI[number], B_NOR[number] = part.A_NRI[place[expert]], part.B_NOR[place[expert]]
        experts[name, parameter] = ExpertPart(list(chosen), A_NRI, B_NOR, part.scaling)
    return AdapterParts(experts, parts.linears)


@torch.no_grad()
def _fill(model: Any, parts: AdapterParts) -> None:
    """Put the parts into the adapter that is attached; what they do not hold keeps B = 0.

    Raises:
        UserError: a linear layer of the parts has no LoRA in our adapter.
    """
    for (name, parameter), expert_part in parts.experts.items():
        adapter: Any = model.get_submodule(name).expert_lora
        low_rank = adapter.down if parameter == "down_proj" else adapter.up
        low_rank.A.copy_(expert_part.A_NRI)
        low_rank.B.copy_(expert_part.B_NOR)
    for name, part in parts.linears.items():
        module = model.get_submodule(name)
        if not isinstance(module, BaseTunerLayer):
            raise UserError(
                f"the adapter also changes {name}, which ours has no LoRA for: remove it from there, or "
                "merge the adapter where it was trained"
            )
        layer: Any = module
        (active,) = layer.active_adapters
        layer.lora_A[active].weight.copy_(part.A_RI)
        layer.lora_B[active].weight.copy_(part.B_OR)


def main(argv: Sequence[str] | None = None) -> int:
    """`SOURCE --output PATH [--base MODEL] [--plan FILE] [--old-peft-layout]`."""
    parser = argparse.ArgumentParser(prog="local-experts import", description=PURPOSE)
    parser.add_argument("source", type=Path, help="an adapter's folder, or an ESFT list (*.json)")
    parser.add_argument("--output", required=True, type=Path, help="a folder; for a list, the plan's file")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="keep only the experts of this plan.json")
    parser.add_argument("--old-peft-layout", action="store_true", help="it was written by peft <= 0.19.0")
    add_base_arguments(parser)
    arguments = parser.parse_args(argv)
    base = base_of_arguments(arguments)
    if arguments.source.suffix == ".json":
        import_expert_list(arguments.source, arguments.output, base)
    else:
        import_adapter(arguments.source, arguments.output, base, arguments.plan, arguments.old_peft_layout)
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["import", *sys.argv[1:]]))
