"""How the rows of a step lie in its forward passes: each in a line of its own, or several in a pack.

A pack is rows one after another, with positions that begin anew with each. transformers builds attention
that stays inside a row from such positions, where the family has its masks made so and keeps no other state
along the tokens; `refuse_unpackable` finds out by running it. Reads and writes nothing.
"""

import heapq
from collections.abc import Sequence
from typing import Any

import torch

from data_recipes.artefact import UserError
from finetune.batches import IGNORED_LABEL, Batch, Example, collate, contiguous_part

Pack = list[Example]
N_FIRST_TOKENS = 16  # of a row, where what a neighbour leaves behind shows most
# Mean norm of the difference over the norm. Measured on every family in tests/tiny_families.py: at most 1e-6
# in float32 and 2.4e-3 in bfloat16 where rows are kept apart, at least 0.09 where they are not; the limit of
# bfloat16 leaves room for the noise of many more layers.
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def parts_of_step(
    examples: Sequence[Example], n_parts: int, pack_length_tokens: int | None = None
) -> list[list[Pack]]:
    """The rows of a step cut into forward passes, each a list of packs: of one row each without a length.

    Packs are filled evenly, so that they are of like length and every pass has as many: no padding to speak
    of, and no process that waits. Each row is in one pack of one pass.

    Raises:
        UserError: fewer rows than parts, or a row longer than a pack.
    """
    if len(examples) < n_parts:
        raise UserError(
            f"a step of {len(examples)} rows cannot be cut into {n_parts} forward passes (processes x "
            f"train.accumulate): set train.batch_size={n_parts} or a multiple of it"
        )
    if pack_length_tokens is None:
        alone = [[example] for example in examples]
        return [list(contiguous_part(alone, part, n_parts)) for part in range(n_parts)]
    lengths = [len(example.tokens) for example in examples]
    if max(lengths) > pack_length_tokens:
        row_id = examples[lengths.index(max(lengths))].row_id
        raise UserError(
            f"row {row_id} has {max(lengths)} tokens and a pack {pack_length_tokens}: set "
            f"train.pack_length_tokens={max(lengths)} or more"
        )
    packs = even_packs(lengths, n_parts, pack_length_tokens)
    # Dealt out from the fullest on: sums differ by less than a pack, and no part is without one.
    return [
        [[examples[number] for number in pack] for pack in packs[part::n_parts] if pack]
        for part in range(n_parts)
    ]


