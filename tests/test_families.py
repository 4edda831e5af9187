"""Every family of fused experts in the installed transformers trains its chosen experts exactly.

The known answer is the family's own eager loop over its own weights, with W + scaling B A in place of W on
the chosen experts and nothing changed elsewhere. `finetune/families.md` is the table of what is tested here:
`LOCAL_EXPERTS_WRITE=1 python -m pytest tests/test_families.py -k table` writes it again.
"""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import nn

from data_recipes.artefact import UserError
from finetune.adapters.adapter import (
    adapter_disabled,
    adapter_parameters,
    attach,
    check_first_backward,
    detach,
    record_routing,
)
from finetune.config import LoraConfig
from finetune.moe import MoeLayer, moe_layers
from finetune.profiling.router_recorder import RouterRecorder
from tests.families_table import TABLE, families_table
from tests.tiny_families import FAMILIES, N_EXPERTS, OWN_CODE, build_tiny_family

RANK, ALPHA = 3, 6.0
SCALING = 2.0  # ALPHA / RANK
# Name of a path -> experts implementation and threads: with two of them, experts are multiplied in pairs.
PATHS = {"grouped": ("grouped_mm", 1), "paired": ("grouped_mm", 2), "eager": ("eager", 1)}
# Largest error of a tensor over its largest value.
TOLERANCE = 1e-5
# Norm of the error over the norm of the answer: bfloat16 keeps 8 bits, and a few products follow one another.
BFLOAT16_TOLERANCE = 0.05

Batch = dict[str, torch.Tensor]
# (layer index, "up" or "down", "A" or "B") -> the parameter, or what belongs to it.
Parts = dict[tuple[int, str, str], torch.Tensor]


class Answer(NamedTuple):
    """What the dense reference computes: the model's output, and the gradients of A and B."""

    output: torch.Tensor
    gradients: Parts


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def use_path(model: Any, path: str) -> None:
    implementation, n_threads = PATHS[path]
    model.set_experts_implementation(implementation)
    torch.set_num_threads(n_threads)


