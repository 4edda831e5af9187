"""Rows in one pack are to each other as if they were alone, and a family where they are not is refused."""

from typing import Any

import pytest
import torch
from test_train import LORA, PLAN, chat_rows, train_config
from tiny_families import FAMILIES, VOCABULARY, build_tiny_family, random_rows

from data_recipes.artefact import UserError
from finetune.adapters.adapter import adapter_parameters, adapter_state, attach
from finetune.batches import IGNORED_LABEL, Example, collate, encode_rows, n_trained_tokens
from finetune.batching.packing import (
    LIMITS,
    collate_packs,
    even_packs,
    packing_error,
    parts_of_step,
    refuse_unpackable,
    two_to_pack,
)
from finetune.config import BaseConfig, LoraConfig
from finetune.layouts.layout import Layout
from finetune.model import load_model
from finetune.moe import moe_layers
from finetune.train import train_rows
from finetune.training.losses import token_losses

CPU = torch.device("cpu")
# What transformers 5.23 lets rows see of each other: no positions in the masks, or state along the tokens.
NOT_PACKED = {
    "afmoe", "bailing_hybrid", "diffusion_gemma", "ernie4_5_vl_moe", "glm4v_moe", "glm5_next", "gpt_oss",
    "granitemoehybrid", "inkling", "inkling2", "jamba", "kimi_linear", "lfm2_moe", "minimax", "nemotron_h",
    "openai_privacy_filter", "qwen3_5_moe", "qwen3_next", "qwen4_exp", "zaya",
}  # fmt: skip


