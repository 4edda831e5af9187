"""Real processes: one, two and three write the same bytes of profile.json and profile.safetensors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_routing import model, run_config  # noqa: F401, fixtures

from data_recipes.artefact import UserError, write_json
from data_recipes.settings import settings_dict
from finetune.config import RunConfig
from finetune.run import STAGE_FUNCTIONS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes"]


def profile(folder: Path, launcher: list[str], *changes: str) -> subprocess.CompletedProcess:
    line = [
        sys.executable,
        *launcher,
        "-m",
        "finetune.profiling.routing",
        "--config",
        str(folder / "config.yaml"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [*line, "profile.batch_size=2", *changes],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def written(config: RunConfig) -> list[bytes]:
    return [(Path(config.output) / name).read_bytes() for name in ("profile.json", "profile.safetensors")]


@pytest.fixture
def folder(run_config: RunConfig, tmp_path: Path) -> Path:  # noqa: F811
    write_json(tmp_path / "config.yaml", settings_dict(run_config))  # JSON is YAML
    return tmp_path


@pytest.mark.parametrize("rule", ["profile.stable_jaccard=null", "profile.stable_jaccard=0.6"])
def test_one_two_and_three_processes_write_the_same_bytes(
    run_config: RunConfig,  # noqa: F811
    folder: Path,
    rule: str,
) -> None:
    changes = (rule, "profile.check_tokens=60", "profile.stable_share=0.3")
    alone = profile(folder, [], *changes)
    assert alone.returncode == 0, alone.stderr
    expected = written(run_config)
    assert (b'"stable"' in expected[0]) == (rule[-1] == "6"), "the rule must end a language, or say nothing"
    launches = ((TORCHRUN, 2), (ACCELERATE, 2), (TORCHRUN, 3))
    for launcher, n in launches if rule.endswith("null") else launches[:1]:
        finished = profile(folder, [*launcher, str(n)], f"profile.n_processes={n}", *changes)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.count("profile   tokens") == 1, "only the first process speaks"
        assert written(run_config) == expected, f"{n} processes"


def test_run_starts_the_processes_and_tells_of_too_few_rows(
    run_config: RunConfig,  # noqa: F811
    folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    two = settings_dict(run_config)
    two["profile"] |= {"n_processes": 2, "batch_size": 32}
    write_json(folder / "two.yaml", two)
    from finetune.config import load_run_config

    STAGE_FUNCTIONS["profile"](load_run_config(folder / "two.yaml"))
    assert (Path(run_config.output) / "profile.json").exists()
    with pytest.raises(UserError, match="profile stopped in one of its processes"):
        STAGE_FUNCTIONS["profile"](load_run_config(folder / "two.yaml", ["profile.n_processes=3"]))
    shown = capfd.readouterr()  # with a captured stdout, as in a notebook, all goes there
    assert "there are 2 batches of rows for 3 processes" in shown.err + shown.out
