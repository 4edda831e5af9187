"""The bench: hand-made ratios, a step's arithmetic by PyTorch's own counter, a tiny run from end to end."""

import json
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data_recipes.artefact import UserError, read_artefact
from data_recipes.settings import load_settings
from finetune.adapters.adapter import adapter_parameters, record_routing
from finetune.benching.bench import BenchConfig, Worker, preset_path
from finetune.benching.bench_model import build_model, random_plan, send_rows, token_ids
from finetune.benching.bench_report import spread_of, summarise, table
from finetune.benching.bench_worker import Contestant, MatmulRate, PeakMemory, facts, prepare
from finetune.cli import main

TINY: dict[str, Any] = {
    "hidden": 32,
    "expert_width": 16,
    "experts": 16,
    "top_k": 2,
    "moe_layers": 2,
    "heads": 2,
    "vocabulary": 64,
    "tokens": 64,
    "length_tokens": 32,
    "rank": 2,
    "chosen": 4,
    "device": "cpu",
    "threads": 1,
    "rounds": 2,
    "steps_per_round": 1,
    "warmup_steps": 1,
    "matmul_size": 64,
}
EAGER = BenchConfig(**TINY, experts_implementation="eager")  # plain products, which PyTorch's counter sees
BYTES = {"adapter_bytes": 0, "gradient_bytes": 0, "optimizer_bytes": 0}


def tiny_file(folder: Path) -> str:
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(TINY), encoding="utf-8")  # JSON is YAML
    return str(path)


def turn(step_s: list[float], peak_bytes: int = 100, rate: float = 1.0) -> dict[str, Any]:
    """What a worker answers about a round; processor time is twice the wall time."""
    processor_s = [2 * seconds for seconds in step_s]
    return {
        "step_s": step_s,
        "processor_s": processor_s,
        "peak_bytes": peak_bytes,
        "matmul_flops_per_s": rate,
    }


@pytest.fixture
def contestants() -> dict[str, Contestant]:
    """The four that need no extra, on the tiny model with plain products, before their first step."""
    return {name: prepare(EAGER, name, EAGER.experts) for name in ("floor", "selected", "all", "peft_all")}


def test_a_ratio_is_the_median_of_ratios_within_a_round():
    # The machine is twice as slow in the second round and three times in the third: for all of them.
    rounds = [
        {
            "floor": turn([1.0, 1.0, 9.0]),
            "selected": turn([1.5]),
            "all": turn([2.0]),
            "peft_all": turn([4.5]),
        },
        {"floor": turn([2.0]), "selected": turn([4.0]), "all": turn([4.0]), "peft_all": turn([8.0])},
        {"floor": turn([3.0]), "selected": turn([3.0]), "all": turn([3.0]), "peft_all": turn([12.0])},
    ]
    report = summarise({name: {**BYTES, "flops": 3} for name in rounds[0]}, rounds, {})
    assert report["time"] == {
        "selected_over_floor": 1.5,  # of 1.5, 2, 1
        "all_over_floor": 2.0,  # of 2, 2, 1
        "peft_all_over_selected": 3.0,  # of 3, 2, 4
        "peft_all_over_all": 2.25,  # of 2.25, 2, 4
    }
    assert report["processor_time"] == report["time"]
    assert report["spread"]["time"]["selected_over_floor"] == {
        "median": 1.5,
        "min": 1.0,
        "max": 2.0,
        "low_quartile": 1.25,
        "high_quartile": 1.75,
        "n": 3,
    }
    # 3 FLOPs at a rate of 1 a second take 3 s at least; the three rounds took 1.5, 4 and 3 s.
    assert report["matmul_share"] == 1.0
    assert report["contestants"]["floor"]["step_s"]["n"] == 5
    assert "scaling" not in report


def test_memory_is_compared_by_median_peaks_and_with_what_expert_lora_must_keep():
    facts_of = {
        "floor": {"flops": 1, "adapter_bytes": 10, "gradient_bytes": 10, "optimizer_bytes": 20},
        "selected": {"flops": 1, "adapter_bytes": 15, "gradient_bytes": 15, "optimizer_bytes": 30},
        "peft_all": {**BYTES, "flops": 1},
    }
    peaks = {"floor": (200, 190, 900), "selected": (230, 230, 100), "peft_all": (400, 920, 460)}
    rounds = [{name: turn([1.0], peaks[name][i]) for name in peaks} for i in range(3)]
    memory = summarise(facts_of, rounds, {})["memory"]
    assert memory["selected_over_floor"] == 1.15
    assert memory["selected_over_peft_all"] == 0.5
    assert memory["selected_minus_floor_bytes"] == 30
    assert memory["expert_lora_bytes"] == {"adapter_bytes": 5, "gradient_bytes": 5, "optimizer_bytes": 10}
    assert memory["beyond_expert_lora_over_floor"] == 0.05  # (30 - 20) / 200


