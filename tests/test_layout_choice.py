"""A layout that cannot be had is refused before the base is loaded, with all reasons at once."""

import sys
from contextlib import redirect_stderr
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import IPython
import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from test_train import chat_rows
from tiny_families import FAMILIES, build_tiny_family

from data_recipes.artefact import UserError
from data_recipes.settings import load_settings
from finetune.adapters.adapter import attach
from finetune.config import BaseConfig, LoraConfig, RunConfig
from finetune.launch import LOST_EXIT_CODE, ending, run_and_show
from finetune.layouts.layout import Layout, data_parallel
from finetune.layouts.placement import choose_layout, problems_of_base
from finetune.model import load_model, load_tokenizer
from finetune.moe import moe_layers
from finetune.processes import check_process_count, start_accelerator
from finetune.train import train_rows
from finetune.training_options import LayoutConfig, LayoutKind, TrainConfig

ROOT = Path(__file__).parents[1]
ACCELERATE = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
QUICKSTART = ROOT / "configs" / "runs" / "quickstart.yaml"
BASE = BaseConfig(device="cpu")


def processes(n: int) -> Any:
    """What stands for the accelerator of the first of n processes: no more of it is asked for."""
    return SimpleNamespace(
        num_processes=n,
        process_index=0,
        device=torch.device("cpu"),
        is_main_process=True,
        wait_for_everyone=lambda: None,
    )


def refusal(base: BaseConfig, train: TrainConfig, n: int) -> str:
    """What is told when a layout cannot be had in n processes, all of which end with 2."""
    with redirect_stderr(StringIO()) as told, pytest.raises(SystemExit, match="2"):
        choose_layout(base, train, processes(n))
    return told.getvalue()


