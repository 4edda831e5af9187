"""The doctor's checks: what is well, what is to change, and how to change it; exit code 0 or 2."""

import os
import re
import signal
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import PLAN, write_run_inputs

from data_recipes.artefact import write_json
from data_recipes.settings import settings_dict
from finetune import cli
from finetune.adapters.adapter import attach
from finetune.config import RunConfig, load_run_config
from finetune.machine import process_start, room
from finetune.machine.devices import check_devices
from finetune.machine.process_start import check_launch
from finetune.machine.versions import check_versions, read_pins
from finetune.training_options import CheckpointConfig, LayoutConfig

ROOT = Path(__file__).parents[1]
ADDS_UP = [sys.executable, "-c", "print('sum 3')"]


@pytest.fixture
def config(tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path) -> RunConfig:
    config = write_run_inputs(tmp_path, tiny_model_factory(vocab_size=262), tiny_tokenizer)
    write_json(tmp_path / "config.yaml", settings_dict(config))  # JSON is YAML
    return config


@pytest.fixture
def quickstart(tmp_path: Path) -> RunConfig:
    return load_run_config(
        ROOT / "configs/runs/quickstart.yaml", [f"output={tmp_path}/run", "base.device=cpu"]
    )


def versions_of(**installed: str) -> Any:
    """Versions of made-up packages; others are not installed."""

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    return version


def test_packages_that_lack_or_are_too_old_are_named_and_those_of_an_extra_may_lack() -> None:
    requirements = ["torch>=2.13", "tqdm>=4.66", "django>=5.2,<5.3; extra == 'catalogues'"]
    requirements += ["scipy>=1.15; extra == 'dev'", "pyright[nodejs]>=1.1.414; extra == 'dev'"]
    found = check_versions(requirements, {}, versions_of(torch="2.9.1+cpu", django="5.3", pyright="1.1.414"))
    assert not found.is_ok
    assert found.text == (
        "torch 2.9.1+cpu is not >=2.13, tqdm is not installed, django 5.3 is not <5.3,>=5.2: "
        "pip install -c constraints.txt -e . in the folder of the source"
    )


def test_a_version_that_was_not_tested_is_told_and_nothing_to_change(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("# torch==1.0\ntorch==2.13.0\nIndic_Numtowords==1.1.0\n")
    pins = read_pins(tmp_path / "constraints.txt")
    requirements = ["torch>=2.13", "indic-numtowords>=1.1"]
    same = check_versions(
        requirements, pins, versions_of(**{"torch": "2.13.0+cpu", "indic-numtowords": "1.1.0"})
    )
    assert same.is_ok and same.text == "2 packages within their bounds, all as tested"
    other = check_versions(
        requirements, pins, versions_of(**{"torch": "2.14.0", "indic-numtowords": "1.1.0"})
    )
    assert other.is_ok and other.text.endswith("not the ones that were tested: torch 2.14.0 (tested: 2.13.0)")
    many = check_versions([], {f"p{number}": "1" for number in range(10)}, lambda _: "2")
    assert many.is_ok and "p7 2 (tested: 1) and 2 more" in many.text, "also what others bring"
    assert check_versions(requirements, read_pins(tmp_path / "none"), lambda _: "99").is_ok
    assert check_versions().is_ok, "where the tests run"


@pytest.mark.parametrize(
    ("requirement", "version", "is_ok"),
    [
        ("torch>=2.13", "2.13", True),
        ("torch>=2.13", "2.9", False),
        ("torch>=2.13,<3", "3.0", False),
        ("torch>=2.13", "2.13.0+cpu", True),
        # A vendor's container: made from the source before the release, and all that it has.
        ("torch>=2.13", "2.13.0a0+nv26.7", True),
        ("torch>=2.14", "2.13.0a0+nv26.7", False),
        ("torch~=2.13.1", "2.13.5", True),
        ("torch~=2.13.1", "2.14", False),
        ("torch!=2.13.1", "2.13.1", False),
        ("torch==2.13.*", "2.13.4", True),
        ("torch[extra] (>=2.13)", "2.12", False),
        ("torch>=2.13", "of my own", False),
        ("torch>=99; python_version < '3.0'", "2.13", True),
        ("torch>=99; python_version >= '3.0'", "2.13", False),
        ("torch>=99; python_version >= '3.0' and extra == 'dev'", "2.13", False),
        ("torch>=99; python_version < '3.0' and extra == 'dev'", "2.13", True),
        ("nowhere>=99; python_version < '3.0'", "2.13", True),
        ("nowhere>=99; python_version >= '3.0'", "2.13", False),
        ("nowhere>=99; python_version >= '3.0' and extra == 'dev'", "2.13", True),
    ],
)
def test_a_requirement_is_read_with_all_its_signs_and_markers(
    requirement: str, version: str, is_ok: bool
) -> None:
    assert check_versions([requirement], {}, versions_of(torch=version)).is_ok == is_ok


def test_pins_that_hold_elsewhere_are_left_out(tmp_path: Path) -> None:
    lines = ["Torch == 2.13.0  # the CPU's", "", "colorama==0.4; python_version < '3.0'", "tqdm>=4"]
    (tmp_path / "constraints.txt").write_text("\n".join(lines))
    assert read_pins(tmp_path / "constraints.txt") == {"torch": "2.13.0"}
    same = check_versions(["torch>=2"], {"torch": "2.13"}, versions_of(torch="2.13.0+cpu"))
    assert same.text.endswith("all as tested")


def test_processes_that_do_not_answer_are_killed_at_the_time_limit() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    started = time.monotonic()
    found = check_launch("cpu", 1, [sys.executable, "-c", child])
    assert time.monotonic() - started < 10
    assert (
        not found.is_ok and "added up nothing within 1 s: look whether the machine's own name" in found.text
    )


def test_a_worker_in_a_session_of_its_own_that_holds_the_output_holds_nobody_up(tmp_path: Path) -> None:
    worker = (
        f"import os, time; open({str(tmp_path / 'worker')!r}, 'w').write(str(os.getpid())); time.sleep(25)"
    )
    child = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}], start_new_session=True)"
    )
    started = time.monotonic()
    found = check_launch("cpu", 2, [sys.executable, "-c", child])
    assert time.monotonic() - started < 10
    assert not found.is_ok and "added up nothing within 2 s" in found.text
    os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)


