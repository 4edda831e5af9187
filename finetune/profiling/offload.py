"""Run a model that is larger than memory: each layer's weights are read once and applied to every batch.

Reads a checkpoint (safetensors); writes hidden states to a folder when asked to keep them on disk. For each
layer and batch the model's own forward runs, with the earlier layers replaced by what the last of them gave:
so masks, positions and what a family hands from layer to layer come from its own code, and the numbers are
those of the whole model in memory.
"""

import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from data_recipes.artefact import UserError
from finetune.exporting.checkpoint_names import model_type
from finetune.model import fingerprint_of
from finetune.moe import moe_layers
from finetune.processes import say
from finetune.profiling.hidden_states import HiddenStates, kept_hidden_states, map_tensors, tensors_of
from finetune.profiling.layer_weights import LayerWeights, drop_part, load_part, part_bytes, stored_bytes
from finetune.profiling.planner import MEMORY_FACTOR, free_memory_bytes
from finetune.replaced_forwards import Reached, forwards_replaced

Batch = Mapping[str, torch.Tensor]  # arguments of the decoder's forward: input_ids, attention_mask


def run_layer_by_layer(
    weights: LayerWeights,
    batches: Sequence[Batch],
    expect: Callable[[int, int], None],
    folder: Path | None = None,
) -> str:
    """Send all batches through one decoder layer after another; returns the model's fingerprint.

    `expect(position, batch)` is called before the `position`-th MoE layer gets a batch, so that hooks on its
    router know whose tokens they see. The layers behind the last MoE layer are read for the fingerprint only.
    With `folder` hidden states lie there while the pass runs, else in memory.

    Raises:
        UserError: as `load_part`; a model that hands more from layer to layer than can be kept; no space.
    """
    positions = {layer.index: position for position, layer in enumerate(moe_layers(weights.model))}
    n_layers = max(positions) + 1
    free_bytes = free_memory_bytes(weights.device)
    _require_memory(weights, free_bytes, 0)
    started = time.perf_counter()
    with kept_hidden_states(len(batches), folder) as hidden, torch.inference_mode():
        for part in ("outside", "embedding"):
            load_part(weights, part)
        for number in range(n_layers):
            load_part(weights, number)
            read_s = time.perf_counter() - started
            if number > 0:
                _require_carried(
                    weights, number, hidden.get(0, weights.device), _on(weights.device, batches[0])
                )
            for batch, inputs in enumerate(batches):
                if number in positions:
                    expect(positions[number], batch)
                before = hidden.get(batch, weights.device) if number else None
                after = _forward_one_layer(weights, number, before, _on(weights.device, inputs))
                hidden.put(batch, after)
                if number == batch == 0:
                    _check_needs(weights, hidden, batches, free_bytes, read_s)
            drop_part(weights, number)
            if number == 0:
                drop_part(weights, "embedding")
            _say_progress(number + 1, n_layers, time.perf_counter() - started)
    return _fingerprint(weights, n_layers)


def largest_layer_bytes(weights: LayerWeights) -> int:
    """Bytes in memory of the largest decoder layer."""
    return max(part_bytes(weights, number) for number in range(len(weights.layers)))


def _forward_one_layer(weights: LayerWeights, number: int, before: Any, inputs: Batch) -> Any:
    """What layer `number` returns for a batch; `before` is what the layer before it did, None at layer 0."""
    run = weights.layers[number].forward

    def wanted(*arguments: Any, **named: Any) -> None:
        mappings = {name: value for name, value in named.items() if isinstance(value, MutableMapping)}
        contents = {name: dict(value) for name, value in mappings.items()}
        output = run(*arguments, **named)
        for name, value in mappings.items():
            if value.keys() != contents[name].keys() or any(value[k] is not contents[name][k] for k in value):
                raise _refused(weights, f"its layer {number} leaves something for later ones in {name}")
        raise Reached(output)

    blank = _blank_embedding(weights, inputs["input_ids"])
    return _run_to(weights, number, lambda *_, **__: before, wanted, inputs, blank)


def _run_to(
    weights: LayerWeights,
    number: int,
    replay: Callable[..., Any],
    wanted: Callable[..., Any],
    inputs: Batch,
    blank_BTD: torch.Tensor,
) -> Any:
    """The model's own forward with `replay(j, ...)` as layer j < number and `wanted` as layer `number`.

    Behind layer 0 the embedding is gone and gives `blank_BTD`.
    """
    forwards: dict[nn.Module, Callable[..., Any]] = {
        layer: partial(replay, earlier) for earlier, layer in enumerate(weights.layers[:number])
    }
    forwards[weights.layers[number]] = wanted
    if number > 0:
        forwards[weights.model.get_input_embeddings()] = lambda *_, **__: blank_BTD
    try:
        with forwards_replaced(forwards):
            weights.model.base_model(**inputs, use_cache=False)
    except Reached as reached:
        return reached.output
    raise _refused(weights, f"its forward does not come to layer {number}")


def _refused(weights: LayerWeights, reason: str) -> UserError:
    return UserError(
        f"{model_type(weights.model)} cannot be run layer by layer: {reason}; set profile.offload=false, on "
        "a machine that holds the model"
    )


