"""Less memory changes nothing that is learnt: losses and gradients are those of the plain way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tuned_bases import build_qwen3_vl, give_values

from data_recipes.artefact import UserError
from finetune.adapters.adapter import adapter_parameters, adapter_state, attach
from finetune.adapters.peft_model import get_expert_peft_model
from finetune.batches import IGNORED_LABEL, Batch
from finetune.cli import main
from finetune.config import LoraConfig
from finetune.moe import moe_layers
from finetune.train import train_rows
from finetune.training.frozen_prefix import PrefixCache, n_layers_below_adapter
from finetune.training.losses import token_losses
from finetune.training.memory import prepare_memory
from finetune.training.vocabulary_loss import (
    CHUNK_LOGITS_BYTES,
    WHOLE_LOGITS_BYTES,
    chunk_length,
)
from finetune.training_options import MemoryConfig
from tests.test_train import chat_rows, train_config
from tests.tiny_families import FAMILIES, build_tiny_family

CPU = torch.device("cpu")
# What they do behind their head: nothing, a cap, a scale, a division, a cast, a shorter vocabulary.
HEADS = ("glm_moe_dsa", "gpt_oss", "beam", "gemma4", "cohere2_moe", "granitemoe", "hy_v4", "inkling2")
# In float32, of the largest value. Gemma's gradients move by 1.4e-6 when the loss is multiplied by a third.
TOLERANCE, TOLERANCES = 1e-6, {"gemma4": 3e-6}


def padded_batch(n_rows: int = 3, width: int = 12, seed: int = 1, vocabulary: int = 64) -> Batch:
    """Rows of unlike lengths; the first two tokens of each, and padding, are not trained."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, vocabulary, (n_rows, width), generator=generator)
    mask = torch.ones_like(tokens)
    for row in range(1, n_rows):
        mask[row, width - 3 * row :] = 0
    tokens[mask == 0] = 0
    labels = tokens.masked_fill(mask == 0, IGNORED_LABEL)
    labels[:, :2] = IGNORED_LABEL
    return Batch([str(row) for row in range(n_rows)], tokens, mask, labels)


def tuned(family: str, layers: slice = slice(None)) -> Any:
    """A family's tiny model with a LoRA that already does something, on two experts of some MoE layers."""
    model = build_tiny_family(FAMILIES[family])
    plan = {str(layer.index): [0, 3] for layer in moe_layers(model)[layers]}
    attach(model, {"experts": plan}, LoraConfig(rank=2, alpha=4.0), seed=0, announces=False)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in adapter_parameters(model).values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return model