def test_scaling_is_the_change_of_the_price_from_one_number_of_experts_to_the_next():
    def rounds(floor: float, *selected: float) -> list[dict[str, Any]]:
        return [{"floor": turn([floor]), "selected": turn([seconds])} for seconds in selected]

    by_experts = {512: rounds(4.0, 4.75), 128: rounds(1.0, 1.5, 1.25, 2.0), 256: rounds(2.0, 3.0)}
    scaling = summarise(
        {name: {**BYTES, "flops": 1} for name in ("floor", "selected")}, by_experts[256], by_experts
    )["scaling"]
    price = {count: one["selected_minus_floor_s"]["median"] for count, one in scaling["experts"].items()}
    assert price == {"128": 0.5, "256": 1.0, "512": 0.75}
    assert scaling["change"] == {"128_to_256": 1.0, "256_to_512": -0.25}
    assert scaling["largest_change"] == 1.0


def test_the_spread_of_one_value_is_that_value():
    assert set(spread_of([2.5]).values()) == {2.5, 1}


@pytest.mark.parametrize("name", ["floor", "selected", "all"])
def test_counted_operations_are_those_that_pytorch_counts(name: str, contestants: dict[str, Contestant]):
    found = contestants[name]
    found.model.config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as counter:
        found.step()
    assert facts(EAGER, found, EAGER.experts)["flops"] == counter.get_total_flops()


def test_all_contestants_compute_the_same_model_and_all_have_the_floors_adapter(
    contestants: dict[str, Contestant],
):
    trained = {name: len(adapter_parameters(found.model)) for name, found in contestants.items()}
    counts = {name: facts(EAGER, found, EAGER.experts)["n_trainable"] for name, found in contestants.items()}
    with torch.no_grad():
        logits = [one.model(token_ids(EAGER)).logits for one in contestants.values()]
    for other in logits[1:]:  # B is zero before the first step
        torch.testing.assert_close(other, logits[0], atol=1e-6, rtol=0)
    # 3 layers x 5 projections; up and down of 2 layers; A and B of each.
    assert trained == {"floor": 30, "selected": 38, "all": 38, "peft_all": 38}
    inputs_and_outputs = (32 + 2 * 16) + (16 + 32)
    for name, n_experts in {"selected": 4, "all": 16, "peft_all": 16}.items():
        assert counts[name] - counts["floor"] == 2 * n_experts * EAGER.rank * inputs_and_outputs


@pytest.mark.parametrize("n_experts", [16, 32])
def test_routers_send_the_same_rows_to_chosen_experts_whatever_the_number_of_experts(n_experts: int):
    model, ids = build_model(EAGER, n_experts), token_ids(EAGER)
    plan = random_plan(model, EAGER.chosen, seed=0)
    n_rows = send_rows(model, plan, ids, EAGER.rows_share)
    with torch.no_grad(), record_routing(model) as routing:
        model(ids)
    assert n_rows == {
        index: sum(int((found == expert).sum()) for expert in plan["experts"][str(index)])
        for index, found in routing.items()
    }
    # A quarter of 64 tokens x 2; a router without ties misses it by nothing.
    assert n_rows == {1: 32, 2: 32}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can reset the peak")
def test_the_peak_holds_what_is_gone_again_until_it_is_reset():
    memory = PeakMemory(torch.device("cpu"))
    torch.ones(64 * 2**20 // 4).sum()
    peak = memory.over_before()
    assert 63 * 2**20 <= peak < 72 * 2**20  # the kernel counts a few pages late
    memory.reset()
    assert memory.over_before() < 8 * 2**20


def test_the_rate_of_products_is_a_positive_number():
    assert MatmulRate(EAGER).flops_per_s() > 0


def test_the_preset_is_the_setting_of_the_figures():
    config = load_settings(BenchConfig, preset_path("cpu"))
    wanted = {"hidden": 512, "expert_width": 256, "experts": 256, "top_k": 8, "tokens": 1024, "rank": 8}
    wanted |= {"chosen": 16, "threads": 2, "dtype": "float32", "scaling": (128, 512)}
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert config.rows_share == 1 / 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("chosen=17", "chosen = 17: must be at most experts (16)"),
        ("top_k=17", "top_k = 17: must be at most experts (16)"),
        ("scaling=[32, 3]", "scaling = (32, 3): every number must be at least chosen and top_k (4)"),
        ("tokens=65", "tokens = 65: must be a multiple of length_tokens (32)"),
        ("expert_width=20", "hidden = 32: must be a multiple of 8, and expert_width too"),
        ("chosen_share=1.5", "chosen_share = 1.5: must be above 0 and at most 1 (chosen / top_k, or 1)"),
        (
            "contestants=[floor, floor]",
            "contestants = ('floor', 'floor'): must name at least one, and each once",
        ),
        ("warmup_steps=0", "warmup_steps = 0: must be at least 1"),
    ],
)
def test_a_bad_size_is_one_message(
    change: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["bench", "--config", tiny_file(tmp_path), change]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: 1 problem in the settings"
    assert [line.partition(": ")[2] for line in lines[1:]] == [message]


def test_scaling_without_its_two_contestants_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    changes = ["contestants=[floor, all]", "scaling=[32]"]
    assert main(["bench", "--config", tiny_file(tmp_path), *changes]) == 2
    assert "scaling = (32,): needs selected and floor among the contestants" in capsys.readouterr().err


def test_an_unknown_preset_and_a_name_without_json_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["bench", "--preset", "gpu"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no preset 'gpu': presets are cpu, memory; or give --config FILE\n"
    )
    assert main(["bench", "--config", tiny_file(tmp_path), "--json", "numbers.svg"]) == 2
    assert "--json numbers.svg: give a name that ends in .json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "was killed; if nobody did, the machine ran out of memory"),
        (signal.SIGTERM, "exit code -15"),
    ],
)
def test_a_process_that_ends_is_named(number: signal.Signals, message: str):
    worker = Worker(EAGER, "floor", EAGER.experts)
    worker.process.send_signal(number)
    with pytest.raises(UserError, match=f"the bench's process of floor .*{message}"):
        worker.steps(1)
    worker.stop()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes as Linux shows them")
