"""What moved is read from files: exactly the experts that were given values, and by how much."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tuned_bases import GLM_EXPERTS

from data_recipes.artefact import UserError
from finetune.config import BaseConfig
from finetune.exporting.changed_tensors import changed_tensors, experts_of_tensors, update_sizes
from finetune.exporting.export import export_adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
CHOSEN = {int(layer): experts for layer, experts in GLM_EXPERTS.items()}


def test_a_merged_checkpoint_differs_in_the_chosen_experts_and_by_what_torch_says(
    base: BaseConfig, adapter: Path, tmp_path: Path
):
    merged = export_adapter(adapter, "merged", tmp_path / "merged", base, check="deltas")
    changes = changed_tensors(Path(base.model), merged)
    assert experts_of_tensors(changes) == CHOSEN
    before, after = load_file(Path(base.model) / "model.safetensors"), load_file(merged / "model.safetensors")
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(changes)
    for name, change in changes.items():
        assert change == pytest.approx(float((after[name] - before[name]).abs().max()), rel=1e-5)


def test_sizes_of_updates_are_the_norms_of_what_merging_adds(base: BaseConfig, adapter: Path, tmp_path: Path):
    size_LE = update_sizes(adapter, base)
    merged = export_adapter(adapter, "merged", tmp_path / "merged", base, check="deltas")
    before, after = load_file(Path(base.model) / "model.safetensors"), load_file(merged / "model.safetensors")
    assert [row.nonzero()[0].tolist() for row in size_LE] == list(CHOSEN.values())
    for row, layer in enumerate(CHOSEN):
        for expert in CHOSEN[layer]:
            names = [name for name in before if f".layers.{layer}.mlp.experts.{expert}." in name]
            assert len(names) == 3
            squares = [float((after[name] - before[name]).double().square().sum()) for name in names]
            assert size_LE[row, expert] == pytest.approx(np.sqrt(sum(squares)), rel=1e-4)


def test_stacked_experts_are_compared_one_by_one(tmp_path: Path):
    stack = torch.zeros(4, 2, 3)
    moved = stack.clone()
    moved[2, 1, 0] = -0.5
    for folder, value in (("a", stack), ("b", moved)):
        (tmp_path / folder).mkdir()
        tensors = {"model.layers.3.mlp.experts.down_proj": value, "norm": torch.ones(2)}
        save_file(tensors, tmp_path / folder / "model.safetensors")
    changes = changed_tensors(tmp_path / "a", tmp_path / "b")
    assert changes == {"model.layers.3.mlp.experts.down_proj[2]": 0.5}
    assert experts_of_tensors(changes) == {3: [2]}


def test_checkpoints_of_other_models_are_not_compared(tmp_path: Path):
    for folder, tensors in (("a", {"x": torch.ones(2)}), ("b", {"x": torch.ones(3), "y": torch.ones(1)})):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors")
    message = (
        r"do not hold the same tensors \(2 differ, first x\): compare a base with what was merged into it"
    )
    with pytest.raises(UserError, match=message):
        changed_tensors(tmp_path / "a", tmp_path / "b")
