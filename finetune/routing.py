"""Profile the routing: which experts the base chooses for each language, in each MoE layer.

Reads the training rows of `<output>/data` (never validation or test) and the base; writes
`<output>/profile.json`. Run it with `local-experts profile --config configs/runs/quickstart.yaml`.

Legend: B rows, T tokens of a row, N = B x T, M counted tokens among them, S = M x K routed tokens,
L MoE layers, E experts, K experts per token.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_recipes.artefact import UserError, read_artefact, write_artefact
from data_recipes.build import read_split
from finetune.config import ProfileConfig, RunConfig, config_from_arguments
from finetune.model import load_model, model_fingerprint, tokenizer_fingerprint
from finetune.moe import MoeLayer, moe_layers, parameters_per_rank, router_output

Row = Mapping[str, Any]


class EncodedRow(NamedTuple):
    """Token ids of one row and, for each, whether it is counted."""

    ids: list[int]
    is_counted: list[bool]


class RouterRecorder:
    """Adds up what the routers of `layers` choose while it is entered; the model's numbers are not touched.

    `counts_LE` (int64): how often each expert was chosen; rows are layers and sum to n_tokens x top_k.
    `gate_mass_LE` (float64): router weights, normalised for each token to sum to 1 over its K chosen experts;
    rows are layers and sum to n_tokens. Call `expect` before each forward.
    """

    def __init__(self, layers: Sequence[MoeLayer]) -> None:
        self.layers = list(layers)
        self.n_tokens = 0
        shape_LE = (len(self.layers), self.layers[0].n_experts)
        self.counts_LE = torch.zeros(shape_LE, dtype=torch.int64)
        self.gate_mass_LE = torch.zeros(shape_LE, dtype=torch.float64)
        self._is_counted_N: list[torch.Tensor | None] = [None] * len(self.layers)
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "RouterRecorder":
        for position, layer in enumerate(self.layers):
            self._hooks.append(layer.router.register_forward_hook(partial(self._record, position)))
        return self

    def __exit__(self, *exception: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def expect(self, attention_mask_BT: torch.Tensor, token_mask_BT: torch.Tensor | None = None) -> None:
        """Name the tokens that the next forward counts: attended ones that `token_mask_BT` has too."""
        is_counted_BT = attention_mask_BT.bool()
        if token_mask_BT is not None:
            is_counted_BT = is_counted_BT & token_mask_BT.bool()
        self.n_tokens += int(is_counted_BT.sum())
        self._is_counted_N = [is_counted_BT.flatten()] * len(self.layers)

    def _record(self, position: int, _router: nn.Module, _inputs: Any, output: Any) -> None:
        """Forward hook; a mask serves one forward, so no batch is counted by the mask of another."""
        layer, is_counted_N = self.layers[position], self._is_counted_N[position]
        self._is_counted_N[position] = None
        _, weights_NK, indices_NK = router_output(layer, output)
        if is_counted_N is None or len(is_counted_N) != len(indices_NK):
            raise RuntimeError(f"{layer.name}: call expect() with the mask of this batch before each forward")
        is_counted_N = is_counted_N.to(indices_NK.device)
        # Padding is dropped first: a row without any attended token may rightly carry NaN.
        weights_MK = weights_NK[is_counted_N].double()
        share_MK = weights_MK / weights_MK.sum(dim=1, keepdim=True)
        n_broken = int((~share_MK.isfinite()).any(dim=1).sum())
        if n_broken:
            raise UserError(
                f"{layer.name}: the router's weights are not finite for {n_broken} of {len(share_MK)} "
                "tokens: the base's own numbers are broken; try base.dtype=float32 or another checkpoint"
            )
        expert_S = indices_NK[is_counted_N].flatten()
        self.counts_LE[position] += torch.bincount(expert_S, minlength=layer.n_experts).cpu()
        mass_E = torch.bincount(expert_S, weights=share_MK.flatten(), minlength=layer.n_experts)
        self.gate_mass_LE[position] += mass_E.cpu()


def profile_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows_by_group: Mapping[str, Sequence[Row]],
    config: ProfileConfig,
    seed: int = 0,
) -> dict[str, Any]:
    """Routing of each group's rows (`messages` and `group` of the dataset), as the body of profile.json.

    A group's rows are taken in an order drawn from `seed` until `config.max_tokens` tokens are read. Puts the
    model into eval mode.

    Raises:
        UserError: a model without experts, a group without rows or counted tokens, broken router weights.
    """
    layers = moe_layers(model)
    widths = {(layer.n_experts, layer.top_k) for layer in layers}
    if len(widths) > 1:
        raise UserError(
            f"layers differ in (experts, experts per token): {sorted(widths)}; one pair is supported"
        )
    if not rows_by_group:
        raise UserError("there are no rows to profile: the training split is empty")
    model.eval()
    groups = {}
    for name, rows in sorted(rows_by_group.items()):
        groups[name] = _profile_group(model, tokenizer, name, rows, config, seed)
    return {
        "layers": [layer.index for layer in layers],
        "n_experts": layers[0].n_experts,
        "top_k": layers[0].top_k,
        "router": type(layers[0].router).__name__,
        "parameters_per_rank": [parameters_per_rank(layer) for layer in layers],
        "kinds": config.kinds,
        "max_tokens": config.max_tokens,
        "seed": seed,
        "groups": groups,
    }


def profile_stage(config: RunConfig) -> Path:
    """Profile the base of a run on its training rows, grouped by language, and write profile.json.

    Raises:
        UserError: no dataset, no base, a base without experts.
    """
    output = Path(config.output)
    manifest = read_artefact(output / "data" / "manifest.json", "dataset_manifest")
    rows = read_split(output / "data", "train").select_columns(["messages", "language", "group"])
    rows_by_group = _rows_by_language(rows.to_list())
    model, tokenizer = load_model(config.base)
    fingerprints = {
        "model_fingerprint": model_fingerprint(model),
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
    }
    inputs = {
        "dataset": manifest["content_hash"],
        "model": fingerprints["model_fingerprint"],
        "tokenizer": fingerprints["tokenizer_fingerprint"],
    }
    body = profile_rows(model, tokenizer, rows_by_group, config.profile, config.seed)
    path = output / "profile.json"
    write_artefact(path, "routing_profile", inputs, fingerprints | body)
    tokens = ", ".join(f"{name} {group['n_tokens']:,}" for name, group in body["groups"].items())
    print(f"profile   tokens: {tokens}; {len(body['layers'])} layers x {body['n_experts']} experts -> {path}")
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """`local-experts profile --config FILE [key=value ...]`."""
    profile_stage(
        config_from_arguments(argv, "profile", "count which experts the base uses for each language")
    )


def _profile_group(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    rows: Sequence[Row],
    config: ProfileConfig,
    seed: int,
) -> dict[str, Any]:
    """One group's part of the profile."""
    roles = sorted({row["group"] for row in rows})
    if len(roles) != 1:
        raise UserError(f"group {name!r} has rows of role {roles}: it needs rows, all target or all general")
    # The dataset is ordered by task: its head alone would show the routing of one task only.
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    encoded = _within_budget((encode_row(tokenizer, rows[i], config.kinds) for i in order), config.max_tokens)
    encoded.sort(key=lambda row: len(row.ids))  # rows of like length together: little padding
    with RouterRecorder(moe_layers(model)) as recorder, torch.inference_mode():
        for start in range(0, len(encoded), config.batch_size):
            ids_BT, attention_BT, is_counted_BT = _pad(
                encoded[start : start + config.batch_size], model.device
            )
            recorder.expect(attention_BT, is_counted_BT)
            # The decoder without its language-model head: the vocabulary's logits are not needed.
            model.base_model(input_ids=ids_BT, attention_mask=attention_BT, use_cache=False)
    if recorder.n_tokens == 0:
        raise UserError(f"group {name!r} has no token of kind {config.kinds!r}: set profile.kinds=all")
    n_chosen_L = recorder.counts_LE.sum(dim=1)
    assert (n_chosen_L == recorder.n_tokens * recorder.layers[0].top_k).all(), "each token chooses K experts"
    return {
        "role": roles[0],
        "n_rows": len(encoded),
        "n_tokens": recorder.n_tokens,
        "counts": recorder.counts_LE.tolist(),
        "gate_mass": recorder.gate_mass_LE.tolist(),
    }