def test_a_terminated_bench_ends_its_workers_in_the_midst_of_a_step(tmp_path: Path):
    line = [sys.executable, "-m", "finetune.cli", "bench", "--config", tiny_file(tmp_path)]
    changes = ["contestants=[floor]", "steps_per_round=1000000"]
    bench = subprocess.Popen([*line, *changes], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert bench.stderr is not None
    said = ""
    while "rounds" not in said:  # the bar is drawn when the worker has answered
        said += bench.stderr.read(1) or pytest.fail(said)
    time.sleep(1.0)  # until it has begun its steps
    children = Path(f"/proc/{bench.pid}/task/{bench.pid}/children").read_text().split()
    assert len(children) == 1
    bench.terminate()
    bench.communicate(timeout=60)
    assert bench.returncode == 128 + signal.SIGTERM
    assert not Path(f"/proc/{children[0]}").exists()


@pytest.mark.slow
def test_a_worker_that_fails_hands_its_message_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    changes = ["device=warp", "contestants=[floor]"]
    assert main(["bench", "--config", tiny_file(tmp_path), *changes]) == 2
    assert "error: the bench's process of floor failed: device is 'warp'" in capsys.readouterr().err


def check_report(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What holds for every report, whoever took part; the printed table and the plot are there too."""
    report = read_artefact(path, "bench")
    assert set(report["left_out"]) == (set() if find_spec("trl") else {"trl_peft_all"})
    assert report["settings"]["experts"] == 16
    assert report["machine"]["cores"] >= 1 and report["versions"]["torch"]
    assert report["memory"]["expert_lora_bytes"]["adapter_bytes"] == 2 * 4 * 2 * (64 + 48) * 4
    for found in report["contestants"].values():
        assert found["step_s"]["n"] == found["processor_s"]["n"] == found["peak_bytes"]["n"] == 2
        assert found["first_loss"] == report["contestants"]["floor"]["first_loss"]
        assert found["threads"] == 1
    assert report["contestants"]["selected"]["chosen_rows"] == 64
    printed = capsys.readouterr().out
    assert table(report) in printed
    assert f"{report['time']['selected_over_floor']:.3f}" in printed
    assert path.with_suffix(".svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")
    return report


def test_a_tiny_bench_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    changes = ["contestants=[floor, selected, trl_peft_all]", f"rounds={TINY['rounds']}"]
    path = tmp_path / "bench.json"
    assert main(["bench", "--config", tiny_file(tmp_path), "--json", str(path), *changes]) == 0
    report = check_report(path, capsys)
    assert report["time"]["selected_over_floor"] > 0 and report["matmul_share"] > 0


@pytest.mark.slow
def test_the_whole_bench_has_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "bench.json"
    assert main(["bench", "--config", tiny_file(tmp_path), "--json", str(path), "scaling=[32, 16]"]) == 0
    report = check_report(path, capsys)
    names = {"selected_over_floor", "all_over_floor", "peft_all_over_selected", "peft_all_over_all"}
    assert set(report["time"]) - {"trl_peft_all_over_selected"} == names
    assert set(report["processor_time"]) == set(report["time"])
    assert report["memory"]["selected_over_peft_all"] > 0
    assert set(report["scaling"]["experts"]) == {"16", "32"}
    assert set(report["scaling"]["change"]) == {"16_to_32"}