def options(kind: LayoutKind, n_processes: int, ep_size: int | None = None) -> TrainConfig:
    layout = LayoutConfig(kind=kind, ep_size=ep_size)
    return TrainConfig(steps=1, learning_rate=1e-3, n_processes=n_processes, batch_size=24, layout=layout)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["kind=one_device"], "layout.kind: one_device is one process, and n_processes is 4"),
        (["kind=device_map"], "layout.kind: device_map is one process, and n_processes is 4"),
        (["kind=expert_parallel_fsdp", "ep_size=3"], r"layout.ep_size: 3 does not divide n_processes \(4\)"),
        (["kind=fsdp", "ep_size=2"], "ep_size = 2: is of kind expert_parallel_fsdp"),
        (["ep_size=1", "time_limit_s=0"], "time_limit_s.*at least 1(.|\n)*ep_size.*at least 2"),
        (["kind=fsdb"], "fsdp"),
    ],
)
def test_a_layout_that_contradicts_itself_is_a_config_error(changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_settings(
            RunConfig, QUICKSTART, ["train.n_processes=4", *(f"train.layout.{change}" for change in changes)]
        )


def test_a_sharded_layout_needs_processes_and_no_dropout() -> None:
    with pytest.raises(UserError, match="layout.kind: fsdp shares the base out over processes"):
        load_settings(RunConfig, QUICKSTART, ["train.layout.kind=fsdp"])
    changes = ["train.layout.kind=expert_parallel", "train.n_processes=2", "lora.dropout=0.1"]
    with pytest.raises(UserError, match="lora.dropout: must be 0 with train.layout.kind=expert_parallel"):
        load_settings(RunConfig, QUICKSTART, changes)


def test_rows_need_not_be_a_multiple_of_processes_that_share_them() -> None:
    changes = ["train.n_processes=2", "train.batch_size=3"]
    with pytest.raises(UserError, match=r"multiple of n_processes x accumulate \(2\)"):
        load_settings(RunConfig, QUICKSTART, changes)
    config = load_settings(RunConfig, QUICKSTART, [*changes, "train.layout.kind=expert_parallel"])
    assert config.train.n_data == 1


def test_every_reason_why_a_layout_cannot_be_had_is_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    told = refusal(BASE, options("expert_parallel", 3), 3)
    assert "asked for mixed precision (bf16), which changes nothing here" in told
    assert "not by Accelerate, which was asked for FSDP: take configs/accelerate/fsdp2.yaml" in str(told)
    assert "experts cannot be shared out evenly over 3 processes" in told


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_zero3_without_deepspeed_names_the_extra() -> None:
    assert "pip install 'local-experts[deepspeed]', or take fsdp" in refusal(BASE, options("zero3", 2), 2)


def test_a_device_map_needs_devices() -> None:
    with pytest.raises(UserError, match="device_map needs two devices, this machine has"):
        choose_layout(BASE, options("device_map", 1), processes(1))


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    told = refusal(BaseConfig(), options("auto", 4), 4)
    assert "4 processes run on this machine, which has 2 device(s)" in told
    told = refusal(BASE, options("fsdp", 4), 4)
    assert "base.device is 'cpu', and each process takes a device of its own" in told


def test_a_class_without_a_plan_is_refused_by_its_name(tiny_model: Any) -> None:
    assert problems_of_base("expert_parallel_fsdp", tiny_model, 4) == []
    tiny_model.ep_plan = {}
    tiny_model.fsdp_plan = {}
    assert problems_of_base("expert_parallel_fsdp", tiny_model, 4) == [
        "transformers has no fsdp plan for GlmMoeDsaForCausalLM: take data_parallel",
        "transformers has no expert-parallel plan for GlmMoeDsaForCausalLM: take fsdp",
    ]


@pytest.mark.slow
def test_every_family_has_a_plan_for_all_its_experts() -> None:
    for name, family in FAMILIES.items():
        model = build_tiny_family(family)
        assert problems_of_base("expert_parallel_fsdp", model, 2) == [], name
        plan = model._expand_parallel_plan(model.ep_plan)
        dispatched = {module for module, style in plan.items() if style == "ep_dispatch_experts"}
        assert {layer.experts for layer in moe_layers(model)} <= {
            model.get_submodule(module) for module in dispatched
        }, name


def test_the_expert_group_of_fsdp_is_all_processes_or_ep_size() -> None:
    layout, config = choose_layout(BASE, options("expert_parallel_fsdp", 4, 2), processes(4))
    assert config is not None
    assert (config.fsdp_size, config.ep_size, config.efsdp_size, config.tp_size) == (4, 2, 2, 1)
    assert (layout.n_data, layout.ep_size, layout.in_step) == (4, 2, True)
    layout, config = choose_layout(BASE, options("expert_parallel", 4), processes(4))
    assert config is not None and isinstance(config.tp_plan, dict)
    assert (config.fsdp_size, config.ep_size, config.tp_size) == (1, 4, 4)
    assert set(config.tp_plan.values()) == {"replicate"}
    assert (layout.n_data, layout.ep_size) == (1, 4)
    layout, config = choose_layout(BASE, options("auto", 2), processes(2))
    assert (layout.kind, config, layout.in_step) == ("data_parallel", None, False)


def test_all_processes_of_a_sharded_base_make_equally_many_forwards() -> None:
    for kind, expected in (("data_parallel", [1, 1, 1, 2]), ("fsdp", [2, 2, 2, 2])):
        found = []
        for rank in range(4):
            of_rank = SimpleNamespace(num_processes=4, process_index=rank)
            found.append(Layout(of_rank, rank, 4, kind).n_forwards(17, 4))  # type: ignore[arg-type]
        assert found == expected, kind


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_an_accelerate_config_is_one_and_names_what_exists(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    text = path.read_text(encoding="utf-8")
    said = text.partition("compute_environment")[0].replace("\\\n#", "")
    assert f"accelerate launch --config_file configs/accelerate/{path.name} -m finetune.train" in said
    assert "un here" in said, "each file says whether it was run"
    words = said.replace(",", " ").split()
    kinds = [
        word.removeprefix("train.layout.kind=").rstrip(".;:") for word in words if "layout.kind=" in word
    ]
    assert set(kinds) <= set(get_args(LayoutKind))
    if config.num_processes > 1:
        assert f"train.n_processes={config.num_processes}" in said
    for word in words:
        if word.startswith("configs/") and not word.endswith("FILE"):
            assert (ROOT / word).exists(), word


def test_the_accelerate_configs_are_those_of_every_kind_of_machine() -> None:
    types = {path.stem: load_config_from_file(str(path)).distributed_type.value for path in ACCELERATE}
    assert types == {
        "cpu": "MULTI_GPU",
        "expert_parallel": "MULTI_GPU",
        "fsdp2": "MULTI_GPU",
        "gpu": "NO",
        "gpus": "MULTI_GPU",
        "npu": "NO",
        "npus": "MULTI_NPU",
        "zero3": "MULTI_GPU",
    }


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({0: 2, 1: -15}, None),
        ({0: LOST_EXIT_CODE, 1: -9}, "train process 1 was killed by signal 9"),
        ({0: LOST_EXIT_CODE, 1: -15}, "train process 0 waited in vain for another one"),
    ],
)
def test_the_launcher_tells_how_a_process_ended_that_could_not(codes: dict[int, int], message: str) -> None:
    found = ending("train", codes)
    assert found == message if message is None else message in (found or "")


def test_what_a_child_writes_is_shown_where_print_goes(capsys: pytest.CaptureFixture[str]) -> None:
    program = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)"
    assert run_and_show([sys.executable, "-c", program], {}) == 3
    assert capsys.readouterr().out.split() == ["out", "err"]


def test_training_in_copies_that_never_talk_is_refused(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = data_parallel(start_accelerator(1, "cpu"))
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun and notebook_launcher set it
    with pytest.raises(UserError, match="2 processes were launched, but each is alone"):
        train_rows(tiny_model, tiny_tokenizer, [], options("auto", 1), layout=alone)


def test_a_base_laid_out_by_a_device_map_trains_to_the_same_bits(base: BaseConfig) -> None:
    tokenizer, losses = load_tokenizer(base), []
    for kind, placement in (("one_device", {}), ("device_map", {"device_map": {"": "cpu"}})):
        model, _ = load_model(base, placement)
        attach(model, {"experts": {"1": [0, 5]}}, LoraConfig(rank=4), seed=0, announces=False)
        layout = Layout(start_accelerator(1, "cpu"), 0, 1, kind)  # type: ignore[arg-type]
        config = replace(options("auto", 1), steps=3, batch_size=4)
        losses.append(train_rows(model, tokenizer, chat_rows(8), config, layout=layout).last_loss)
    assert losses[0] == losses[1]


def test_copies_in_a_notebook_are_told_what_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = SimpleNamespace(kernel=None)  # what a kernel's IPython has and a terminal's has not
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    with pytest.raises(UserError, match=r'each is alone: run instead: run_in_processes\("train", config\)'):
        check_process_count(2, 1, {"WORLD_SIZE": "2"})
