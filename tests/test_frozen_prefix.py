"""Hidden states kept of the frozen layers: what is learnt stays the same, and the layers are left out."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from data_recipes.artefact import UserError
from finetune.adapters.adapter import attach
from finetune.batches import IGNORED_LABEL, Batch
from finetune.config import LoraConfig
from finetune.train import train_rows
from finetune.training.frozen_prefix import KeptRows, PrefixCache, n_layers_below_adapter
from finetune.training.memory import prepare_memory
from finetune.training_options import MemoryConfig
from tests.test_memory import CPU, error_of, losses_and_gradients, padded_batch, trained, tuned
from tests.test_train import chat_rows, train_config
from tests.tiny_families import FAMILIES

MEMORY = MemoryConfig(prefix_cache="memory")
# An indexer's choice, a sliding window, linear attention, hyper-connections, plain layers.
SHOWN = ("glm_moe_dsa", "gpt_oss", "qwen3_next", "deepseek_v4", "mixtral", "gemma4")
REFUSED = {
    "phimoe": "other numbers each time",  # its router draws while it trains
    "zaya": "a layer above needs more",
}
TOLERANCE = 3e-6  # padding is zero here, and other tokens stand beside: sums go in another order


def forwards_of(layers: Any) -> list[int]:
    """A list that grows with the number of each layer that computes, from now on."""
    found: list[int] = []
    for number, layer in enumerate(layers):
        # What does not run when the layer is left out: its first child.
        next(layer.children()).register_forward_pre_hook(lambda *_, n=number: found.append(n))
    return found


def mixed_again(batch: Batch) -> Batch:
    """The rows of `batch` in another order and with wider padding."""
    assert batch.attention_mask is not None
    tokens, mask = (F.pad(part.flip(0), (0, 3)) for part in (batch.tokens, batch.attention_mask))
    labels = F.pad(batch.labels.flip(0), (0, 3), value=IGNORED_LABEL)
    return Batch(batch.row_ids[::-1], tokens, mask, labels)


def assert_replays(family: str) -> None:
    model, batch = tuned(family, slice(-1, None)).train(), padded_batch()
    cache = PrefixCache(model, MEMORY)
    for n_before, batch_now in ((0, batch), (3, mixed_again(batch))):
        assert len(cache.kept.rows) == n_before
        losses, gradients = losses_and_gradients(model, batch_now, "whole")
        with cache.replayed(batch_now, CPU):
            found, found_gradients = losses_and_gradients(model, batch_now, "whole")
        assert error_of(found, losses) <= TOLERANCE and error_of(found_gradients, gradients) <= TOLERANCE
    n_forwards = forwards_of(cache.layers)
    with cache.replayed(batch, CPU):
        losses_and_gradients(model, batch, "whole")
    assert n_forwards and min(n_forwards) == cache.depth >= 1, "those below are left out"


@pytest.mark.parametrize("family", SHOWN)
def test_a_second_epoch_without_the_frozen_layers_gives_the_same(family: str) -> None:
    assert_replays(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - set(SHOWN)))
def test_every_family_replays_or_is_refused(family: str) -> None:
    model = tuned(family, slice(-1, None))
    if family in REFUSED:
        with (
            pytest.raises(UserError, match=f"{family}.*{REFUSED[family]}.*prefix_cache=none"),
            PrefixCache(model.train(), MEMORY).replayed(padded_batch(), CPU),
        ):
            pass
    elif model.get_output_embeddings() is not None:
        assert_replays(family)


def test_the_cut_is_made_below_layers_that_share_an_indexers_choice(
    tiny_model_factory: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds, batch = ["full", "full", "shared", "shared", "full"], padded_batch()
    for adapted, depth in ((1, 1), (2, 1), (3, 1), (4, 4)):
        model = tiny_model_factory(num_hidden_layers=5, indexer_types=kinds)
        attach(model, {"experts": {str(adapted): [2]}}, LoraConfig(rank=2), seed=0, announces=False)
        cache = PrefixCache(model.train(), MEMORY)
        with cache.replayed(batch, CPU):
            pass
        assert (n_layers_below_adapter(model), cache.depth) == (adapted, depth)
        assert model.training and all(module.training for module in model.modules())
        why = "" if adapted == depth else f" ({adapted} are frozen, but those above need more of the others)"
        said = f"prefix    the outputs of the first {depth} of 5 layers{why} are kept in memory: 128 bytes a"
        assert said in capsys.readouterr().out


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_run_with_the_cache_learns_the_same(
    place: Any, tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    memory = MemoryConfig(
        prefix_cache=place,
        prefix_cache_folder=str(tmp_path),
        loss_chunk_tokens=16,
        gradient_checkpointing=True,
    )
    found, lora = [], LoraConfig(rank=4, alpha=8.0)
    for option in (MemoryConfig(), memory):
        model = tiny_model_factory(vocab_size=262)
        n_forwards = forwards_of(model.model.layers)
        found.append((*trained(model, tiny_tokenizer, lora, option), n_forwards))
    (plain, plain_losses, all_forwards), (state, losses, forwards) = found
    for name, value in plain.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=2e-6)
    assert losses == pytest.approx(plain_losses, abs=1e-6)
    # 16 rows in batches of 8: two batches compute the two frozen layers, four do not. The first one's check
    # computes the frozen layers twice, all three once, the frozen ones and layer 2 apart, and the frozen ones
    # for the line. Checkpointing computes layer 2 again in each of the six backwards.
    assert all_forwards.count(0) == all_forwards.count(2) == 6
    assert (forwards.count(0), forwards.count(2)) == (2 + 2 + 1 + 1 + 1, 6 + 2 + 6)
    assert list(tmp_path.iterdir()) == [], "the file has no name"


def test_with_an_adapter_in_the_first_layer_nothing_is_kept_and_that_is_said(
    tiny_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = LoraConfig(rank=2, attention=True)
    attach(tiny_model, {"experts": {"2": [2]}}, lora, seed=0, announces=False)
    cache = PrefixCache(tiny_model, MEMORY)
    for _ in range(2):
        with cache.replayed(padded_batch(), CPU):
            losses_and_gradients(tiny_model, padded_batch(), "whole")
    assert cache.kept.rows == {} and capsys.readouterr().out.count("keeps nothing") == 1


def test_rows_beyond_the_limit_are_computed_again() -> None:
    model, batch = tuned("glm_moe_dsa", slice(-1, None)).train(), padded_batch()
    rows_bytes = [4 * 32 * n for n in (12, 9, 6)]
    cache = PrefixCache(model, MemoryConfig(prefix_cache="memory", prefix_cache_gb=sum(rows_bytes[:2]) / 1e9))
    losses, _ = losses_and_gradients(model, batch, "whole")
    for _ in range(2):
        with cache.replayed(batch, CPU):
            found, _ = losses_and_gradients(model, batch, "whole")
        assert error_of(found, losses) <= TOLERANCE
        assert cache.kept.n_bytes == sum(rows_bytes[:2]) and len(cache.kept.rows) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("on_disk", [False, True])
def test_kept_rows_come_back_bit_for_bit(dtype: torch.dtype, on_disk: bool, tmp_path: Path) -> None:
    kept = KeptRows(10**6, on_disk, str(tmp_path))
    batch = torch.randn(3, 7, 4, 5).to(dtype)
    for row in range(3):
        for _ in range(2):  # a row may stand twice in a batch
            kept.put(bytes([row]), batch[row, : 7 - row])
    for row in (2, 0, 1):
        assert torch.equal(kept.get(bytes([row])), batch[row, : 7 - row])
    assert b"\3" not in kept and kept.n_bytes == (7 + 6 + 5) * 20 * dtype.itemsize


def test_a_full_disk_is_told_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = KeptRows(10**6, True, str(tmp_path))

    class Full:
        def write(self, content: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kept, "file", Full())
    with pytest.raises(UserError, match="No space left.*prefix_cache_gb.*prefix_cache_folder"):
        kept.put(b"0", torch.zeros(2, 2))


def test_a_base_cut_over_processes_is_refused(tiny_model: Any) -> None:
    assert prepare_memory(tiny_model, MemoryConfig(), in_step=True) is None
    with pytest.raises(UserError, match="cut over the processes.*prefix_cache=none"):
        prepare_memory(tiny_model, MEMORY, in_step=True)


def test_packed_rows_are_refused(tiny_model: Any) -> None:
    packed: Any = padded_batch()._replace(attention_mask=None)  # type: ignore[arg-type]
    refused = pytest.raises(UserError, match="rows that stand alone, and these are packed.*prefix_cache=none")
    with refused, PrefixCache(tiny_model, MEMORY).replayed(packed, CPU):
        pass


def test_a_row_may_stand_twice_in_a_batch(tiny_model_factory: Any, tiny_tokenizer: Any) -> None:
    losses = []
    for option in (MemoryConfig(), MEMORY):
        model = tiny_model_factory(vocab_size=262)
        attach(model, {"experts": {"2": [2, 3, 7]}}, LoraConfig(rank=4), seed=0, announces=False)
        result = train_rows(model, tiny_tokenizer, chat_rows(3), train_config(memory=option, steps=3))
        losses.append(result.last_loss)
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