def token_batch() -> Batch:
    """Two rows of 10 tokens, the second with 4 of padding on the right."""
    tokens = torch.randint(3, 64, (2, 10), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    tokens[1, 6:], mask[1, 6:] = 0, 0
    return {"input_ids": tokens, "attention_mask": mask}


def forward(model: Any, batch: Batch) -> torch.Tensor:
    """Logits, or the last hidden states of a model without a head."""
    return model(**batch, use_cache=False)[0]


def loss_of(output: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Some smooth number that weighs every value of a real position differently."""
    weights = torch.linspace(-1, 1, output[0].numel()).view(output[0].shape)
    return (output.float() * weights * batch["attention_mask"].unsqueeze(-1)).sum()


def plan_from_routing(model: Any, batch: Batch) -> dict[str, Any]:
    """Of each layer the expert that most tokens hit and the one fewest do; of the last only the first."""
    with torch.no_grad(), record_routing(model) as routing:
        forward(model, batch)
    is_real = batch["attention_mask"].flatten().bool()
    plan: dict[str, list[int]] = {}
    for index, expert_NK in routing.items():
        counts = torch.bincount(expert_NK[is_real].flatten())
        hit = [expert for expert in counts.argsort(descending=True).tolist() if counts[expert]]
        assert len(hit) >= 3, "a token that hits no chosen expert needs a third one"
        plan[str(index)] = sorted({hit[0], hit[-1]} if index < max(routing) else {hit[0]})
    return {"experts": plan}


def attach_random(model: Any, plan: dict[str, Any]) -> None:
    """The same adapter each time, with values in B too."""
    attach(model, plan, LoraConfig(rank=RANK, alpha=ALPHA), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in adapter_parameters(model).values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)


def adapter_parts(model: nn.Module) -> Parts:
    adapters = {layer.index: getattr(layer.experts, "expert_lora", None) for layer in moe_layers(model)}
    return {
        (index, part, side): getattr(getattr(adapter, part), side)
        for index, adapter in adapters.items()
        if adapter is not None
        for part in ("up", "down")
        for side in ("A", "B")
    }


def dense_stacks(layer: MoeLayer, leaves: Parts, frozen: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The stacks of `frozen` with scaling B A added to the chosen experts, by parameter name."""
    experts: Any = layer.experts
    stacks = {}
    for part, name in (("up", "gate_up_proj" if experts.has_gate else "up_proj"), ("down", "down_proj")):
        update = SCALING * leaves[layer.index, part, "B"] @ leaves[layer.index, part, "A"]
        if experts.is_transposed:
            update = update.transpose(1, 2)
        stacks[name] = frozen[name].index_add(0, torch.tensor(experts.expert_lora.chosen), update)
    return stacks


def frozen_weights(layer: MoeLayer) -> dict[str, torch.Tensor]:
    weights = layer.experts.named_parameters()
    return {name: weight.detach() for name, weight in weights if "expert_lora" not in name}


def dense_answer(model: Any, batch: Batch) -> Answer:
    """The model's own forward when the chosen experts' weights really are W + scaling B A."""
    leaves = {key: value.detach().clone().requires_grad_() for key, value in adapter_parts(model).items()}
    names = {id(module): name for name, module in model.named_modules()}
    dense = {
        f"{names[id(layer.experts)]}.{name}": stack
        for layer in moe_layers(model)
        for name, stack in dense_stacks(layer, leaves, frozen_weights(layer)).items()
    }
    with adapter_disabled(model):
        output = torch.func.functional_call(model, dense, kwargs={**batch, "use_cache": False})[0]
    loss_of(output, batch).backward()
    gradients = {key: value.grad for key, value in leaves.items() if value.grad is not None}
    assert gradients.keys() == leaves.keys()
    return Answer(output.detach(), gradients)


def error_of(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value, so that no answer is so small that anything is close."""
    assert expected.abs().max() > 1e-4, "the answer is not zero"
    return float((found - expected).abs().max() / expected.abs().max())


def assert_trains_like(model: Any, batch: Batch, expected: Answer, checkpoint: bool) -> None:
    """Output and gradients of one training step, and nothing but the adapter gets a gradient."""
    if checkpoint:
        model.activation_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            # The layers alone: in training mode Phimoe's router draws its choice.
            module.training = getattr(module, "gradient_checkpointing", False)
    layers, n_forwards = moe_layers(model), []
    handles = [layer.experts.register_forward_pre_hook(lambda *_: n_forwards.append(1)) for layer in layers]
    with record_routing(model) as routing:
        output = forward(model, batch)
        loss_of(output, batch).backward()
    for handle in handles:
        handle.remove()
    assert len(n_forwards) == len(layers) * (2 if checkpoint else 1), "checkpointing computes them again"
    assert error_of(output.detach(), expected.output) <= TOLERANCE
    is_real = batch["attention_mask"].flatten().bool()
    adapters: dict[int, Any] = {layer.index: getattr(layer.experts, "expert_lora", None) for layer in layers}
    for key, value in adapter_parts(model).items():
        assert value.grad is not None
        hit = set(routing[key[0]][is_real].flatten().tolist())
        learns = value.grad.flatten(1).any(dim=1).tolist()
        assert learns == [expert in hit for expert in adapters[key[0]].chosen] and any(learns), key
        assert error_of(value.grad, expected.gradients[key]) <= TOLERANCE, key
    own = {id(value) for value in adapter_parameters(model).values()}
    assert not [name for name, p in model.named_parameters() if p.grad is not None and id(p) not in own]
    if checkpoint:
        model.eval()
        model.activation_checkpointing_disable()


def routed_by_hand(layer: MoeLayer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Six tokens of one layer: the first and the last hit a chosen expert, the others hit none."""
    experts: Any = layer.experts
    width = experts.down_proj.shape[2 if experts.is_transposed else 1]
    first, *_ = chosen = experts.expert_lora.chosen
    a, b, c, *_ = (expert for expert in range(layer.n_experts) if expert not in chosen)
    index = torch.tensor([[first, a], [a, b], [b, c], [c, a], [b, a], [c, first]])
    generator = torch.Generator().manual_seed(2)
    return torch.randn(6, width, generator=generator), index, torch.rand(6, 2, generator=generator)


def assert_other_tokens_are_the_bases(model: Any) -> None:
    """A token that hits no chosen expert is the base's bit for bit and gives the adapter no gradient."""
    layer = moe_layers(model)[0]
    experts: Any = layer.experts
    hidden, index, weights = routed_by_hand(layer)
    with torch.no_grad():
        tuned = experts(hidden, index, weights)
        with adapter_disabled(model):
            base = experts(hidden, index, weights)
    assert torch.equal(tuned[1:5], base[1:5])
    assert (tuned[[0, 5]] != base[[0, 5]]).any(dim=1).all()
    experts(hidden[1:5], index[1:5], weights[1:5]).square().sum().backward()
    for value in experts.expert_lora.parameters():
        assert value.grad is not None and not value.grad.any()


def assert_bfloat16_is_near(model: Any) -> None:
    """One layer in bfloat16 against its dense reference in float32, on the same numbers and choice."""
    layer = moe_layers(model)[0]
    hidden, index, weights = routed_by_hand(layer)
    hidden, weights = hidden.bfloat16(), weights.bfloat16()
    rounded = {name: weight.bfloat16() for name, weight in frozen_weights(layer).items()}
    frozen = {name: weight.float() for name, weight in rounded.items()}
    parts = {key: value for key, value in adapter_parts(model).items() if key[0] == layer.index}
    leaves = {key: value.detach().clone().requires_grad_() for key, value in parts.items()}
    with adapter_disabled(model):
        dense = frozen | dense_stacks(layer, leaves, frozen)
        expected = torch.func.functional_call(layer.experts, dense, (hidden.float(), index, weights.float()))
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4)).bfloat16()
    expected.backward(upstream.float())
    output = torch.func.functional_call(layer.experts, rounded, (hidden, index, weights))
    assert output.dtype == torch.bfloat16
    output.backward(upstream)
    pairs = [(output.float(), expected)] + [(value.grad, leaves[key].grad) for key, value in parts.items()]
    for found, answer in pairs:
        assert found is not None and answer is not None and found.dtype == torch.float32
        assert (found - answer).norm() <= BFLOAT16_TOLERANCE * answer.norm()


def float32_parts(module: nn.Module) -> Any:
    """Parts of names that from_pretrained keeps in float32: Inkling-2 routes in it."""
    return getattr(module, "_keep_in_fp32_modules_strict", None) or ()


def assert_learns_in_bfloat16(model: Any, plan: dict[str, Any], batch: Batch, checkpoint: bool) -> None:
    """A whole model in bfloat16: its choice of experts may differ, so what is hit must learn, no more."""
    detach(model)
    stays_float32 = {part for module in model.modules() for part in float32_parts(module)}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if tensor.is_floating_point() and not any(part in name for part in stays_float32):
            tensor.data = tensor.data.bfloat16()
    attach_random(model, plan)
    if checkpoint:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
    with record_routing(model) as routing:
        loss_of(forward(model, batch), batch).backward()
    for value in adapter_parameters(model).values():
        assert value.dtype == torch.float32 and value.grad is not None and value.grad.isfinite().all()
    is_real = batch["attention_mask"].flatten().bool()
    hit = {index: set(expert_NK[is_real].flatten().tolist()) for index, expert_NK in routing.items()}
    check_first_backward(model, hit)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_its_chosen_experts_and_nothing_else(family: str) -> None:
    model, batch = build_tiny_family(FAMILIES[family]), token_batch()
    plan = plan_from_routing(model, batch)
    model.set_experts_implementation("eager")
    attach_random(model, plan)
    expected = dense_answer(model, batch)
    detach(model)
    for path in PATHS:
        use_path(model, path)
        with torch.no_grad():
            base = forward(model, batch)
        attach_random(model, plan)
        checkpoint = path == "eager" and FAMILIES[family].checkpoints
        assert_trains_like(model, batch, expected, checkpoint)
        with torch.no_grad(), adapter_disabled(model):
            assert torch.equal(forward(model, batch), base), "off"
        model.zero_grad()
        assert_other_tokens_are_the_bases(model)
        model.zero_grad()
        assert_bfloat16_is_near(model)
        detach(model)
        with torch.no_grad():
            assert torch.equal(forward(model, batch), base), "detached"


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_path_with_and_without_checkpointing(family: str, path: str, checkpoint: bool) -> None:
    model, batch = build_tiny_family(FAMILIES[family]), token_batch()
    plan = plan_from_routing(model, batch)
    use_path(model, path)
    attach_random(model, plan)
    if checkpoint and not FAMILIES[family].checkpoints:
        with pytest.raises(ValueError, match="not compatible with gradient checkpointing"):
            model.activation_checkpointing_enable()
        return
    assert_trains_like(model, batch, dense_answer(model, batch), checkpoint)
    assert_learns_in_bfloat16(model, plan, batch, checkpoint)


def test_every_family_with_fused_experts_is_tested_and_every_other_mixture_is_named() -> None:
    fused, own = set(), set()
    for path in (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"):
        source = path.read_text(encoding="utf-8")
        if re.search(r"^@use_experts_implementation", source, re.MULTILINE):
            fused.add(path.parent.name)
        elif re.search(r"^class \w*(Experts|MoE)\(", source, re.MULTILINE):
            own.add(path.parent.name)
    assert fused == set(FAMILIES)
    assert own == set(OWN_CODE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_experts_run_what_the_router_named(family: str) -> None:
    model = build_tiny_family(FAMILIES[family])
    used: dict[int, torch.Tensor] = {}

    def keep(index: int, _experts: nn.Module, inputs: Any) -> None:
        used[index] = inputs[1]

    for layer in moe_layers(model):
        layer.experts.register_forward_pre_hook(partial(keep, layer.index))
    with torch.no_grad(), record_routing(model) as routing:
        forward(model, token_batch())
    assert len(used) == len(moe_layers(model)) >= 1
    for index in used | routing:
        runs = routing[index] < N_EXPERTS  # the others skip their expert
        assert runs.any() and torch.equal(used[index][runs], routing[index][runs])


@pytest.mark.parametrize("family", OWN_CODE)
def test_a_mixture_with_experts_code_of_its_own_is_refused_with_the_reason(family: str) -> None:
    model = build_tiny_family(OWN_CODE[family])
    reason = "no routed experts" if family == "doge" else r"code of its own \(\w+, at [\w.]+\)"
    with pytest.raises(UserError, match=reason):
        attach(model, {"experts": {"0": [0]}}, LoraConfig(rank=RANK), seed=0)


def test_zaya_tokens_that_skip_their_expert_are_counted_at_no_expert() -> None:
    model, batch = build_tiny_family(FAMILIES["zaya"]), token_batch()
    layers = moe_layers(model)
    layers[0].router.get_buffer("balancing_biases")[-1] = 2.0  # the class of no expert wins
    with torch.no_grad(), record_routing(model) as routing:
        forward(model, batch)
    assert (routing[0] == layers[0].n_experts).all(), "no expert, though the router says 0"
    with torch.no_grad(), RouterRecorder(layers) as recorder:
        recorder.expect(batch["attention_mask"])
        forward(model, batch)
    assert not recorder.counts_LE[0].any() and not recorder.mass_LE[0].any()
    n_chosen_L = recorder.counts_LE[1:].sum(dim=1)
    assert (n_chosen_L > 0).all() and (n_chosen_L <= recorder.n_tokens * layers[0].top_k).all()


def test_a_gate_that_is_no_router_is_passed_over() -> None:
    model = build_tiny_family(FAMILIES["gemma4"])
    layer = moe_layers(model)[0]
    layer.block.add_module("gate", nn.Linear(32, 1))
    assert moe_layers(model)[0].router is layer.router


def test_the_table_of_families_is_what_the_models_are() -> None:
    text = families_table()
    if os.environ.get("LOCAL_EXPERTS_WRITE"):
        TABLE.write_text(text, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == text, (
        "LOCAL_EXPERTS_WRITE=1 python -m pytest tests/test_families.py -k table writes it again"
    )
