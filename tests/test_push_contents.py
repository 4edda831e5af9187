"""What a push would send of a run: the cards, the scores, and what is refused before the Hub is asked."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from finished_run import HUB_BASE, compared, made_up_results, save_data, save_results, save_run
from huggingface_hub import ModelCard, parse_eval_result_entries
from tuned_bases import save_base

from data_recipes.artefact import UserError, read_artefact, sha256_file, write_json
from finetune.cli import main
from finetune.config import BaseConfig
from finetune.hub.contents import WHAT, Wanted
from finetune.hub.leaks import environment_secrets, machine_folders, refuse_leaks
from finetune.hub.push import prepare
from finetune.hub.scores import eval_results_yaml, model_index

PLAIN = Wanted("ann/tuned", formats=("ours",))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from conftest import build_tiny_model, build_tiny_tokenizer

    top = tmp_path_factory.mktemp("contents")
    base = save_base(build_tiny_model(vocab_size=262), build_tiny_tokenizer(), top / "private-base")
    return SimpleNamespace(folder=save_run(top / "run", base), base=base)


@pytest.fixture
def run(whole: Any, tmp_path: Path) -> Any:
    """A copy of the finished run that a test may change."""
    shutil.copytree(whole.folder, tmp_path / "run")
    save_results(tmp_path / "run", whole.base)
    return SimpleNamespace(folder=tmp_path / "run", base=whole.base)


def prepared(run: Any, wanted: Wanted = PLAIN, hub_base: str | None = HUB_BASE) -> dict[str, dict[str, Path]]:
    """Repository -> path there -> path here."""
    contents = prepare(run.folder, wanted, run.base, hub_base)
    return {repository.name: {file.name: file.path for file in files} for repository, files in contents}


def changed(path: Path, **values: Any) -> None:
    write_json(path, json.loads(path.read_text()) | values)


def test_the_card_says_what_the_files_say_as_the_hub_reads_it(run: Any):
    files = prepared(run, replace(PLAIN, formats=("ours", "peft"), licence="apache-2.0"))["ann/tuned"]
    card = ModelCard.load(files["README.md"])
    metadata: Any = card.data
    assert metadata.base_model == HUB_BASE
    assert metadata.base_model_relation == "adapter"
    assert (metadata.library_name, metadata.license) == ("peft", "apache-2.0")
    assert metadata.language == ["hi", "ur"]
    assert metadata.datasets == ["ann/tuned-data"]
    scores = {(one.dataset_config, one.metric_type): one for one in metadata.eval_results}
    assert sorted(scores) == [
        ("general", "exact_match"),
        ("general-en", "exact_match"),
        ("target", "bits_per_byte"),
        ("target", "exact_match"),
        ("target-hi", "exact_match"),
    ]
    lost = scores["general-en", "exact_match"]
    assert lost.metric_value == 0.75
    assert {key: lost.metric_args[key] for key in ("base", "low", "high", "n")} == {
        "base": 0.875,
        "low": -0.25,
        "high": -0.0625,
        "n": 24,
    }
    for text in (
        "3 of 16, chosen by `token_share` at share 0.5; by layer: 1: 2, 2: 1",
        "rank 3, alpha 6; 1,008 parameters",
        "20 steps, 900 tokens, loss 3 to 1",
        "| exact match by checker | Hindi, target rows | 0.25 | 0.75 | +0.5 | +0.25 to +0.625 | 40 |",
        "CC-BY-4.0 (4 rows), Unicode-3.0 (1 row)",
        "Made-up Chats by A. Author and B. Author",
        "Got worse, exact match by checker: all general rows -0.125 (n = 24), English, general rows -0.125",
        'PeftModel.from_pretrained(model, "ann/tuned")',
    ):
        assert text in card.text
    assert "vllm" not in card.text.lower()  # of what was not exported nothing is promised


def test_rows_that_are_on_the_hub_already_are_named_in_card_and_scores(run: Any):
    wanted = replace(PLAIN, what=("adapter",))
    assert sorted(prepared(run, wanted)) == ["ann/tuned"]
    assert ".eval_results/local-experts.yaml" not in prepared(run, wanted)["ann/tuned"]
    files = prepared(run, replace(wanted, dataset="bob/rows"))["ann/tuned"]
    card: Any = ModelCard.load(files["README.md"])
    assert card.data.datasets == ["bob/rows"]
    scores = parse_eval_result_entries(yaml.safe_load(files[".eval_results/local-experts.yaml"].read_text()))
    assert {one.dataset_id for one in scores} == {"bob/rows"}


def test_the_runs_config_says_where_its_folder_is(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    smallest = {"name": "small", "data": {"recipe": "a.yaml"}, "train": {"steps": 1, "learning_rate": 0.1}}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(smallest | {"base": {"model": run.base.model}}))
    line = [
        "push",
        "--config",
        str(config),
        f"output={run.folder}",
        "--repo",
        "ann/tuned",
        "--base",
        HUB_BASE,
    ]
    assert main([*line, "--what", "dataset", "--dry-run", "--public"]) == 0
    assert capsys.readouterr().out.startswith("dataset  ann/tuned-data  PUBLIC, ")


def test_scores_are_read_back_by_the_library_as_they_were():
    text = eval_results_yaml(made_up_results(), "ann/rows")
    read = parse_eval_result_entries(yaml.safe_load(text))
    assert len(read) == 5
    assert {(one.dataset_id, one.task_id): one.value for one in read} == {
        ("ann/rows", "exact_match_target"): 0.75,
        ("ann/rows", "exact_match_target_hi"): 0.75,
        ("ann/rows", "exact_match_general"): 0.75,
        ("ann/rows", "exact_match_general_en"): 0.75,
        ("ann/rows", "bits_per_byte_target"): 1.5,
    }
    assert read[3].notes == "base 0.875, difference -0.125 (-0.25 to -0.0625), n = 24; 95 % paired bootstrap"


def test_tasks_are_in_the_index_and_the_card_with_their_names(run: Any):
    results = read_artefact(run.folder / "results.json", "eval_results")
    score = compared(0.5, 0.25, -0.5, -0.125, 16)
    tables = {
        "exact_match": {"all": score, "by_language": {"hi": score}},
        "chrf": {"target": score, "general": None},
    }
    changed(run.folder / "results.json", tasks={"quiz": {"version": 2, "metrics": tables}})
    changed(run.folder / "report.json", inputs={"results.json": sha256_file(run.folder / "results.json")})
    (index,) = model_index(results | {"tasks": {"quiz": {"metrics": tables}}}, "tuned", None)
    assert [one["dataset"]["config"] for one in index["results"]][-3:] == [
        "quiz-all",
        "quiz-all-hi",
        "quiz-target",
    ]
    text = prepared(run)["ann/tuned"]["README.md"].read_text()
    line = "0.5 | 0.25 | -0.25 | -0.5 to -0.125 | 16 |"
    assert f"| exact match by checker | quiz, Hindi, rows | {line}" in text
    assert "Got worse, chrF++: quiz, all target rows -0.25 (n = 16)." in text


def test_no_file_that_goes_names_a_folder_of_this_machine(run: Any):
    every = prepared(run, replace(PLAIN, formats=("ours", "peft")))
    sent = {name: path.read_bytes() for files in every.values() for name, path in files.items()}
    assert len(sent) > 20
    for place in (run.base.model, str(run.folder), "private-base"):
        assert place.encode() in (run.folder / "report.html").read_bytes()
        assert [name for name, content in sent.items() if place.encode() in content] == []
    report = json.loads(sent["report/report.json"])
    assert report["config"]["base"]["model"] == HUB_BASE
    # The chain of hashes holds in what is published too.
    assert report["inputs"]["results.json"] == hashlib.sha256(sent["report/results.json"]).hexdigest()
    assert report["inputs"]["results.json"] in sent["report/report.html"].decode()


def test_a_base_in_a_folder_needs_its_name_on_the_hub(run: Any):
    with pytest.raises(UserError, match="is a folder of this machine.*say what it is on the Hub with --base"):
        prepared(run, hub_base=None)
    with pytest.raises(UserError, match="--base 'my base' is no name on the Hub"):
        prepared(run, hub_base="my base")


def test_a_base_named_by_a_bare_word_is_refused_where_the_word_would_be_replaced(
    run: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(Path(run.base.model).parent)
    bare = SimpleNamespace(folder=run.folder, base=replace(run.base, model="private-base"))
    save_results(run.folder, bare.base)
    with pytest.raises(
        UserError, match="cannot be told from a word in the report.*base.model=./private-base"
    ):
        prepared(bare)
    relative = SimpleNamespace(folder=run.folder, base=replace(run.base, model="./private-base"))
    save_results(run.folder, relative.base)
    report = prepared(relative)["ann/tuned"]["report/report.html"].read_text()
    assert report.startswith(f"<p>{HUB_BASE}: glm_moe_dsa")


def test_the_shipped_base_is_named_and_its_folder_is_not(run: Any):
    shipped = SimpleNamespace(folder=run.folder, base=BaseConfig(model="tiny-glm"))
    save_results(run.folder, shipped.base)
    card = ModelCard.load(prepared(shipped, hub_base=None)["ann/tuned"]["README.md"])
    assert "base_model" not in card.data.to_dict()
    assert 'SHIPPED_MODELS["tiny-glm"]' in card.text


def test_an_unfinished_run_is_refused_with_the_stage_that_is_missing(run: Any):
    for name, stage in {
        "report.html": "report",
        "report.json": "report --config",
        "results.json": "eval --config",
        "adapter/train.json": "train --config",
        "adapter/adapter_config.json": "train --config",
        "data/manifest.json": "data RECIPE",
    }.items():
        (run.folder / name).unlink()
        with pytest.raises(UserError, match=f"{Path(name).name} does not exist.*local-experts {stage}"):
            prepared(run)


@pytest.mark.parametrize("name", ["adapter/adapter.safetensors", "data/train/data-00000-of-00001.arrow"])
def test_a_damaged_file_is_not_sent(name: str, run: Any):
    content = (run.folder / name).read_bytes()
    (run.folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{Path(name).name} is damaged"):
        prepared(run)


def test_files_of_two_runs_are_refused(run: Any):
    changed(run.folder / "results.json", rows=[])
    with pytest.raises(UserError, match="report.json shows other results"):
        prepared(run)
    results = read_artefact(run.folder / "results.json", "eval_results")
    changed(run.folder / "results.json", inputs=results["inputs"] | {"adapter": "0" * 64})
    with pytest.raises(
        UserError, match=r"results.json was made with another adapter: run `local-experts eval`"
    ):
        prepared(run)
    changed(run.folder / "adapter" / "train.json", inputs={"data": "0" * 64})
    with pytest.raises(UserError, match="adapter was trained on other data"):
        prepared(run)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"recipe": {"languages": ["hi"], "private": True}}, "says private: true"),
        ({"licences": {"CC-BY-ND-4.0": 5}}, "CC-BY-ND-4.0"),
        ({"licences": {"MIT AND LicenseRef-newspaper": 5}}, "LicenseRef-newspaper"),
        ({"licences": {"": 5}}, "no licence"),
    ],
)
def test_rows_that_may_not_be_passed_on_are_not_sent_and_the_adapter_can_be(
    manifest: dict[str, Any], message: str, run: Any
):
    shutil.rmtree(run.folder / "data")
    save_data(run.folder / "data", **manifest)
    for what in (("dataset",), ("report",), WHAT):
        with pytest.raises(UserError, match=f"{message}.*--what adapter"):
            prepared(run, replace(PLAIN, what=what))
    assert "report/report.html" not in prepared(run, replace(PLAIN, what=("adapter",)))["ann/tuned"]


def test_a_licence_that_the_user_may_pass_on_is_said_by_name(run: Any):
    shutil.rmtree(run.folder / "data")
    save_data(
        run.folder / "data", licences={"LicenseRef-newspaper": 4, "CC-BY-NC-4.0 OR LicenseRef-other": 1}
    )
    assert prepared(run, replace(PLAIN, may_publish=("LicenseRef-newspaper",)))["ann/tuned-data"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("hf_" + "Ab1" * 11, "a Hugging Face token"),
        ("sk-" + "a1" * 20, "an OpenAI or Anthropic key"),
        ("AKIA" + "Z" * 16, "an AWS key"),
        ("ghp_" + "a" * 36, "a GitHub token"),
        ("-----BEGIN OPENSSH " + "PRIVATE KEY-----", "a private key"),
        ("correct horse battery", r"the value of \$MY_DATABASE_PASSWORD"),
    ],
)
def test_a_secret_in_a_file_stops_the_push_and_is_not_shown(
    content: str, what: str, run: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MY_DATABASE_PASSWORD", "correct horse battery")
    (run.folder / "adapter" / "metrics.jsonl").write_text(json.dumps({"note": content}))
    with pytest.raises(
        UserError, match=f"nothing was sent.*\n  local-experts/metrics.jsonl: {what}\n"
    ) as raised:
        prepared(run)
    assert content not in str(raised.value)


def test_pickles_and_paths_stop_the_push_all_listed(run: Any):
    (run.folder / "data" / "rows.pkl").write_bytes(b"x")
    (run.folder / "data" / "notes.json").write_text(json.dumps({"at": str(run.folder)}))
    elsewhere = run.folder.parent / "corpus"
    elsewhere.mkdir()
    (run.folder / "data" / "source.json").write_text(json.dumps({"recipe": {"path": str(elsewhere)}}))
    with pytest.raises(UserError) as raised:
        prepared(run)
    lines = str(raised.value).splitlines()
    assert lines[1:5] == [
        f"  notes.json: the folder {run.folder} of this machine",
        f"  notes.json: the path {run.folder} of this machine",
        "  rows.pkl: a pickle or array file, which can run code when it is loaded",
        f"  source.json: the path {elsewhere} of this machine",
    ]


def test_a_secret_that_lies_across_two_windows_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("finetune.hub.leaks.WINDOW_BYTES", 64)
    token = "hf_" + "Ab1" * 11
    for n_before in range(40, 90):
        (tmp_path / "f.txt").write_text(" " * n_before + token + " " * 70)
        with pytest.raises(UserError, match="a Hugging Face token"):
            refuse_leaks({"f.txt": tmp_path / "f.txt"}, {}, [])


def test_what_is_no_secret_is_no_finding(tmp_path: Path):
    environment = {"TOKENIZERS_PARALLELISM": "false", "SSH_KEY": str(tmp_path), "EDITOR": "a long value"}
    assert environment_secrets(environment, None) == {}
    (tmp_path / "f.md").write_text("open /data/notes, hf_short, and /srv/ab elsewhere, or /usr/bin")
    refuse_leaks({"f.md": tmp_path / "f.md"}, {}, ["/srv/a"])
    assert machine_folders([Path("/"), Path("/data"), tmp_path]) == [str(tmp_path)]


@pytest.mark.parametrize(
    "form", ["read {}.", "{}, and", "file://{}", "local:{}", "({})", '"{}"', "{}/", "see {}..."]
)
@pytest.mark.parametrize("name", ["corpus", "मेरा-लेख", "données.v2"])
def test_a_path_of_this_machine_is_seen_however_it_stands_in_a_text(form: str, name: str, tmp_path: Path):
    folder = tmp_path / name
    folder.mkdir()
    (tmp_path / "f.md").write_text(form.format(folder), encoding="utf-8")
    with pytest.raises(UserError, match=f"f.md: the path {re.escape(str(folder))} of this machine"):
        refuse_leaks({"f.md": tmp_path / "f.md"}, {}, [])


@pytest.mark.parametrize(
    "path", ["/{home}/asha/corpus", "/{users}/Asha Rao/x", "file:///{home}/आशा/corpus.", "/{home}/asha"]
)
def test_a_home_folder_of_another_machine_is_refused_where_no_row_speaks_of_it(path: str, tmp_path: Path):
    (tmp_path / "f.json").write_text(
        json.dumps({"from": path.format(home="home", users="Users")}, ensure_ascii=False), encoding="utf-8"
    )
    own = ("report/report.json", "results.json", "plan.json", "manifest.json", "local-experts/metrics.jsonl")
    for name in (*own, "adapter_config.json"):
        with pytest.raises(UserError, match=f"{name}: the home folder /(home|Users)/[^/ ]+ of a machine"):
            refuse_leaks({name: tmp_path / "f.json"}, {}, [])
    for name in ("README.md", "train.jsonl", "data/test.jsonl", "report/report.html", "report/rows.jsonl"):
        refuse_leaks({name: tmp_path / "f.json"}, {}, [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--repo", "a/b/c"], "--repo 'a/b/c' is no name on the Hub: write it as OWNER/NAME"),
        (["--repo", "tuned", "--dry-run"], "--repo 'tuned' is no name on the Hub"),
        (["--dry-run"], "--repo 'run' is no name on the Hub: write it as OWNER/NAME"),
        (["--repo", "tuned"], "HF_HUB_OFFLINE is set, so nothing can be pushed: unset it"),
        (["--repo", "ann/tuned"], "HF_HUB_OFFLINE is set"),
        (["--repo", "ann/tuned", "seed=1"], "'seed=1' is a change to a config: say --config FILE, not --run"),
    ],
)
def test_a_bad_command_is_one_line(
    line: list[str], message: str, whole: Any, capsys: pytest.CaptureFixture[str]
):
    assert main(["push", "--run", str(whole.folder), *line]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
