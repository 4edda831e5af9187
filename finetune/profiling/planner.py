"""What a profile by offload needs, calculated from a config before any weight is there.

Reads a transformers config; writes nothing but what `python -m finetune.profiling.planner` prints: the text of
`finetune/profiling/offload.md`.

Legend: E experts, K experts per token, T tokens of a row.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GlmMoeDsaConfig, PreTrainedConfig

from finetune.moe import moe_layers

# Peak over the largest layer, hidden states aside: room for an expert being read, a batch, the embedding.
MEMORY_FACTOR = 1.3
# Bytes a second from disk and operations a second: a plain disk, a fast one, and that with one accelerator.
_RATES = ((1e9, 1e12), (5e9, 1e12), (5e9, 1e14))
_TEXT = """# Profiling GLM-5.2 by offload, on paper

Written by `python -m finetune.profiling.planner > finetune/profiling/offload.md` from the sizes in the model's config (class
`glm_moe_dsa`). Nothing here was measured on GLM-5.2; the rates are assumptions, named in the table's head.

It has {parameters:.1f} B parameters without the layer of multi-token prediction, which is not read; a token
passes {active:.1f} B of them, embedding and head left out. In bf16 one pass reads {disk:,.0f} GB, once; the
largest layer takes {layer:.1f} GB. A token that waits between two layers takes {state:,} bytes: its hidden
states, and the tokens that the indexer chose for it (in rows of {length_tokens}). Memory is {factor} x the
largest layer + hidden states; with `profile.hidden_states=disk` the latter lie there.

| tokens | hidden states, GB | memory, GB | operations | {rates} |
{line}|
{rows}

Operations are the products with weights, 2 a parameter and token; attention scores are left out. Reading and
computing come one after the other: to read ahead would need the memory of a second layer. 131,072 tokens are
what ESFT (arXiv 2407.01906) found enough for stable sets; the last row is that for 22 languages in one pass.
"""
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class OffloadNeeds:
    """What one pass over a model needs; all sizes in bytes."""

    n_parameters: int
    n_active_parameters: int  # that one token passes, the language-model head left out
    disk_bytes: int  # read once
    largest_layer_bytes: int
    state_bytes_per_token: int  # hidden states, and what else a layer hands to the next

    def memory_bytes(self, n_tokens: int) -> float:
        """Largest allowed peak when `n_tokens` wait in memory between two layers."""
        return MEMORY_FACTOR * self.largest_layer_bytes + n_tokens * self.state_bytes_per_token

    def operations(self, n_tokens: int) -> float:
        """Floating-point operations of the matrix products with weights; attention scores are not in it."""
        return 2.0 * self.n_active_parameters * n_tokens

    def seconds(self, n_tokens: int, disk_rate: float, operation_rate: float) -> float:
        """Time at so many bytes and operations a second, one after the other: a layer is read, then used."""
        return self.disk_bytes / disk_rate + self.operations(n_tokens) / operation_rate


def offload_needs(config: PreTrainedConfig, dtype: torch.dtype, length_tokens: int) -> OffloadNeeds:
    """The needs of a model of this config with weights of `dtype`, in memory as on disk.

    `length_tokens` is the length of a padded row: GLM's indexer hands its choice of at most `index_topk` of
    them to the next layer, four bytes each.
    """
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    layers = moe_layers(model)
    routed = {id(weight) for layer in layers for weight in layer.experts.parameters()}
    n_routed = sum(weight.numel() for layer in layers for weight in layer.experts.parameters())
    n_used = sum(
        weight.numel() * layer.top_k / layer.n_experts
        for layer in layers
        for weight in layer.experts.parameters()
    )
    n_parameters = sum(weight.numel() for weight in model.parameters())
    unused = (model.get_input_embeddings(), model.get_output_embeddings())
    n_unused = sum(module.weight.numel() for module in unused if module is not None)
    assert len(routed) > 0
    stack = model.get_submodule(layers[0].name.split(f".{layers[0].index}")[0])
    largest = max(sum(tensor.nbytes for tensor in layer.state_dict().values()) for layer in stack)
    n_indices = min(length_tokens, getattr(config, "index_topk", 0))
    return OffloadNeeds(
        n_parameters,
        round(n_parameters - n_routed - n_unused + n_used),
        sum(tensor.nbytes for tensor in model.state_dict().values()),
        largest,
        config.hidden_size * dtype.itemsize + 4 * n_indices,
    )


def glm_5_2() -> PreTrainedConfig:
    """GLM-5.2's config, by its published config.json; what it shares with GLM-5 is the class's default."""
    published = {"max_position_embeddings": 1048576, "index_topk_freq": 4, "index_skip_topk_offset": 3}
    return GlmMoeDsaConfig(**published)  # type: ignore[arg-type]


def free_memory_bytes(device: torch.device) -> int:
    """Memory that is free on a device; on the CPU what the kernel and the process's container leave."""
    if device.type != "cpu":
        return torch.accelerator.get_memory_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return torch.iinfo(torch.int64).max
    lines = dict(line.split(":") for line in meminfo.read_text(encoding="ascii").splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.exists() and (text := limit.read_text(encoding="ascii").strip()) != "max":
        free = min(free, int(text) - int(used.read_text(encoding="ascii")))
    return free


def offload_text() -> str:
    """`finetune/profiling/offload.md`: what a pass over GLM-5.2 needs, for some amounts of tokens and some hardware."""
    length_tokens = 512
    needs = offload_needs(glm_5_2(), torch.bfloat16, length_tokens)
    rows = []
    for n_tokens in (2**15, 2**17, 22 * 2**17):
        hours = [needs.seconds(n_tokens, *rates) / 3600 for rates in _RATES]
        cells = [
            f"{n_tokens:,}",
            f"{n_tokens * needs.state_bytes_per_token / 1e9:.1f}",
            f"{needs.memory_bytes(n_tokens) / 1e9:.1f}",
            f"{needs.operations(n_tokens):.2g}",
            *(f"{hour:.2g}" for hour in hours),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    rates = [f"hours at {disk / 1e9:g} GB/s, {operations / 1e12:g} TFLOP/s" for disk, operations in _RATES]
    return _TEXT.format(
        parameters=needs.n_parameters / 1e9,
        active=needs.n_active_parameters / 1e9,
        disk=needs.disk_bytes / 1e9,
        layer=needs.largest_layer_bytes / 1e9,
        state=needs.state_bytes_per_token,
        length_tokens=length_tokens,
        factor=MEMORY_FACTOR,
        rates=" | ".join(rates),
        line="|---" * (4 + len(rates)),
        rows="\n".join(rows),
    )


if __name__ == "__main__":
    print(offload_text(), end="")
