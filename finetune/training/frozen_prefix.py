"""Keep what the layers below the first adapter gave for each row, so that a later epoch does without them.

Nothing there is trained, so a row's hidden states are those of the epoch before. The model's own forward runs
with these layers replaced by what they gave: masks, positions and all else come from the family's own code.
Writes a file without a name, when kept on disk: it is gone when the process ends, however that ends.
Axes: B rows, T tokens, D whatever a token has.
"""

import hashlib
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from data_recipes.artefact import UserError
from finetune.batches import Batch
from finetune.moe import decoder_layers
from finetune.processes import say
from finetune.replaced_forwards import Reached, forwards_replaced
from finetune.training_options import MemoryConfig

# Of the error over the answer (norms): the same operations on the same numbers, but for what a device adds up
# in no fixed order. A layer that misses something it should get is off by far more.
REPLAY_TOLERANCE = 1e-4
WAY_OUT = "set train.memory.prefix_cache=none"


class KeptRows:
    """Hidden states [T, D] by row, in memory or in a file, until they fill `max_bytes`."""

    def __init__(self, max_bytes: int, on_disk: bool, folder: str | None = None) -> None:
        self.max_bytes, self.n_bytes = max_bytes, 0
        # Row -> the tensor, or where it lies in the file and a tensor without values in its shape.
        self.rows: dict[bytes, Any] = {}
        # Without a name: nothing is left behind, whatever ends the process.
        self.file = tempfile.TemporaryFile(dir=folder, buffering=0) if on_disk else None  # noqa: SIM115
        if self.file is not None:
            weakref.finalize(self, self.file.close)

    def __contains__(self, key: bytes) -> bool:
        return key in self.rows

    def put(self, key: bytes, hidden_TD: torch.Tensor) -> None:
        """Keep a row, unless it is here already or there is no room.

        Raises:
            UserError: the disk is full.
        """
        if key in self.rows or self.n_bytes + hidden_TD.nbytes > self.max_bytes:
            return
        # A slice would keep the whole batch alive.
        hidden_TD = hidden_TD.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        if self.file is None:
            self.rows[key] = hidden_TD
        else:
            self._write(hidden_TD)
            self.rows[key] = (self.n_bytes, hidden_TD.to("meta"))
        self.n_bytes += hidden_TD.nbytes

    def get(self, key: bytes) -> torch.Tensor:
        """The hidden states of a row that is here, on the CPU."""
        if self.file is None:
            return self.rows[key]
        start, like = self.rows[key]
        content = bytearray(os.pread(self.file.fileno(), like.nbytes, start))
        return torch.frombuffer(content, dtype=like.dtype).view(like.shape)

    def _write(self, hidden_TD: torch.Tensor) -> None:
        assert self.file is not None
        content = hidden_TD.view(torch.uint8).numpy().tobytes()
        try:
            while content:  # a raw file may write less than it is given
                content = content[self.file.write(content) :]
        except OSError as error:
            raise UserError(
                f"cannot keep the hidden states of train.memory.prefix_cache ({error}): lower "
                "train.memory.prefix_cache_gb, or set another train.memory.prefix_cache_folder"
            ) from error