def losses_and_gradients(model: Any, batch: Batch, setting: str | int) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [N] and the gradient of their weighted mean, laid flat."""
    model.zero_grad()
    losses = token_losses(model, batch, CPU, setting)
    (losses * torch.linspace(1, 2, len(losses))).mean().backward()
    parameters = adapter_parameters(model).values()
    flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    return losses.detach(), torch.cat(flat)


def error_of(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert expected.abs().max() > 1e-4, "the answer is not zero"
    return float((found - expected).abs().max() / expected.abs().max())


def with_heads_on(model: Any) -> Any:
    """The model with what its family may do to logits switched on, if it has such a thing."""
    model.config.final_logit_softcapping = 10.0
    model.config.logits_scaling = 0.25
    return model


@pytest.mark.parametrize("family", HEADS)
def test_chunked_losses_and_gradients_are_those_of_whole_logits(family: str) -> None:
    batch, model = padded_batch(), with_heads_on(tuned(family))
    losses, gradients = losses_and_gradients(model, batch, "whole")
    assert len(losses) == int((batch.labels[:, 1:] != IGNORED_LABEL).sum())
    for n_chunk in (4, 1000):
        found, found_gradients = losses_and_gradients(model, batch, n_chunk)
        assert error_of(found, losses) <= TOLERANCE
        assert error_of(found_gradients, gradients) <= TOLERANCES.get(family, TOLERANCE)
        with torch.inference_mode():
            # Without gradients the experts run on another path when there are two threads.
            assert error_of(token_losses(model, batch, CPU, n_chunk), losses) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - set(HEADS)))
def test_chunked_losses_of_every_family_with_a_head(family: str) -> None:
    batch, model = padded_batch(), with_heads_on(tuned(family))
    if model.get_output_embeddings() is None:
        with pytest.raises(UserError, match="no decoder with a head behind it"):
            token_losses(model, batch, CPU, 4)
        return
    losses, gradients = losses_and_gradients(model, batch, "whole")
    found, found_gradients = losses_and_gradients(model, batch, 4)
    assert error_of(found, losses) <= TOLERANCE and error_of(found_gradients, gradients) <= TOLERANCE


@pytest.mark.parametrize("family", ["beam", "gemma4", "cohere2_moe", "granitemoe"])
def test_the_heads_above_are_more_than_a_product(family: str) -> None:
    """Else a loss that leaves out the cap or the scale would pass."""
    batch, model = padded_batch(), with_heads_on(tuned(family))
    hidden = model.base_model(batch.tokens, attention_mask=batch.attention_mask).last_hidden_state
    labels = batch.labels[:, 1:].flatten()
    with torch.no_grad():
        plain = F.cross_entropy(model.lm_head(hidden)[:, :-1].flatten(0, 1), labels)
        assert abs(float(token_losses(model, batch, CPU, 4).mean() - plain)) > 0.01


def test_a_head_that_is_trained_and_another_kind_of_model_are_refused(tiny_model: Any) -> None:
    batch = padded_batch()
    with pytest.raises(UserError, match="its head is trained.*loss_chunk_tokens=whole"):
        token_losses(tiny_model, batch, CPU, 4)
    tiny_model.requires_grad_(False)
    tiny_model.lm_head.forward = lambda hidden: hidden.expand(1, 7, -1)
    with pytest.raises(UserError, match=r"logits \(1, 7, 32\) of one hidden state"):
        token_losses(tiny_model, batch, CPU, 4)


def test_logits_are_whole_until_they_are_large(tiny_model_factory: Any) -> None:
    model = tiny_model_factory(vocab_size=154_880, hidden_size=8)
    n_bytes = 4 * 154_880
    largest = WHOLE_LOGITS_BYTES // n_bytes
    assert chunk_length(model, "auto", largest) is None
    n_chunk = chunk_length(model, "auto", largest + 1)
    assert n_chunk == CHUNK_LOGITS_BYTES // n_bytes == 216
    assert chunk_length(model, "whole", 10**6) is None and chunk_length(model, 7, 1) == 7
    # The quickstart's largest batches: 64 rows of 256 tokens in the evaluation, and a vocabulary of 8,192.
    model = tiny_model_factory(vocab_size=8192)
    assert chunk_length(model, "auto", 64 * 256) is None


def test_no_tensor_of_logits_is_larger_than_a_chunk(tiny_model_factory: Any) -> None:
    batch, model = padded_batch(n_rows=2, width=40), tiny_model_factory(vocab_size=131)
    attach(model, {"experts": {"2": [2]}}, LoraConfig(rank=2), seed=0, announces=False)
    n_trained = int((batch.labels[:, 1:] != IGNORED_LABEL).sum())
    for setting, n_rows in (("whole", 80), (8, 8), (n_trained, n_trained)):
        with LargestOf(lambda t: t.shape[-1:] == (131,) and t.numel() != 32 * 131) as largest:  # not the head
            losses_and_gradients(model, batch, setting)
        assert largest.n_values == n_rows * 131


class LargestOf(TorchDispatchMode):
    """The most values that a tensor has of those that are computed and fit."""

    def __init__(self, fits: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()
        self.fits, self.n_values = fits, 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = function(*arguments, **(named or {}))
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor) and self.fits(tensor):
                self.n_values = max(self.n_values, tensor.numel())
        return result


def trained(model: Any, tokenizer: Any, lora: LoraConfig, memory: MemoryConfig, **changes: Any) -> Any:
    """(adapter, losses of the steps) after a few steps; layer 2 alone has an adapter."""
    attach(model, {"experts": {"2": [2, 3, 7]}}, lora, seed=0, announces=False)
    config = train_config(**{"steps": 6, "memory": memory, **changes})
    result = train_rows(model, tokenizer, chat_rows(16), config)
    return adapter_state(model), (result.first_loss, result.last_loss)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_gives_the_same_adapter(
    dropout: float, tiny_model_factory: Any, tiny_tokenizer: Any
) -> None:
    lora, found = LoraConfig(rank=4, alpha=8.0, dropout=dropout, attention=True), []
    for checkpointing in (False, True):
        model = tiny_model_factory(vocab_size=262)
        n_forwards: list[int] = []
        model.model.layers[2].mlp.register_forward_pre_hook(lambda *_, n=n_forwards: n.append(1))
        memory = MemoryConfig(gradient_checkpointing=checkpointing)
        found.append(trained(model, tiny_tokenizer, lora, memory, accumulate=2))
        assert len(n_forwards) == (24 if checkpointing else 12), "each of 6 x 2 is computed twice"
    (plain, plain_losses), (state, losses) = found
    assert losses == plain_losses
    assert all(torch.equal(state[name], value) for name, value in plain.items()) and len(plain) > 10


def test_checkpointing_is_as_the_config_says_and_refused_where_the_family_cannot(tiny_model: Any) -> None:
    tiny_model.activation_checkpointing_enable({"use_reentrant": False})
    assert prepare_memory(tiny_model, MemoryConfig()) is None
    assert not tiny_model.is_activation_checkpointing
    model = build_tiny_family(FAMILIES["diffusion_gemma"])
    with pytest.raises(UserError, match="gradient_checkpointing=false: DiffusionGemma.* not compatible"):
        prepare_memory(model, MemoryConfig(gradient_checkpointing=True))


def saved_bytes(model: Any, batch: Batch) -> tuple[int, dict[int, int]]:
    """Bytes kept for the backward in all, and until each decoder layer was done."""
    sizes: dict[tuple[int, int], int] = {}
    after: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.data_ptr(), tensor.nbytes] = tensor.nbytes
        return tensor

    layers = model.model.layers
    handles = [
        layer.register_forward_hook(lambda *_, n=number: after.__setitem__(n, sum(sizes.values())))
        for number, layer in enumerate(layers)
    ]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_losses(model, batch, CPU).sum()
    for handle in handles:
        handle.remove()
    return sum(sizes.values()), after


def test_layers_below_the_first_adapter_keep_nothing_for_the_backward() -> None:
    model = tuned("glm_moe_dsa", slice(-1, None)).train()
    assert n_layers_below_adapter(model) == 2
    n_bytes, after = saved_bytes(model, padded_batch())
    assert after[0] == after[1] == 0 < after[2] <= n_bytes


def test_checkpointing_keeps_less_for_the_backward() -> None:
    model, batch = tuned("glm_moe_dsa").train(), padded_batch(width=40)
    plain = saved_bytes(model, batch)[1][2]
    prepare_memory(model, MemoryConfig(gradient_checkpointing=True))
    # The hooks do not see what checkpoint keeps: it hands each layer's inputs on in a place of its own.
    assert saved_bytes(model, batch)[1][2] < plain / 5


def test_bfloat16_trains_a_float32_adapter_without_a_float32_copy_of_the_experts(
    tiny_model_factory: Any, tiny_tokenizer: Any
) -> None:
    model = tiny_model_factory(vocab_size=262).to(torch.bfloat16)
    attach(model, {"experts": {"1": [0, 1, 5], "2": [2, 3, 7]}}, LoraConfig(rank=4, alpha=8.0), seed=0)
    stack = model.model.layers[2].mlp.experts.down_proj
    assert stack.dtype == torch.bfloat16
    with LargestOf(
        lambda t: t.dtype == torch.float32 and t.shape in (stack.shape, stack.mT.shape)
    ) as largest:
        result = train_rows(model, tiny_tokenizer, chat_rows(8), train_config(steps=30))
    assert largest.n_values == 0
    assert result.last_loss < result.first_loss - 0.3
    assert {value.dtype for value in adapter_parameters(model).values()} == {torch.float32}
    assert {value.dtype for value in model.parameters() if not value.requires_grad} == {torch.bfloat16}


def test_each_bad_option_is_told_with_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["loss_chunk_tokens=0", "prefix_cache_gb=0", f"prefix_cache_folder={tmp_path}/none"]
    config = "configs/runs/quickstart.yaml"
    assert main(["train", "--config", config, *(f"train.memory.{change}" for change in changes)]) == 2
    said = capsys.readouterr().err
    assert "train.memory.loss_chunk_tokens = 0: must be at least 1" in said
    assert "train.memory.prefix_cache_gb = 0.0: must be above 0" in said
    assert f"there is no folder {tmp_path}/none: create it" in said
    assert main(["train", "--config", config, "train.memory.loss_chunk_tokens=most"]) == 2
    assert "loss_chunk_tokens = 'most': must be one of auto, whole" in capsys.readouterr().err


def wrapped_in_peft(factory: Any) -> tuple[Any, str]:
    plan = {"experts": {"2": [0, 1]}}
    return get_expert_peft_model(factory(vocab_size=64), plan, LoraConfig(rank=2), seed=0), "glm_moe_dsa"


def that_sees_images(_: Any) -> tuple[Any, str]:
    model = build_qwen3_vl()
    last = str(moe_layers(model)[-1].index)
    attach(model, {"experts": {last: [0, 1]}}, LoraConfig(rank=2), seed=0, announces=False)
    return model, "qwen3_vl_moe"


@pytest.mark.parametrize("build", [wrapped_in_peft, that_sees_images])
def test_a_wrapped_model_has_its_loss_in_chunks_and_its_frozen_layers_kept(
    build: Any, tiny_model_factory: Any
) -> None:
    model, kind = build(tiny_model_factory)
    assert model.config.model_type == kind
    give_values(model)
    batch = padded_batch()
    losses, gradients = losses_and_gradients(model.train(), batch, "whole")
    cache = PrefixCache(model, MemoryConfig(prefix_cache="memory"))
    prepare_memory(model, MemoryConfig(gradient_checkpointing=True))
    for _ in range(2):
        with cache.replayed(batch, CPU):
            found, found_gradients = losses_and_gradients(model, batch, 4)
        assert error_of(found, losses) <= 3e-6 and error_of(found_gradients, gradients) <= 3e-6
    assert cache.depth >= 1 and len(cache.kept.rows) == 3
