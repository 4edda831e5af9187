"""A whole run: a stage runs when its inputs changed or its outputs were harmed, and only then."""

import json
from pathlib import Path

import pytest
import torch

from data_recipes.artefact import UserError, write_artefact, write_json
from finetune.config import RunConfig, load_run_config
from finetune.launch import stage_environment
from finetune.run import (
    STAGE_FUNCTIONS,
    STAGES,
    StageFunction,
    main,
    result_table,
    run,
    run_until,
)

ALL = ["data", "profile", "select", "train", "eval", "report"]
SMALLEST = "name: small\ndata: {recipe: recipe.yaml}\ntrain: {steps: 10, learning_rate: 1e-3}\n"


TASK = (
    "name: t\nversion: 1\nkind: generation\nlanguage: ta\nprompt: '{q}'\nanswer: '{a}'\nchecker: reference\n"
)
TASK_ROWS = "rows: {inline: [{q: one, a: ஒன்று}]}\n"


class Pipeline:
    """Six tiny stages: each writes what the real one writes, computed from what the real one reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: list[str] = []
        (folder / "recipe.yaml").write_text("{name: r, languages: [ta], seed: 3}")
        (folder / "run.yaml").write_text(SMALLEST)
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text("0.5")

    def config(self, *changes: str) -> RunConfig:
        fixed = [f"output={self.folder}/out", f"data.recipe={self.folder}/recipe.yaml"]
        return load_run_config(
            self.folder / "run.yaml", [*fixed, f"base.model={self.folder}/model", *changes]
        )

    def run(self, *changes: str) -> list[str]:
        """Run with these changes to the config; returns the stages that were not kept."""
        self.ran = []
        run(self.config(*changes), self.functions())
        return self.ran

    def functions(self) -> dict[str, StageFunction]:
        stages = (self.data, self.profile, self.select, self.train, self.eval, self.report)
        return dict(zip(ALL, stages, strict=True))

    def data(self, config: RunConfig) -> None:
        self.ran.append("data")
        rows = Path(config.data.recipe).read_text()
        write_artefact(
            Path(config.output) / "data" / "manifest.json", "dataset_manifest", {}, {"content_hash": rows}
        )

    def profile(self, config: RunConfig) -> None:
        self.ran.append("profile")
        manifest = json.loads((Path(config.output) / "data" / "manifest.json").read_text())
        read = {"rows": manifest["content_hash"], "max_tokens": config.profile.max_tokens}
        write_json(Path(config.output) / "profile.json", read)
        write_json(Path(config.output) / "profile.safetensors", read)

    def select(self, config: RunConfig) -> None:
        self.ran.append("select")
        # As in a real choice, a small change of the share may choose the same experts.
        profile = (Path(config.output) / "profile.json").read_text()
        plan = {"n_experts": round(config.select.share * 10), "profile": profile}
        write_json(Path(config.output) / "plan.json", plan)

    def train(self, config: RunConfig) -> None:
        self.ran.append("train")
        plan = (Path(config.output) / "plan.json").read_text()
        for name in ("adapter.safetensors", "metrics.jsonl", "train.json"):
            write_json(Path(config.output) / "adapter" / name, {"rank": config.lora.rank, "plan": plan})

    def eval(self, config: RunConfig) -> None:
        self.ran.append("eval")
        adapter = (Path(config.output) / "adapter" / "adapter.safetensors").read_text()
        write_json(Path(config.output) / "results.json", {"samples": config.eval.samples, "adapter": adapter})

    def report(self, config: RunConfig) -> None:
        self.ran.append("report")
        write_json(Path(config.output) / "report.json", {})
        (Path(config.output) / "report.html").write_text("<p>")
        (Path(config.output) / "report.md").write_text("#")


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path)


def test_the_table_holds_every_stage_in_order():
    assert [stage.name for stage in STAGES] == ALL
    assert list(STAGE_FUNCTIONS) == ALL


def test_a_second_run_keeps_everything_and_says_so(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]):
    assert pipeline.run() == ALL
    first = capsys.readouterr().out
    assert pipeline.run() == []
    second = capsys.readouterr().out.splitlines()
    assert [line.split()[1:] for line in first.splitlines()[:-1:2]] == [["started"]] * 6
    assert all("done in" in line for line in first.splitlines()[1:-1:2])
    assert second[:-1] == [f"{name:<9} unchanged, kept" for name in ALL]
    assert second[-1] == "seconds   data 0, profile 0, select 0, train 0, eval 0, report 0"


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("profile.max_tokens=9", ALL[1:]),
        ("select.share=0.9", ALL[2:]),
        ("select.share=0.51", ["select", "report"]),  # the same plan comes out; the report shows the config
        ("lora.rank=2", ALL[3:]),
        ("eval.samples=1", ALL[4:]),
        ("eval.gate.max_loss=0.1", ["report"]),  # the same answers; the report shows the config
        ("train.eval_every=7", ["train", "report"]),  # the same adapter comes out
        ("train.checkpoint.resume=changed", ["report"]),  # how a run is saved changes nothing of it
        ("data.overrides=[seed=9]", ["data", "report"]),  # the same rows come out
        ("seed=1", ALL),
        ("base.dtype=bfloat16", ["profile", "train", "eval", "report"]),
    ],
)
def test_a_changed_option_runs_its_stage_and_what_depends_on_its_files(
    pipeline: Pipeline, change: str, again: list[str]
):
    pipeline.run()
    assert pipeline.run(change) == again
    assert pipeline.run(change) == []


def test_a_changed_recipe_or_model_runs_what_reads_it(pipeline: Pipeline):
    pipeline.run()
    (pipeline.folder / "recipe.yaml").write_text("{name: r, languages: [ta], seed: 4}")
    assert pipeline.run() == ALL
    (pipeline.folder / "model" / "weights").write_text("0.6")
    assert pipeline.run() == ["profile", "train", "eval"]  # the same numbers come out: plan and report stand


@pytest.mark.parametrize(
    ("harmed", "again"),
    [
        ("data/manifest.json", ["data"]),
        ("plan.json", ["select"]),
        ("adapter/adapter.safetensors", ["train"]),
        ("report.html", ["report"]),
        (".stamps/eval.json", ["eval"]),
    ],
)
def test_a_harmed_or_lost_output_is_made_again(pipeline: Pipeline, harmed: str, again: list[str]):
    pipeline.run()
    file = pipeline.folder / "out" / harmed
    file.write_bytes(file.read_bytes()[:-3])
    assert pipeline.run() == again
    file.unlink()
    assert pipeline.run() == again
    assert pipeline.run() == []


def test_a_changed_row_of_a_task_compares_again(pipeline: Pipeline):
    task = pipeline.folder / "task.yaml"
    task.write_text(TASK + TASK_ROWS)
    change = f"eval.tasks=[{task}]"
    assert pipeline.run(change) == ALL
    assert pipeline.run(change) == []
    task.write_text(TASK + TASK_ROWS.replace("one", "1"))
    assert pipeline.run(change)[0] == "eval"


def test_replayed_rows_that_changed_train_again(pipeline: Pipeline):
    def rebuild(content_hash: str) -> None:
        replayed = pipeline.folder / "general" / "manifest.json"
        write_artefact(replayed, "dataset_manifest", {}, {"content_hash": content_hash})

    change = f"train.replay={{data: {pipeline.folder}/general, share: 0.5}}"
    rebuild("one")
    assert pipeline.run(change) == ALL
    assert pipeline.run(change) == []
    rebuild("another")
    assert "train" in pipeline.run(change)


def test_a_wrong_task_is_told_before_the_first_stage(pipeline: Pipeline):
    task = pipeline.folder / "task.yaml"
    task.write_text(TASK)
    with pytest.raises(UserError, match="there are no rows"):
        pipeline.run(f"eval.tasks=[{task}]")
    assert pipeline.ran == []
    with pytest.raises(UserError, match="tasks = .*there is no file missing.yaml"):
        pipeline.config("eval.tasks=[missing.yaml]")


def test_a_file_added_to_an_output_folder_makes_it_again(pipeline: Pipeline):
    pipeline.run()
    (pipeline.folder / "out" / "adapter" / "extra").write_text("1")
    assert pipeline.run()[0] == "train"


def test_a_stage_that_fails_is_run_again_and_those_before_it_are_kept(pipeline: Pipeline):
    pipeline.run()

    def fail(config: RunConfig) -> None:
        pipeline.select(config)
        raise UserError("nothing matched")

    pipeline.ran = []
    with pytest.raises(UserError, match="nothing matched"):
        run(pipeline.config("select.share=0.9"), {**pipeline.functions(), "select": fail})
    assert pipeline.ran == ["select"]
    assert pipeline.run("select.share=0.9") == ALL[2:]


def test_a_stage_that_wrote_nothing_is_an_error(pipeline: Pipeline):
    with pytest.raises(UserError, match=r"plan\.json"):
        run(pipeline.config(), {**pipeline.functions(), "select": lambda config: None})


def test_a_missing_recipe_is_named(pipeline: Pipeline):
    (pipeline.folder / "recipe.yaml").unlink()
    with pytest.raises(UserError, match=r"cannot read .*recipe\.yaml"):
        pipeline.run()
    assert pipeline.ran == []


def test_run_refuses_to_be_one_of_several_processes(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"train\.n_processes"):
        pipeline.run()
    assert pipeline.ran == []


def test_a_cpu_run_tells_accelerate_so(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert stage_environment("train", pipeline.config("base.device=cpu"))["ACCELERATE_USE_CPU"] == "true"
    assert "ACCELERATE_USE_CPU" not in stage_environment("train", pipeline.config("base.device=npu"))


def test_the_processes_of_a_profile_take_the_threads_of_one(pipeline: Pipeline):
    environment = stage_environment("profile", pipeline.config("base.device=cpu"))
    assert environment["OMP_NUM_THREADS"] == str(torch.get_num_threads())


def test_a_part_of_the_run_is_kept_by_the_whole_run(pipeline: Pipeline):
    seconds = run_until("select", pipeline.config(), pipeline.functions())
    assert list(seconds) == pipeline.ran == ["data", "profile", "select"]
    assert pipeline.run() == ["train", "eval", "report"]


def test_a_stage_that_there_is_not_is_named_with_those_there_are(pipeline: Pipeline):
    with pytest.raises(
        UserError, match="no stage 'plan' of a run: use data, profile, select, train, eval, report"
    ):
        run_until("plan", pipeline.config(), pipeline.functions())


def test_run_refuses_to_make_a_shard(pipeline: Pipeline):
    with pytest.raises(UserError, match=r"profile\.shard=2/8: `run` needs a whole profile.*profile-merge"):
        run(pipeline.config("profile.shard=2/8"), pipeline.functions())


@pytest.mark.slow
def test_a_failure_in_two_processes_is_told_and_ends_the_run(
    pipeline: Pipeline, capfd: pytest.CaptureFixture[str]
):
    config = pipeline.config("train.n_processes=2", "base.device=cpu")
    with pytest.raises(UserError, match="train stopped in one of its processes"):
        STAGE_FUNCTIONS["train"](config)
    captured = capfd.readouterr()  # with a captured stdout, as in a notebook, all goes there
    shown = captured.err + captured.out
    assert f"error: {config.output}/data/manifest.json does not exist" in shown
    assert "Traceback" not in shown


def test_the_table_shows_both_groups_with_their_intervals():
    target = {"base": 0.02, "tuned": 0.85, "difference": 0.83, "low": 0.79, "high": 0.8649, "n": 500}
    table = result_table({"exact_match": {"target": target, "general": {**target, "n": 0}}}).splitlines()
    assert table[0].split() == [
        "exact",
        "match",
        "base",
        "tuned",
        "difference",
        "95",
        "%",
        "interval",
        "rows",
    ]
    assert table[1].split() == ["target", "0.020", "0.850", "+0.830", "+0.790", "to", "+0.865", "500"]
    assert table[2].split() == ["general", "-", "-", "-", "-", "0"]
    assert len({len(line) for line in table}) == 1


def test_main_ends_with_the_table_and_the_path_of_the_report(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    score = {"base": 0.0, "tuned": 0.5, "difference": 0.5, "low": 0.4, "high": 0.6, "n": 10}

    def report(config: RunConfig) -> None:
        write_json(Path(config.output) / "report.json", {"exact_match": {"target": score, "general": score}})
        (Path(config.output) / "report.html").write_text("<p>")
        (Path(config.output) / "report.md").write_text("#")

    for name, function in {**pipeline.functions(), "report": report}.items():
        monkeypatch.setitem(STAGE_FUNCTIONS, name, function)
    config = pipeline.config()
    (pipeline.folder / "run.yaml").write_text(
        json.dumps(
            {"name": "a", "data": {"recipe": config.data.recipe}, "train": {"steps": 10, "learning_rate": 1}}
        )
    )
    changes = [f"output={config.output}", f"base.model={config.base.model}"]
    assert main([str(pipeline.folder / "run.yaml"), *changes]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == f"report: {config.output}/report.html"
    assert shown[-3].split() == ["general", "0.000", "0.500", "+0.500", "+0.400", "to", "+0.600", "10"]
