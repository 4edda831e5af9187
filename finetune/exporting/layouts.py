"""The layouts in which other programs keep LoRA on experts, each as a function to and from our tensors.

Reads and writes no file. What the layouts are was read in these files:

- peft 0.21.2, `tuners/lora/layer.py` (`ParamWrapper`): one 2-D pair for all experts of a fused parameter.
  A is (E x R, I), expert after expert; B is (O, R x E), rank after rank and the expert fastest. Whether the
  stack is stored [E, O, I] or, as gpt_oss does, [E, I, O] changes nothing here. Up to peft 0.19.0 the two
  axes of a stack [E, O, I] were read the wrong way round: A was (E x R, O) and B (I, R x E).
- vLLM, `vllm/lora/lora_weights.py` (`pack_moe`) and `layers/fused_moe.py`: one 2-D pair for each expert and
  projection under the checkpoint's names. All experts of a layer must be there, with one rank for each
  projection, because they are stacked; `peft_helper.py` has one r and one lora_alpha for the whole file.
- SGLang, `srt/lora/lora.py` and `srt/lora/mem_pool.py`: the same names, an expert that is missing counts as
  zero, and every tensor has the rank of adapter_config.json, whose r and lora_alpha are the only ones.

Legend: E experts, N chosen experts, R rank, I inputs and O outputs of a projection.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from data_recipes.artefact import UserError
from finetune.moe import moe_layers

PREFIX = "base_model.model."  # before every name in a PEFT file


class ExpertPart(NamedTuple):
    """LoRA of one fused projection of one layer: W[e] += scaling x B A, for each of its chosen experts e."""

    chosen: list[int]  # ascending; the i-th slice of A and B belongs to chosen[i]
    A_NRI: torch.Tensor
    B_NOR: torch.Tensor
    scaling: float


class LinearPart(NamedTuple):
    """LoRA of one ordinary linear layer: W += scaling x B A."""

    A_RI: torch.Tensor
    B_OR: torch.Tensor
    scaling: float


@dataclass(frozen=True)
class AdapterParts:
    """A whole adapter, whatever file it came from.

    `experts` goes by (name of the experts module, name of its parameter), `linears` by the module's name.
    """

    experts: dict[tuple[str, str], ExpertPart]
    linears: dict[str, LinearPart]


class ExpertsModule(NamedTuple):
    """What a layout must know of one experts module of the base."""

    index: int  # of its layer
    n_experts: int
    sizes: dict[str, tuple[int, int]]  # parameter -> (inputs, outputs), in the order they are declared in
    is_transposed: bool
    is_concatenated: bool


def experts_modules(model: nn.Module) -> dict[str, ExpertsModule]:
    """The experts modules of `model` by name; its weights may be on the meta device."""
    names = {id(module): name for name, module in model.named_modules()}
    found = {}
    for layer in moe_layers(model):
        experts: Any = layer.experts
        sizes = {
            name: (value.shape[1], value.shape[2])
            if experts.is_transposed
            else (value.shape[2], value.shape[1])
            for name, value in experts.named_parameters(recurse=False)
            if value.ndim == 3
        }
        found[names[id(experts)]] = ExpertsModule(
            layer.index, layer.n_experts, sizes, experts.is_transposed, experts.is_concatenated
        )
    return found


def pair_names(module: str) -> tuple[str, str]:
    """What A and B of a module are called in a PEFT file, the file's prefix left out."""
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def evened(parts: AdapterParts) -> tuple[int, float, AdapterParts]:
    """The same updates with one rank and one scaling everywhere; returns (rank, scaling, parts).

    The rank is the largest one: what has less gets rows and columns of zeros, which add exactly nothing. If
    scalings differ, each is multiplied into its B and the scaling is 1: exact for powers of two, else
    rounded once to B's float32. PEFT's rank_pattern would avoid both, but PEFT warns that a pattern for a
    parameter was ignored (it is not), and vLLM and SGLang know no patterns.
    """
    every = [*parts.experts.values(), *parts.linears.values()]
    rank = max(part[-3].shape[-2] for part in every)
    scalings = {part.scaling for part in every}
    scaling = scalings.pop() if len(scalings) == 1 else 1.0

    def padded(A: torch.Tensor, B: torch.Tensor, own: float) -> tuple[torch.Tensor, torch.Tensor, float]:
        missing = rank - A.shape[-2]
        B = B if own == scaling else B * own
        return F.pad(A, (0, 0, 0, missing)), F.pad(B, (0, missing)), scaling

    return (
        rank,
        scaling,
        AdapterParts(
            {key: ExpertPart(part.chosen, *padded(*part[1:])) for key, part in parts.experts.items()},
            {name: LinearPart(*padded(*part)) for name, part in parts.linears.items()},
        ),
    )