@pytest.mark.slow
def test_torchrun_that_is_stopped_takes_its_workers_with_it(tmp_path: Path) -> None:
    # They do not end by themselves when they are asked to.
    (tmp_path / "worker.py").write_text(
        "import os, signal, sys, time\nfrom pathlib import Path\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "Path(sys.argv[1], f'{os.getpid()}.pid').touch()\ntime.sleep(100)\n"
    )
    torchrun = [*process_start.launch_command("cpu", 15)[:5], str(tmp_path / "worker.py"), str(tmp_path)]
    found = check_launch("cpu", 15, torchrun)
    assert not found.is_ok and "added up nothing within 15 s" in found.text
    workers = [int(file.stem) for file in tmp_path.glob("*.pid")]
    assert len(workers) == process_start.N_PROCESSES
    assert not [number for number in workers if Path(f"/proc/{number}").exists()]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "raise SystemExit('before\\nRuntimeError: no route to host\\nafter')",
            r"ended with 1 \(Runtime.* host\)",
        ),
        ("print('sum 1')", r"ended with 0 \(sum 1\): look"),
        ("raise SystemExit(3)", r"ended with 3 \(without a word\): look"),
    ],
)
def test_processes_that_fail_are_told_with_their_own_message(code: str, message: str) -> None:
    found = check_launch("cpu", 30, [sys.executable, "-c", code])
    assert not found.is_ok
    assert re.search(message, found.text), found.text


@pytest.mark.slow
def test_two_processes_really_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--time-limit", "120"]) == 0
    told = capsys.readouterr().out
    assert "2 processes on the CPU added up 3 in" in told and told.endswith("nothing to change\n")


def test_the_needs_are_those_of_the_base_and_of_the_adapter_that_the_plan_gives(
    config: RunConfig, tiny_model_factory: Any, tmp_path: Path
) -> None:
    model = tiny_model_factory(vocab_size=262)
    base = sum(value.numel() for value in model.parameters()) * 4
    for lora in (config.lora, replace(config.lora, rank=7, attention=True, shared_experts=True)):
        needs = room.needs_of(replace(config, lora=lora))
        assert needs == (base, attach(tiny_model_factory(vocab_size=262), PLAN, lora, 0), True, False)
    half = room.needs_of(replace(config, base=replace(config.base, dtype="bfloat16")))
    assert half.base == base // 2
    (tmp_path / "run/plan.json").unlink()
    before = room.needs_of(config)
    assert before == (base, 0, False, False)