def even_packs(lengths: Sequence[int], n_parts: int, limit: int) -> list[list[int]]:
    """Items in packs of at most `limit`: the longest first, each into the emptiest pack.

    There are as few packs, in number a multiple of `n_parts`, as hold them all so. Returns the numbers of the
    items, fullest pack first; only where there are fewer items than packs some are empty.
    """
    assert max(lengths) <= limit, "an item is longer than a pack may be"
    longest_first = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    fewest = -(-sum(lengths) // (limit * n_parts)) * n_parts
    for n_packs in range(fewest, len(lengths) + n_parts, n_parts):
        emptiest: list[tuple[int, int, list[int]]] = [(0, place, []) for place in range(n_packs)]
        for number in longest_first:
            filled, place, pack = emptiest[0]
            if filled + lengths[number] > limit:
                break
            heapq.heapreplace(emptiest, (filled + lengths[number], place, [*pack, number]))
        else:
            return [pack for _, _, pack in sorted(emptiest, key=lambda found: (-found[0], found[1]))]
    raise AssertionError("as many packs as items hold them all")


def collate_packs(packs: Sequence[Pack], pad_token_id: int) -> Batch:
    """Packs as a batch padded on the right; of packs of one row each it is that of the rows."""
    if all(len(pack) == 1 for pack in packs):
        return collate([example for pack in packs for example in pack], pad_token_id)
    width = max(sum(len(example.tokens) for example in pack) for pack in packs)
    lines: dict[str, list[list[int]]] = {"tokens": [], "labels": [], "position_ids": []}
    for pack in packs:
        n_padding = width - sum(len(example.tokens) for example in pack)
        # Padding is a row of its own: it sees itself, nobody sees it, and its loss does not count.
        padding = Example("", [pad_token_id] * n_padding, [IGNORED_LABEL] * n_padding)
        rows = [*pack, padding]
        lines["tokens"].append([token for row in rows for token in row.tokens])
        # A first token would be predicted from the row before.
        lines["labels"].append(
            [label for row in rows for label in ([IGNORED_LABEL] + row.labels[1:])[: len(row.labels)]]
        )
        lines["position_ids"].append([place for row in rows for place in range(len(row.tokens))])
    return Batch(
        row_ids=[example.row_id for pack in packs for example in pack],
        tokens=torch.tensor(lines["tokens"]),
        attention_mask=None,
        labels=torch.tensor(lines["labels"]),
        position_ids=torch.tensor(lines["position_ids"]),
    )


def n_positions(parts: Sequence[Sequence[Pack]]) -> int:
    """Tokens and padding that forward passes read."""
    widths = [[sum(len(example.tokens) for example in pack) for pack in packs] for packs in parts]
    return sum(len(found) * max(found) for found in widths)


def two_to_pack(examples: Sequence[Example], pack_length_tokens: int) -> tuple[Example, Example] | None:
    """The two longest of `examples` that fill a pack together; None when no two fit into one."""
    by_length = sorted(examples, key=lambda example: len(example.tokens))
    halves = [example for example in by_length if len(example.tokens) <= pack_length_tokens // 2]
    pair = halves[-2:] if len(halves) > 1 else by_length[:2]
    fits = len(pair) == 2 and sum(len(example.tokens) for example in pair) <= pack_length_tokens
    return (pair[0], pair[1]) if fits else None


def refuse_unpackable(model: Any, examples: Sequence[Example], pack_length_tokens: int) -> None:
    """Run two of `examples` in a pack and one of them alone, and compare what the last layer says of it.

    Every process of a run does so with the same examples.

    Raises:
        UserError: the family lets packed rows see each other.
    """
    pair = two_to_pack(examples, pack_length_tokens)
    if pair is None:
        return
    error = packing_error(model, *pair)
    limit = LIMITS.get(model.dtype, max(LIMITS.values()))
    if not error <= limit:
        raise UserError(
            f"{model.config.model_type} cannot be packed with transformers' "
            f"{model.config._attn_implementation} attention: beside another row, row {pair[1].row_id} comes "
            f"out {error:.2g} away from what it is alone (limit {limit:g} of the norm); leave "
            "train.pack_length_tokens out (train.group_by_length=true saves padding too)"
        )


@torch.no_grad()
def packing_error(model: Any, neighbour: Example, example: Example) -> float:
    """How far `example` in a pack is from `example` alone: mean over its tokens, as a part of the norm.

    The larger one of all tokens and of the first few, behind a neighbour and before one: packs of one batch
    are cut in different places.
    """
    if len(neighbour.tokens) == len(example.tokens) > 1:
        neighbour = neighbour._replace(tokens=neighbour.tokens[1:], labels=neighbour.labels[1:])
    n_before, n_own = len(neighbour.tokens), len(example.tokens)
    device = next(model.parameters()).device
    packed = collate_packs([[neighbour, example], [example, neighbour]], 0)
    was_training = model.training
    model.eval()
    packed_BTD = _last_hidden_state(model, packed.inputs(device)).float()
    alone_TD = _last_hidden_state(model, collate([example], 0).inputs(device))[0].float()
    model.train(was_training)
    errors = []
    for found_TD in (packed_BTD[0, n_before:], packed_BTD[1, :n_own]):
        error_T = (found_TD - alone_TD).norm(dim=-1) / alone_TD.norm(dim=-1)
        errors += [error_T.mean(), error_T[:N_FIRST_TOKENS].mean()]
    return float(torch.stack(errors).max())


def _last_hidden_state(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What goes into the output layer; the logits of all positions would be far larger and are not made."""
    found = []
    handle = model.base_model.register_forward_hook(lambda _module, _args, output: found.append(output[0]))
    has_head = model.get_output_embeddings() is not None
    try:
        # Called as a whole: a sharded model has to be entered at its top.
        model(**inputs, use_cache=False, **({"logits_to_keep": 1} if has_head else {}))
    finally:
        handle.remove()
    return found[0]