def losses_and_gradients(model: Any, batches: list[Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The losses of all trained tokens of the batches, and the adapter's gradients of their sum."""
    parameters = adapter_parameters(model)
    losses = torch.cat([token_losses(model, batch, CPU) for batch in batches])
    gradients = torch.autograd.grad(losses.sum(), list(parameters.values()))
    return losses.detach(), dict(zip(parameters, gradients, strict=True))


def with_adapter(model: Any) -> Any:
    """`model` with an adapter on two experts of each layer and on attention, B not at its start of zero."""
    experts = {str(layer.index): [0, 3] for layer in moe_layers(model)}
    attach(model, {"experts": experts}, LoraConfig(rank=2, attention=True), seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in adapter_parameters(model).items():
            if name.endswith(".B") or ".lora_B." in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    return model


def tiny_glm() -> Any:
    return load_model(BaseConfig(device="cpu"))[0]


@pytest.mark.parametrize(
    "name", ["tiny-glm", "qwen3_moe", "mixtral", "deepseek_v3", "olmoe", "glm4_moe", "gemma4"]
)
def test_losses_and_gradients_of_packed_rows_are_those_of_the_rows_alone(name: str) -> None:
    model = with_adapter(tiny_glm() if name == "tiny-glm" else build_tiny_family(FAMILIES[name]))
    rows = random_rows((17, 5, 23, 9, 1, 12))
    packs = [[rows[0], rows[1], rows[2]], [rows[3], rows[4], rows[5]]]
    in_order = [collate([row], 0) for pack in packs for row in pack]
    alone, expected = losses_and_gradients(model, in_order)
    packed, found = losses_and_gradients(model, [collate_packs(packs, 0)])
    assert len(packed) == n_trained_tokens(rows) > 30
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    assert any(bool(value.any()) for value in expected.values())
    for key, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5 * scale, msg=f"{name}: {key}")


@pytest.mark.parametrize("name", ["tiny-glm", "qwen3_moe", "mixtral", "deepseek_v3"])
def test_another_neighbour_changes_nothing(name: str) -> None:
    model = with_adapter(tiny_glm() if name == "tiny-glm" else build_tiny_family(FAMILIES[name]))
    before, row, after = random_rows((17, 21, 13))
    poisoned = [
        row._replace(tokens=[VOCABULARY - 1 - token for token in row.tokens]) for row in (before, after)
    ]
    inputs = [
        collate_packs([pack], 0).inputs(CPU)
        for pack in ([before, row, after], [poisoned[0], row, poisoned[1]])
    ]
    with torch.no_grad():
        one, other = (model(**batch, use_cache=False).logits[0] for batch in inputs)
    # Not to the bit: an expert's rows are multiplied together, and other neighbours choose other experts.
    scale = float(one.abs().max())
    torch.testing.assert_close(one[17:38], other[17:38], rtol=0, atol=1e-6 * max(1.0, scale))
    assert not torch.allclose(one[:17], other[:17], atol=1e-2), "the poison itself is seen"


def test_the_sparse_indexer_of_glm_chooses_within_a_row_where_rows_are_longer_than_it_looks(
    tiny_model_factory: Any,
) -> None:
    # 32 heads as in GLM-5: with two, half of the scores are a zero and which of them are taken is chance.
    sparse, dense = (tiny_model_factory(index_topk=k, index_n_heads=32, seed=3) for k in (4, 64))
    rows = random_rows((30, 40, 20), vocabulary=128)
    with torch.no_grad():
        packed = token_losses(sparse, collate_packs([rows], 0), CPU)
        alone, all_seen = (
            torch.cat([token_losses(model, collate([row], 0), CPU) for row in rows])
            for model in (sparse, dense)
        )
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(alone, all_seen, atol=1e-5), "four of forty tokens are not all"


@pytest.mark.parametrize("name", ["gpt_oss", "jamba", "qwen3_next", "lfm2_moe"])
def test_a_family_whose_packed_rows_see_each_other_is_refused_by_name(name: str) -> None:
    model = build_tiny_family(FAMILIES[name])
    match = rf"{FAMILIES[name].model_type} cannot be packed .* leave train.pack_length_tokens out"
    with pytest.raises(UserError, match=match):
        refuse_unpackable(model, random_rows((17, 21, 3)), 64)
    refuse_unpackable(model, random_rows((40, 41)), 64)  # no two rows fit into a pack: nothing can be seen


def test_training_refuses_such_a_family_before_the_first_step(tiny_tokenizer: Any) -> None:
    family = FAMILIES["gpt_oss"]
    model = build_tiny_family(family._replace(overrides={**family.overrides, "vocab_size": 262}))
    attach(model, {"experts": {str(layer.index): [0] for layer in moe_layers(model)}}, LORA, seed=0)
    before = adapter_state(model)
    with pytest.raises(UserError, match="gpt_oss cannot be packed"):
        train_rows(model, tiny_tokenizer, chat_rows(8), train_config(pack_length_tokens=128))
    assert all(torch.equal(value, before[key]) for key, value in adapter_state(model).items())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_check_knows_every_family(name: str, dtype: torch.dtype) -> None:
    if name == "inkling2" and dtype is torch.bfloat16:
        pytest.skip("its tiny model does not run in bfloat16")
    error = packing_error(build_tiny_family(FAMILIES[name]).to(dtype), *random_rows((17, 21)))
    # The limit lies far from both.
    assert error > 0.08 if name in NOT_PACKED else error < LIMITS[dtype] / 5


def test_training_in_packs_is_training_in_lines(tiny_model_factory: Any, tiny_tokenizer: Any) -> None:
    results, states = [], []
    changes: list[dict[str, Any]] = [
        {},
        {"pack_length_tokens": 64},
        {"pack_length_tokens": 96, "accumulate": 2},
    ]
    for change in changes:
        model = tiny_model_factory(vocab_size=262)
        attach(model, PLAN, LORA, seed=0)
        results.append(train_rows(model, tiny_tokenizer, chat_rows(24), train_config(**change)))
        states.append(adapter_state(model))
    lines = results[0]
    for packed, state in zip(results[1:], states[1:], strict=True):
        assert packed.last_loss == pytest.approx(lines.last_loss, abs=1e-5)
        assert (packed.tokens, packed.row_order_sha256) == (lines.tokens, lines.row_order_sha256)
        assert packed.padding_share < lines.padding_share
        for name, value in states[0].items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=1e-5)


def test_a_pack_begins_positions_anew_and_trains_no_first_token() -> None:
    rows = [
        Example("a", [5, 6, 7], [5, 6, 7]),
        Example("b", [8, 9], [IGNORED_LABEL, 9]),
        Example("c", [4], [4]),
    ]
    batch = collate_packs([[rows[0], rows[1]], [rows[2]]], 0)
    ignored = IGNORED_LABEL
    assert batch.row_ids == ["a", "b", "c"]
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9], [4, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[ignored, 6, 7, ignored, 9], [ignored] * 5]
    assert batch.position_ids is not None and batch.attention_mask is None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert int((batch.labels[:, 1:] != ignored).sum()) == n_trained_tokens(rows)