def test_memory_that_is_not_there_is_told_with_the_ways_out(
    quickstart: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = room.Needs(1_000_000, 1000, True, False)
    monkeypatch.setattr(room, "free_memory_bytes", lambda _: 1_016_000)
    training, profile = room.check_memory(quickstart, needs)
    assert (
        training.is_ok and "at least 0.00102 GB in each of 1 process(es)" in training.text and profile.is_ok
    )
    # Two processes on one CPU share its memory; each holds the whole base, or half of it with fsdp.
    two = replace(quickstart, train=replace(quickstart.train, n_processes=2))
    training, _ = room.check_memory(two, needs)
    assert not training.is_ok
    assert (
        "take base.dtype=bfloat16 or train.layout.kind=fsdp in more processes, or a machine" in training.text
    )
    shared = replace(two, train=replace(two.train, layout=LayoutConfig(kind="fsdp")))
    training, _ = room.check_memory(shared, needs._replace(n_adapter=0))
    assert training.is_ok
    training, _ = room.check_memory(shared, needs)
    assert not training.is_ok and "take base.dtype=bfloat16 or more processes" in training.text


def test_a_profile_with_the_whole_base_needs_room_for_it_in_each_process(
    quickstart: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = room.Needs(3_000_000_000, 0, True, False)
    monkeypatch.setattr(room, "free_memory_bytes", lambda _: 5_000_000_000)
    one = replace(quickstart, profile=replace(quickstart.profile, n_processes=1))
    profile = room.check_memory(one, needs)[1]
    assert profile.is_ok
    assert profile.text == "profile: the whole base, 3 GB in each of 1 process(es); 5 GB free for each"
    two = replace(quickstart, profile=replace(quickstart.profile, n_processes=2))
    profile = room.check_memory(two, needs)[1]
    assert not profile.is_ok and profile.text == (
        "profile: the whole base, 3 GB in each of 2 process(es); 2.5 GB free for each: "
        "set profile.offload=true or take fewer profile.n_processes"
    )
    profile = room.check_memory(one, needs._replace(base=6_000_000_000))[1]
    assert not profile.is_ok and profile.text.endswith("5 GB free for each: set profile.offload=true")


def test_a_profile_by_layers_needs_its_largest_layer_and_the_hidden_states(
    quickstart: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = room.Needs(1000, 0, True, True)
    offload = room._offload(quickstart)
    monkeypatch.setattr(room, "free_memory_bytes", lambda _: int(offload.memory_bytes(0)) + 1000)
    _, profile = room.check_memory(quickstart, needs)
    assert not profile.is_ok and "profile: layer by layer, at least" in profile.text
    assert "set profile.hidden_states=disk, lower profile.max_tokens" in profile.text
    on_disk = replace(quickstart, profile=replace(quickstart.profile, hidden_states="disk"))
    assert room.check_memory(on_disk, needs)[1].is_ok
    states = quickstart.profile.max_tokens * offload.state_bytes_per_token
    (disk,) = room.check_disk(on_disk, needs)
    assert disk.is_ok and f"need {states / 1e9:.3g} GB" in disk.text


def test_a_disk_that_is_full_or_cannot_be_written_is_told(
    quickstart: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keeps = replace(quickstart, output=str(tmp_path / "a/b"))
    keeps = replace(
        keeps, train=replace(quickstart.train, checkpoint=CheckpointConfig(keep=2), keep_best="target")
    )
    (disk,) = room.check_disk(keeps, room.Needs(0, 10**9, True, False))
    # Of a billion parameters, 4 GB: three checkpoints of four times that, and the adapter.
    assert "a/b: adapter and checkpoints need 52 GB" in disk.text
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 51 * 10**9}))
    (disk,) = room.check_disk(keeps, room.Needs(0, 10**9, True, False))
    assert not disk.is_ok and disk.text.endswith(
        "51 GB free: free some, or set output= to a folder on another disk"
    )
    (disk,) = room.check_disk(replace(quickstart, output="/proc/nowhere/run"), room.Needs(0, 1, True, False))
    assert (
        not disk.is_ok
        and "/proc cannot be written (" in disk.text
        and disk.text.endswith("to another folder")
    )


def test_a_base_of_the_hub_needs_room_in_its_cache(
    quickstart: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_hub = replace(quickstart, base=replace(quickstart.base, model="someone/large"))
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**9}))
    _, cache = room.check_disk(of_hub, room.Needs(10**10, 0, True, False))
    assert not cache.is_ok and ": the base's files need 10 GB, 1 GB free" in cache.text
    assert cache.text.endswith("free some, or set HF_HOME to a folder on another disk")