def _blank_embedding(weights: LayerWeights, ids_BT: torch.Tensor) -> torch.Tensor:
    """Zeros in the shape of the embeddings, in no memory: behind layer 0 nobody reads their values."""
    embedding = weights.model.get_input_embeddings()
    blank = torch.zeros((), dtype=embedding.weight.dtype, device=weights.device)
    return blank.expand(*ids_BT.shape, embedding.embedding_dim)


class _Follow(TorchDispatchMode):
    """Follows what is computed from some tensors: `followed` maps the id of each such tensor to it."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.followed = {id(tensor): tensor for tensor in tensors}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = function(*arguments, **(named or {}))
        if any(id(tensor) in self.followed for tensor in tensors_of((arguments, named or {}))):
            self.followed |= {id(tensor): tensor for tensor in tensors_of(result)}
        return result


def _require_carried(weights: LayerWeights, number: int, before: Any, inputs: Batch) -> None:
    """Check that layer `number` gets nothing of earlier layers but what the last of them returned.

    The forward runs up to the layer without running any: each earlier one gives empty tensors of its own, and
    so does the embedding. What is computed from those is followed, and may not be among the arguments.

    Raises:
        UserError: it is.
    """
    outputs = [map_tensors(_empty_like, before) for _ in range(number)]
    kept = {id(tensor) for tensor in tensors_of(outputs[-1])}
    blank = _blank_embedding(weights, inputs["input_ids"])

    def wanted(*arguments: Any, **named: Any) -> None:
        lost = follow.followed.keys() - kept
        shapes = [tuple(tensor.shape) for tensor in tensors_of((arguments, named)) if id(tensor) in lost]
        if shapes:
            raise _refused(
                weights,
                f"its layer {number} gets {len(shapes)} tensor(s), the first of shape {shapes[0]}, made from "
                "earlier layers or from the embedding, which are not kept",
            )
        raise Reached(before)

    with _Follow(tensors_of((outputs, blank))) as follow:
        _run_to(weights, number, lambda earlier, *_, **__: outputs[earlier], wanted, inputs, blank)


def _empty_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


def _on(device: torch.device, inputs: Batch) -> Batch:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _check_needs(
    weights: LayerWeights, hidden: HiddenStates, batches: Sequence[Batch], free_bytes: int, read_s: float
) -> None:
    """After the first batch of layer 0: say what the pass needs, and stop if that is not there."""
    n_tokens = [batch["input_ids"].numel() for batch in batches]
    hidden_bytes = hidden.n_bytes[0] * sum(n_tokens) // n_tokens[0]
    n_read = sum(weights.n_read_bytes.values())
    total = sum(stored_bytes(weights, part) for part in weights.parts)
    layer_gb = largest_layer_bytes(weights) / 1e9
    place = "in memory" if hidden.folder is None else f"in {hidden.folder}"
    minutes = total / n_read * read_s / 60
    say(
        f"offload   {total / 1e9:.3g} GB to read once, about {minutes:.1f} minutes at the rate of the first "
        f"{n_read / 1e9:.3g} GB; {MEMORY_FACTOR} x {layer_gb:.3g} GB of memory for the largest layer; "
        f"hidden states of {hidden_bytes / 1e9:.3g} GB {place}"
    )
    hidden.check_space(hidden_bytes - hidden.n_bytes[0])
    _require_memory(weights, free_bytes, hidden_bytes if hidden.folder is None else 0)


def _require_memory(weights: LayerWeights, free_bytes: int, hidden_bytes: int) -> None:
    """Refuse what the free memory does not hold.

    Raises:
        UserError: the largest layer, or it and the hidden states, are larger.
    """
    needed = MEMORY_FACTOR * largest_layer_bytes(weights) + hidden_bytes
    if needed <= free_bytes:
        return
    dtype = str(weights.model.dtype).removeprefix("torch.")
    way_out = "set profile.hidden_states=disk or lower profile.max_tokens"
    if not hidden_bytes:
        way_out = "take a machine with more" + (", or base.dtype=bfloat16" if dtype == "float32" else "")
    raise UserError(
        f"{MEMORY_FACTOR} x the largest layer in {dtype} and the hidden states ({hidden_bytes / 1e9:.3g} GB) "
        f"need {needed / 1e9:.3g} GB of memory, {free_bytes / 1e9:.3g} GB are free: {way_out}"
    )


def _fingerprint(weights: LayerWeights, n_done: int) -> str:
    """As `finetune.model.model_fingerprint` of the same model in memory; reads the parts not read so far."""
    for part in (*range(n_done, len(weights.layers)), "head"):
        load_part(weights, part)
        drop_part(weights, part)
    samples = dict(weights.samples)
    for name, source in weights.model.all_tied_weights_keys.items():
        if name not in samples:
            samples[name] = samples[source]
    return fingerprint_of(weights.model.config, samples)


def _say_progress(n_done: int, n_layers: int, spent_s: float) -> None:
    left_s = spent_s / n_done * (n_layers - n_done)
    say(f"offload   layer {n_done} of {n_layers}, about {left_s / 60:.1f} minutes left")