def test_packs_of_one_row_each_are_the_batch_without_packing() -> None:
    rows = random_rows((4, 6))
    packed, lines = collate_packs([[row] for row in rows], 0), collate(rows, 0)
    assert packed.position_ids is None and torch.equal(packed.tokens, lines.tokens)


def test_packs_are_even_few_and_hold_each_item_once() -> None:
    generator = torch.Generator().manual_seed(0)
    for n_items in (1, 2, 7, 32, 100):
        for n_parts in (1, 2, 3):
            lengths = torch.randint(1, 100, (n_items,), generator=generator).tolist()
            packs = even_packs(lengths, n_parts, 128)
            sums = [sum(lengths[number] for number in pack) for pack in packs]
            assert sorted(number for pack in packs for number in pack) == list(range(n_items))
            assert max(sums) <= 128 and len(packs) % n_parts == 0
            assert sums == sorted(sums, reverse=True)
            assert packs == even_packs(lengths, n_parts, 128)
    # By hand: two packs would be filled to 5 and 5 when the last item comes, so there are three.
    assert even_packs([3, 3, 2, 2, 2], 1, 6) == [[0, 4], [2, 3], [1]]
    assert even_packs([50, 50, 50, 50], 1, 100) == [[0, 2], [1, 3]]
    assert even_packs([60, 60, 60], 1, 100) == [[0], [1], [2]]


def test_parts_get_packs_of_like_size() -> None:
    rows = random_rows(tuple(range(1, 33)))
    parts = parts_of_step(rows, 4, 64)
    sums = [sum(len(row.tokens) for pack in packs for row in pack) for packs in parts]
    assert {len(packs) for packs in parts} == {3}
    assert max(sums) - min(sums) <= 6 and sum(sums) == sum(range(1, 33))


def test_fewer_rows_than_forward_passes_are_refused_with_the_way_out() -> None:
    for pack in (None, 64):
        with pytest.raises(UserError, match=r"a step of 3 rows .* into 4 .* set train.batch_size=4"):
            parts_of_step(random_rows((2, 3, 4)), 4, pack)


def test_a_row_longer_than_a_pack_is_named() -> None:
    with pytest.raises(UserError, match=r"row r1 has 9 tokens and a pack 8: set .*pack_length_tokens=9"):
        parts_of_step(random_rows((2, 9, 4)), 1, 8)


def test_the_pair_that_is_tried_fits_and_is_as_long_as_can_be() -> None:
    def tried(lengths: tuple[int, ...], limit: int) -> tuple[int, ...] | None:
        pair = two_to_pack(random_rows(lengths), limit)
        return None if pair is None else tuple(len(row.tokens) for row in pair)

    assert tried((3, 9, 10, 30), 20) == (9, 10)
    assert tried((12, 7), 20) == (7, 12)
    assert tried((12, 11, 13), 20) is None
    assert tried((12,), 40) is None


def test_a_step_smaller_than_its_parts_is_refused() -> None:
    examples = [Example(row_id, [1], [1]) for row_id in "ab"]
    with pytest.raises(UserError, match=r"a step of 2 rows cannot be cut into 4 forward passes"):
        parts_of_step(examples, 4)


def test_fewer_rows_than_parts_train_every_row_as_often(tiny_model_factory: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model_factory(vocab_size=262)
    attach(model, PLAN, LORA, seed=0)
    config = train_config(batch_size=8, accumulate=8, steps=3)
    result = train_rows(model, tiny_tokenizer, chat_rows(3), config)
    tokens = {row.row_id: len(row.tokens) for row in encode_rows(tiny_tokenizer, chat_rows(3), 64)}
    assert result.tokens == 8 * sum(tokens.values()), "three rows, eight times each"
    assert result.rows_by_group == {"general": 8, "target": 16}


def test_processes_compare_their_rows_before_they_pack_any(
    tiny_model_factory: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward may ask other processes: with other rows there it would wait in vain."""
    order: list[str] = []
    monkeypatch.setattr(Layout, "check_rows", lambda *_: order.append("compared"))
    model = tiny_model_factory(vocab_size=262)
    attach(model, PLAN, LORA, seed=0)
    model.register_forward_pre_hook(lambda *_: order.append("forward"))
    train_rows(model, tiny_tokenizer, chat_rows(8), train_config(steps=1, pack_length_tokens=128))
    assert order[:2] == ["compared", "forward"]