def test_cache_and_output_on_one_disk_need_room_together(
    quickstart: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_hub = replace(quickstart, base=replace(quickstart.base, model="someone/large"))
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 60 * 10**9}))
    needs = room.Needs(40 * 10**9, 10**9, True, False)
    monkeypatch.setattr(room, "_disk", lambda _: 1)
    output, cache = room.check_disk(of_hub, needs)
    n_output = float(re.findall(r"need ([\d.]+) GB", output.text)[0])
    assert output.is_ok and 20 < n_output < 60
    assert not cache.is_ok and f"need 40 GB beside {n_output:g} GB of the output, 60 GB free" in cache.text
    monkeypatch.setattr(room, "_disk", lambda folder: str(folder))
    assert all(found.is_ok for found in room.check_disk(of_hub, needs)), "each on a disk of its own"


def test_a_base_is_in_the_cache_when_all_its_files_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        room,
        "try_to_load_from_cache",
        lambda _, name, revision: str(tmp_path / name) if (tmp_path / name).exists() else None,
    )
    assert not room._is_cached("someone/large", None)
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": shards})
    assert not room._is_cached("someone/large", None), "an index alone"
    (tmp_path / "model-1.safetensors").touch()
    assert not room._is_cached("someone/large", None)
    (tmp_path / "model-2.safetensors").touch()
    assert room._is_cached("someone/large", None)
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "model.safetensors").touch()
    assert room._is_cached("someone/large", None), "in one file"


def test_devices_are_used_and_those_a_config_asks_for_must_be_there(quickstart: RunConfig) -> None:
    cpu = check_devices()[0]
    assert cpu.is_ok and cpu.text.startswith("cpu, ")
    assert check_devices(quickstart)[-1].is_ok
    if not torch.accelerator.is_available():
        asked = replace(quickstart, base=replace(quickstart.base, device="xpu"))
        found = check_devices(asked)[-1]
        assert not found.is_ok and "base.device is 'xpu', and this machine has no such device" in found.text
        mapped = replace(quickstart, train=replace(quickstart.train, layout=LayoutConfig(kind="device_map")))
        found = check_devices(mapped)[-1]
        assert (
            not found.is_ok and "device_map needs two devices, this machine has 0: take one_dev" in found.text
        )


@pytest.mark.usefixtures("config")
def test_the_command_ends_with_0_or_with_2_and_a_line_for_each_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process_start, "launch_command", lambda *_: ADDS_UP)
    line = ["doctor", "--config", str(tmp_path / "config.yaml")]
    assert cli.main(line) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "nothing to change" and {found.split()[0] for found in lines} == {"ok"}
    names = [found.split()[1] for found in lines]
    assert names == ["python", "versions", "device", "config", "launch", "memory", "memory", "disk"]
    assert cli.main([*line, "train.tracker=dvclive", "base.device=meta:x"]) == 2
    *lines, last = capsys.readouterr().out.splitlines()
    wrong = [found for found in lines if found.startswith("change")]
    assert last == "2 to change" and len(wrong) == 2
    assert "base.device is 'meta:x', and this machine has no such device" in wrong[0]
    assert "pip install dvclive, or leave train.tracker out" in wrong[1]
    assert any(f"disk      {tmp_path}/run, " in found for found in lines), (
        "the folder is looked at all the same"
    )
    assert cli.main([*line, f"base.model={tmp_path}/none"]) == 2
    assert "cannot read the config of the base" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        cli.main(["doctor", "train.steps=5"])
    assert "give one with --config" in capsys.readouterr().err


def test_without_a_package_the_doctor_says_so_and_stops_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "finetune.machine.devices", None)
    assert cli.main(["doctor"]) == 2
    assert "not looked for, as a package cannot be imported" in capsys.readouterr().out