def encode_row(tokenizer: PreTrainedTokenizerBase, row: Row, kinds: str) -> EncodedRow:
    """Prompt and answer in the tokenizer's chat template; `kinds` (prompt, answer or all) is what is counted.

    Raises:
        UserError: prompt and answer must be told apart, but the template marks no answer.
    """
    ask_for_mask = kinds != "all"
    encoded = tokenizer.apply_chat_template(
        row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=ask_for_mask
    )
    ids: list[int] = encoded["input_ids"]  # type: ignore[index]
    if not ask_for_mask:
        return EncodedRow(ids, [True] * len(ids))
    is_answer: list[int] = encoded["assistant_masks"]  # type: ignore[index]
    if not any(is_answer):
        raise UserError(
            f"profile.kinds={kinds}: the tokenizer's chat template marks no answer with {{% generation %}}; "
            "use profile.kinds=all or a template with the marks"
        )
    return EncodedRow(ids, [bool(answer) == (kinds == "answer") for answer in is_answer])


def _within_budget(rows: Iterable[EncodedRow], max_tokens: int) -> list[EncodedRow]:
    """Whole rows from the front, as many as fit into `max_tokens`; at least one."""
    taken: list[EncodedRow] = []
    n_tokens = 0
    for row in rows:
        n_tokens += len(row.ids)
        if taken and n_tokens > max_tokens:
            break
        taken.append(row)
    return taken


def _pad(rows: Sequence[EncodedRow], device: torch.device) -> Iterator[torch.Tensor]:
    """Ids, attention mask and counted mask, each [B, T]; padded on the right: positions start at 0."""
    n_tokens = max(len(row.ids) for row in rows)
    lists = (
        [row.ids for row in rows],
        [[1] * len(row.ids) for row in rows],
        [row.is_counted for row in rows],
    )
    for values in lists:
        yield torch.tensor([value + [0] * (n_tokens - len(value)) for value in values], device=device)


def _rows_by_language(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["language"], []).append(row)
    return groups
