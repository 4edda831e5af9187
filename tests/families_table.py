"""The table of model families in `finetune/families.md`, made from the tiny models of `tiny_families.py`.

Reads the models' modules, writes nothing: `test_families.py` compares the text with the file, or writes it.
"""

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from data_recipes.artefact import UserError
from finetune.batching.packing import LIMITS, packing_error
from finetune.moe import MoeLayer, moe_layers
from tests.tiny_families import (
    FAMILIES,
    HIDDEN,
    LATENT,
    N_EXPERTS,
    OWN_CODE,
    WIDTH,
    Family,
    build_tiny_family,
    random_rows,
)

TABLE = Path(__file__).parents[1] / "finetune" / "families.md"
AXES = {N_EXPERTS: "E", HIDDEN: "H", WIDTH: "I", 2 * WIDTH: "2I", LATENT: "L"}

INTRODUCTION = f"""# Which models can be tuned

Written by `tests/test_families.py` from the modules of a small random model of each family, with transformers
{transformers.__version__}. A family is a folder of `transformers/models`; its text model is what is built.

E experts, H hidden size, I width of an expert, L a smaller size the experts work in. A stack is `[E, outputs,
inputs]`, or `[E, inputs, outputs]` where it says *transposed*. A router's name is followed by what else has a
say in its choice.

**Checked**, in float32 against the family's own eager loop over weights with W + scaling·B·A on the chosen
experts only: output and gradients of A and B to 1e-5 of the largest value, on the eager, grouped and paired
path, with padding and with gradient checkpointing (eager; `make slow` has both paths with and without);
no other parameter has a gradient; a token that hits no chosen expert is the base's bit for bit and gives
the adapter no gradient; a chosen expert without tokens has a gradient of zero; switched off or detached the
model is the base bit for bit; the experts run what the router named; in bfloat16 the first layer is
within 5 % (norm of the error) of the float32 answer.

**`base.model`** is whether the stages can load the family, by transformers' own lists: with
`AutoModelForCausalLM`, or where it says *image and text* with `AutoModelForImageTextToText` (of these a tiny
Qwen3-VL-MoE was loaded whole and its adapter exported to PEFT); *text model* where the text model alone is
known and not the wrapper that sees or hears as well. Where it says *in code*, load the model yourself and
call `finetune.adapters.adapter.attach`.

**packs** is whether rows packed into one sequence (`train.pack_length_tokens`) come out as alone, with
the attention that transformers loads the family with. Where it says no, transformers makes the masks without
the positions (gpt_oss, afmoe), or the family carries other state along the tokens (convolutions, linear
attention); training then refuses to pack, by the same check on the model itself.
"""
COLUMNS = ("family", "`model_type`", "`base.model`", "experts", "router", "shared experts", "checked")
COLUMNS += ("packs", "works")
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
# What is known of a family beyond the checks.
NOTES = {
    "diffusion_gemma": "yes (text encoder; writes by diffusion)",
    "openai_privacy_filter": "yes (labels tokens, writes none)",
    "zaya": "yes (a token may skip a mixture: it then counts at no expert)",
}


def families_table() -> str:
    """The whole text of `finetune/families.md`."""
    rows = {name: _row(name, family) for name, family in FAMILIES.items()}
    rows |= {name: _refusal(name, family) for name, family in OWN_CODE.items()}
    return f"{INTRODUCTION}\n{HEAD}" + "".join(f"| {' | '.join(rows[name])} |\n" for name in sorted(rows))


def _row(name: str, family: Family) -> list[str]:
    model = build_tiny_family(family)
    layers = moe_layers(model)
    checked = "all" if family.checkpoints else "all but checkpointing, which transformers refuses"
    return [
        name,
        family.model_type,
        _loaded_by(name, family),
        _stacks(layers[0].experts),
        _router(layers),
        _shared(model, layers[0]),
        checked,
        "yes" if packing_error(model, *random_rows((17, 21))) < LIMITS[torch.float32] else "no",
        NOTES.get(name, "yes"),
    ]


def _refusal(name: str, family: Family) -> list[str]:
    try:
        moe_layers(build_tiny_family(family))
    except UserError as error:
        reason = str(error).partition(":")[0].partition(") ")[2]
        return [
            name,
            family.model_type,
            _loaded_by(name, family),
            "",
            "",
            "",
            "refused",
            "",
            f"no: it {reason}",
        ]
    raise AssertionError(f"{name} is not refused any more: move it to FAMILIES")


def _loaded_by(name: str, family: Family) -> str:
    published = name if family.model_type.endswith("_text") else family.model_type
    if published in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "yes"
    if published in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "yes (image and text)"
    return "text model" if family.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "in code"


def _stacks(experts: Any) -> str:
    """Names and axes of the two stacks, and how they differ from the usual layout."""
    names = ("gate_up_proj" if experts.has_gate else "up_proj", "down_proj")
    shapes = [f"{name} [{', '.join(AXES[n] for n in getattr(experts, name).shape)}]" for name in names]
    differences = {
        "transposed": experts.is_transposed,
        "gate and up interleaved": experts.has_gate and not experts.is_concatenated,
        "biases": experts.has_bias,
        "no gate": not experts.has_gate,
        "a norm after each expert": experts.has_post_expert_norm,
    }
    return "; ".join([*shapes, *(f"*{difference}*" for difference, holds in differences.items() if holds)])


def _router(layers: list[MoeLayer]) -> str:
    """The router's name in its block, and the vectors and tables over experts that either carries."""
    names = set()
    for layer in layers:
        tensors = [*layer.router.named_parameters(), *layer.router.named_buffers()]
        tensors += [*layer.block.named_parameters(recurse=False), *layer.block.named_buffers(recurse=False)]
        for name, tensor in tensors:
            is_vector = tensor.numel() in (N_EXPERTS, N_EXPERTS + 1)
            if is_vector or not tensor.is_floating_point():
                names.add(name.rpartition(".")[2])
    own_name = next(name for name, module in layers[0].block.named_children() if module is layers[0].router)
    return ", ".join([own_name, *sorted(names)])


def _shared(model: nn.Module, layer: MoeLayer) -> str:
    """Experts that every token passes, wherever in the layer they are."""
    found = re.match(r"(.*\blayers\.\d+)(?:\.|$)", layer.name)
    assert found is not None
    names = [name for name, _ in model.get_submodule(found[1]).named_modules()]
    leaves = {name.rpartition(".")[2] for name in names}
    return ", ".join(sorted(leaf for leaf in leaves if re.fullmatch(r"shared_(expert|experts|mlp)", leaf)))
