"""An export or import that is interrupted, killed or out of disk leaves what was there before, whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tuned_bases import GLM_EXPERTS, save_trained

from finetune.config import BaseConfig
from finetune.exporting.export import export_adapter
from finetune.exporting.import_adapter import import_adapter

ROOT = Path(__file__).parents[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def broken_off(former: Path, folder: Path, arguments: list[str]) -> list[tuple[str, int, int, str]]:
    """(how, number, exit code, standard error) of the runs of tests/broken_off.py."""
    command = [sys.executable, str(ROOT / "tests" / "broken_off.py"), str(former), str(folder), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def check_ends(former: Path, written: Path, folder: Path, arguments: list[str], least: int) -> None:
    """Each broken run of `arguments` left `former`, with one message; that which came through `written`."""
    before, after = contents(former), contents(written)
    assert before != after
    ends = broken_off(former, folder, arguments)
    assert [how for how, _, code, _ in ends if code == 0] == ["interrupted", "killed", "full"]
    assert len(ends) >= least
    for how, number, code, said in ends:
        place = folder / f"{how}-{number}"
        found = {path.name: contents(path) for path in place.iterdir()}
        case = f"{how} {number}: {said}"
        assert "Traceback" not in said, case
        if how == "killed" and code != 0:
            # Between two renamings the old folder waits, whole, under an unfinished name.
            kept = found.pop("out", None) or next(files for files in found.values() if files == before)
            assert code == -9 and kept == before, case
            assert all(name.startswith(".out.partial-") for name in found), case
        else:
            assert found == {"out": after if code == 0 else before}, case
        if code != 0:
            message = {
                "interrupted": (130, "interrupted"),
                "full": (2, f"error: no space left to write {place}"),
            }
            expected, start = message.get(how, (-9, ""))
            lines = [line for line in said.splitlines() if line.startswith(("error", "interrupted"))]
            assert code == expected and len(lines) == bool(start), case
            assert all(line.startswith(start) for line in lines), case


@pytest.mark.slow
@pytest.mark.parametrize("to", ["peft", "vllm", "sglang", "merged"])
def test_a_broken_export_leaves_the_former_one(base: BaseConfig, tmp_path: Path, to: str) -> None:
    old = save_trained(base, {"1": [1]}, attention=False, folder=tmp_path / "old_adapter")
    new = save_trained(base, GLM_EXPERTS, attention=False, folder=tmp_path / "adapter")
    former = export_adapter(old, to, tmp_path / "former", base, "deltas")
    written = export_adapter(new, to, tmp_path / "written", base, "deltas")
    arguments = ["export", "--adapter", str(new), "--to", to, "--base", base.model, "--check", "deltas"]
    check_ends(former, written, tmp_path / "runs", [*arguments, "--device", "cpu"], least=20)


@pytest.mark.slow
def test_a_broken_import_leaves_the_former_adapter(base: BaseConfig, tmp_path: Path) -> None:
    former = save_trained(base, {"1": [1]}, attention=False, folder=tmp_path / "former")
    new = save_trained(base, GLM_EXPERTS, attention=False, folder=tmp_path / "adapter")
    source = export_adapter(new, "sglang", tmp_path / "sglang", base)
    written = import_adapter(source, tmp_path / "written", base)
    arguments = ["import", str(source), "--base", base.model, "--device", "cpu"]
    check_ends(former, written, tmp_path / "runs", arguments, least=15)