class PrefixCache:
    """The layers below the first adapter of one model, and what they gave for the rows seen so far."""

    def __init__(self, model: Any, config: MemoryConfig) -> None:
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.layers, _ = decoder_layers(self.model, WAY_OUT)
        self.depth = n_layers_below_adapter(self.model)
        self.is_checked = False
        self.n_outputs: int | None = None  # of a layer, when it returns a tuple; hidden states come first
        self.kept = KeptRows(
            int(config.prefix_cache_gb * 1e9), config.prefix_cache == "disk", config.prefix_cache_folder
        )

    @contextmanager
    def replayed(self, batch: Batch, device: torch.device) -> Iterator[None]:
        """Inside, a forward of `batch` begins behind the frozen layers.

        Raises:
            UserError: rows are packed; or, at the first batch, the model cannot begin there, or draws random
                numbers below.
        """
        _mask_BT(batch)
        if not self.is_checked:
            self._check(batch, device)
        if self.depth == 0:
            yield
            return
        hidden_BTD = self._hidden_states(batch, device)
        with forwards_replaced(self._instead(hidden_BTD)):
            yield

    def _hidden_states(self, batch: Batch, device: torch.device) -> torch.Tensor:
        """What the frozen layers give for `batch`, zero at padding; computed for the rows not here yet."""
        n_tokens = [int(n) for n in _mask_BT(batch).sum(dim=1)]
        keys = [_key(batch.tokens[row, :n]) for row, n in enumerate(n_tokens)]
        missing = [row for row, key in enumerate(keys) if key not in self.kept]
        found: dict[int, torch.Tensor] = {}
        if missing:
            width = max(n_tokens[row] for row in missing)
            computed = self._run(_rows_of(batch, missing, width), device, self.depth)
            for place, row in enumerate(missing):
                found[row] = computed[place, : n_tokens[row]]
                self.kept.put(keys[row], found[row])
        rows = [found[row] if row in found else self.kept.get(key) for row, key in enumerate(keys)]
        hidden_BTD = rows[0].new_zeros(*batch.tokens.shape, *rows[0].shape[1:], device=device)
        for row, hidden_TD in enumerate(rows):
            hidden_BTD[row, : len(hidden_TD)] = hidden_TD.to(device)
        return hidden_BTD

    @torch.no_grad()
    def _run(self, batch: Batch, device: torch.device, depth: int) -> torch.Tensor:
        """The hidden states behind the first `depth` layers, [B, T, D]."""
        last = self.layers[depth - 1]
        run = last.forward

        def ends(*arguments: Any, **named: Any) -> None:
            raise Reached(run(*arguments, **named))

        try:
            with forwards_replaced({last: ends}):
                self.model.base_model(**batch.inputs(device), use_cache=False)
        except Reached as reached:
            output: Any = reached.output
            if not isinstance(output, tuple):
                return output
            self.n_outputs = len(output)
            return output[0]
        raise self._refused(f"its forward does not come to layer {depth - 1}")

    def _instead(self, hidden_BTD: torch.Tensor, depth: int | None = None) -> dict[nn.Module, Any]:
        """Frozen layer -> a forward that gives `hidden_BTD` and nothing of what it may give beside."""
        output = hidden_BTD if self.n_outputs is None else (hidden_BTD, *[None] * (self.n_outputs - 1))
        return {layer: lambda *_, **__: output for layer in self.layers[: depth or self.depth]}

    def _check(self, batch: Batch, device: torch.device) -> None:
        """Find how deep the model can be entered: below which layer hidden states are all that is needed.

        GLM's layers hand on which tokens the indexer chose, others share keys and values: where a layer needs
        such things of the ones below, the cut is made below those.
        """
        self.is_checked = True
        if self.depth == 0:
            say(
                "train.memory.prefix_cache keeps nothing: the adapter begins in the first layer (with "
                "lora.attention every layer has one)"
            )
            return
        below = self.depth
        self._refuse_random(batch, device)
        with _evaluating(self.model):  # no dropout in the adapter
            self.depth = next((n for n in range(below, 0, -1) if self._gives_the_same(batch, device, n)), 0)
        if self.depth == 0:
            raise self._refused("a layer above needs more of the frozen ones than their hidden states")
        say(self._line(batch, device, below))

    @torch.no_grad()
    def _gives_the_same(self, batch: Batch, device: torch.device, depth: int) -> bool:
        inputs, is_token_BT = {**batch.inputs(device), "use_cache": False}, _mask_BT(batch).bool()
        expected = self.model.base_model(**inputs).last_hidden_state[is_token_BT].float()
        hidden_BTD = self._run(batch, device, depth)
        try:
            with forwards_replaced(self._instead(hidden_BTD, depth)):
                found = self.model.base_model(**inputs).last_hidden_state[is_token_BT].float()
        except Exception:  # whatever a family does with a None where it needs more
            return False
        return bool((found - expected).norm() <= REPLAY_TOLERANCE * expected.norm())

    def _refuse_random(self, batch: Batch, device: torch.device) -> None:
        """Hidden states that are drawn anew in each forward cannot be kept: base dropout, a noisy router."""
        first, second = (self._run(batch, device, self.depth) for _ in range(2))
        if not torch.equal(first, second):
            raise self._refused("its frozen layers give other numbers each time while it trains (dropout?)")

    def _line(self, batch: Batch, device: torch.device, below: int) -> str:
        hidden_BTD = self._run(batch, device, self.depth)
        token_bytes = hidden_BTD[0, 0].nbytes
        why = "" if self.depth == below else f" ({below} are frozen, but those above need more of the others)"
        place = "in memory" if self.kept.file is None else "on disk"
        return (
            f"prefix    the outputs of the first {self.depth} of {len(self.layers)} layers{why} are kept "
            f"{place}: {token_bytes:,} bytes a token, room for {self.kept.max_bytes // token_bytes:,} tokens"
        )

    def _refused(self, reason: str) -> UserError:
        kind = self.model.config.model_type
        return UserError(f"{kind}: the outputs of its frozen layers cannot be kept: {reason}; {WAY_OUT}")


def n_layers_below_adapter(model: Any) -> int:
    """How many decoder layers lie below everything that is trained: autograd makes no graph for them."""
    layers, prefix = decoder_layers(model, WAY_OUT)
    first = len(layers)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            number = name.removeprefix(prefix).partition(".")[0] if name.startswith(prefix) else "0"
            first = min(first, int(number))
    return first


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards each of its modules is in the mode from before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _mask_BT(batch: Batch) -> torch.Tensor:
    """Which positions of `batch` are tokens.

    Raises:
        UserError: its rows are packed.
    """
    if batch.attention_mask is None:
        raise UserError(
            "train.memory.prefix_cache keeps rows that stand alone, and these are packed: train them "
            f"without packs, or {WAY_OUT}"
        )
    return batch.attention_mask


def _rows_of(batch: Batch, rows: Sequence[int], width: int) -> Batch:
    """Some rows of `batch`, as wide as the longest of them."""
    picked = torch.tensor(rows)
    return Batch(
        [batch.row_ids[row] for row in rows],
        *(tensor[picked, :width] for tensor in (batch.tokens, _mask_BT(batch), batch.labels)),
    )


def _key(tokens_T: torch.Tensor) -> bytes:
    return hashlib.sha256(tokens_T.numpy().tobytes()).digest()