def to_peft(part: ExpertPart, n_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """PEFT's (A, B) of one fused parameter, zeros for the experts that are not chosen."""
    _, rank, n_in = part.A_NRI.shape
    A_ERI = part.A_NRI.new_zeros(n_experts, rank, n_in)
    B_EOR = part.B_NOR.new_zeros(n_experts, part.B_NOR.shape[1], rank)
    A_ERI[part.chosen], B_EOR[part.chosen] = part.A_NRI, part.B_NOR
    return A_ERI.flatten(0, 1), B_EOR.permute(1, 2, 0).flatten(1).contiguous()


def from_peft(A: torch.Tensor, B: torch.Tensor, n_experts: int, scaling: float) -> ExpertPart:
    """All experts' part of PEFT's (A, B) of one fused parameter.

    Raises:
        UserError: the rows of A or the columns of B are no multiple of the number of experts.
    """
    if len(A) < n_experts or len(A) % n_experts or A.shape[0] != B.shape[1]:
        raise UserError(
            f"A {tuple(A.shape)} and B {tuple(B.shape)} do not hold one rank for each of {n_experts} experts"
        )
    A_ERI = A.view(n_experts, -1, A.shape[1])
    B_EOR = B.view(len(B), -1, n_experts).permute(2, 0, 1).contiguous()
    return ExpertPart(list(range(n_experts)), A_ERI, B_EOR, scaling)


def from_old_peft(A: torch.Tensor, B: torch.Tensor, n_experts: int, scaling: float) -> ExpertPart:
    """As `from_peft`, of a file of peft <= 0.19.0: its update of one expert is the transpose of B A."""
    swapped = from_peft(A, B, n_experts, scaling)
    return ExpertPart(
        swapped.chosen, swapped.B_NOR.mT.contiguous(), swapped.A_NRI.mT.contiguous(), swapped.scaling
    )


def to_per_expert(
    part: ExpertPart, names: Sequence[str], is_concatenated: bool, n_experts: int | None
) -> dict[str, torch.Tensor]:
    """One 2-D pair for each expert and each of `names`, which hold "*" for the expert ("…experts.*.up_proj").

    Several names (gate and up) share the rows of B between them, and each gets the whole A. With `n_experts`
    the experts that are not chosen are there as zeros, else they are missing.
    """
    tensors: dict[str, torch.Tensor] = {}
    blank = (torch.zeros_like(part.A_NRI[0]), torch.zeros_like(part.B_NOR[0]))
    of_expert = dict(zip(part.chosen, zip(part.A_NRI, part.B_NOR, strict=True), strict=True))
    for expert in part.chosen if n_experts is None else range(n_experts):
        A_RI, B_OR = of_expert.get(expert, blank)
        shares = (
            B_OR.chunk(len(names)) if is_concatenated else [B_OR[i :: len(names)] for i in range(len(names))]
        )
        for name, share_OR in zip(names, shares, strict=True):
            name_A, name_B = pair_names(name.replace("*", str(expert)))
            # clone: safetensors refuses two names on one memory.
            tensors[name_A] = A_RI.clone()
            tensors[name_B] = share_OR.clone(memory_format=torch.contiguous_format)
    return tensors


def from_per_expert(
    tensors: Mapping[str, torch.Tensor],
    names: Sequence[str],
    is_concatenated: bool,
    scaling_of: Callable[[str, int], float],
) -> ExpertPart | None:
    """The part that `to_per_expert` wrote under `names`; None when there is none of them.

    Gate and up of other programs have an A each: then the ranks are stacked, and B is block-diagonal.
    `scaling_of` gives the scaling of a module's name and rank.

    Raises:
        UserError: a tensor of an expert is missing, or the experts have several ranks or scalings.
    """
    pattern = re.compile("|".join(re.escape(name).replace(r"\*", r"(\d+)") for name in names))
    chosen = sorted({int(next(filter(None, hit.groups()))) for hit in map(pattern.match, tensors) if hit})
    if not chosen:
        return None
    pairs = {expert: [_pair(tensors, name.replace("*", str(expert))) for name in names] for expert in chosen}
    ranks: dict[int, list[int]] = {}
    for expert, of_expert in pairs.items():
        for rank in {len(A_RI) for A_RI, _ in of_expert}:
            ranks.setdefault(rank, []).append(expert)
    if len(ranks) > 1:
        listed = "; ".join(f"rank {rank}: expert {_shortened(experts)}" for rank, experts in ranks.items())
        raise UserError(
            f"{names[0]}: its experts have several ranks ({listed}), which vLLM and SGLang refuse too: "
            "pad each A and B with zeros to the largest rank"
        )
    (rank,) = ranks
    scalings = {scaling_of(name.replace("*", str(expert)), rank) for expert in chosen for name in names}
    if len(scalings) > 1:
        raise UserError(
            f"{names[0]}: its experts have several scalings {sorted(scalings)}: give them one alpha, by "
            "multiplying each B with its own"
        )
    fused = _same_rank([_fused(of_expert, is_concatenated) for of_expert in pairs.values()])
    A_NRI, B_NOR = (torch.stack(side) for side in zip(*fused, strict=True))
    return ExpertPart(chosen, A_NRI, B_NOR, scalings.pop())


def delta(part: ExpertPart, number: int) -> torch.Tensor:
    """What the part adds to the weight [O, I] of its `number`-th chosen expert, in float64."""
    return part.scaling * (part.B_NOR[number].double() @ part.A_NRI[number].double())


def linear_delta(part: LinearPart) -> torch.Tensor:
    """What the part adds to its weight [O, I], in float64."""
    return part.scaling * (part.B_OR.double() @ part.A_RI.double())


def largest_difference(ours: AdapterParts, theirs: AdapterParts) -> float:
    """Largest |ours - theirs| of any update, as a share of the largest |update| of that expert or layer.

    An expert that only one of the two has counts as zero in the other, and so does a whole part.
    """
    worst = 0.0
    for key in ours.experts.keys() | theirs.experts.keys():
        deltas = [_nonzero_deltas(parts.experts.get(key)) for parts in (ours, theirs)]
        for expert in deltas[0].keys() | deltas[1].keys():
            worst = max(worst, _difference(*(of_expert.get(expert) for of_expert in deltas)))
    for name in ours.linears.keys() | theirs.linears.keys():
        found = [parts.linears.get(name) for parts in (ours, theirs)]
        worst = max(worst, _difference(*(partial(linear_delta, part) if part else None for part in found)))
    return worst


def _nonzero_deltas(part: ExpertPart | None) -> dict[int, Callable[[], torch.Tensor]]:
    """Expert -> its update, built when it is compared; where A or B is zero there is nothing to build."""
    if part is None:
        return {}
    return {
        expert: partial(delta, part, number)
        for number, expert in enumerate(part.chosen)
        if part.A_NRI[number].any() and part.B_NOR[number].any()
    }


def _difference(mine: Callable[[], torch.Tensor] | None, other: Callable[[], torch.Tensor] | None) -> float:
    first, second = (build() if build else torch.zeros(1) for build in (mine, other))
    largest = float(torch.maximum(first.abs().max(), second.abs().max()))
    difference = float((first - second).abs().max())
    share = difference / largest if largest else difference
    # NaN is below and above nothing: as a difference it must be the largest there is.
    return share if math.isfinite(share) else math.inf


def _pair(tensors: Mapping[str, torch.Tensor], module: str) -> tuple[torch.Tensor, torch.Tensor]:
    if missing := [name for name in pair_names(module) if name not in tensors]:
        raise UserError(f"{missing[0]} is missing: an expert needs A and B of each projection")
    A_RI, B_OR = (tensors[name] for name in pair_names(module))
    return A_RI, B_OR


def _fused(
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], is_concatenated: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(A, B) of a fused projection from those of its parts (gate, up)."""
    if len(pairs) == 1:
        return pairs[0]
    if all(torch.equal(A_RI, pairs[0][0]) for A_RI, _ in pairs):
        A_RI, shares = pairs[0][0], [B_OR for _, B_OR in pairs]
        return A_RI, torch.cat(shares) if is_concatenated else torch.stack(shares, dim=1).flatten(0, 1)
    A_RI = torch.cat([A_RI for A_RI, _ in pairs])
    ranks = [len(A_RI) for A_RI, _ in pairs]
    shares = [
        F.pad(B_OR, (sum(ranks[:number]), sum(ranks[number + 1 :]))) for number, (_, B_OR) in enumerate(pairs)
    ]
    return A_RI, torch.cat(shares) if is_concatenated else torch.stack(shares, dim=1).flatten(0, 1)


def _same_rank(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs padded to one rank: an expert whose gate and up share an A has half the others' rank."""
    rank = max(len(A_RI) for A_RI, _ in pairs)
    return [
        (F.pad(A_RI, (0, 0, 0, rank - len(A_RI))), F.pad(B_OR, (0, rank - len(A_RI)))) for A_RI, B_OR in pairs
    ]


def _shortened(experts: Sequence[int], at_most: int = 4) -> str:
    shown = ", ".join(map(str, experts[:at_most]))
    return shown if len(experts) <= at_most else f"{shown} and {len(experts) - at_most} more"
