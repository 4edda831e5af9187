"""The report of a made-up run: its sentences, a page without outside requests, its figures."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up_profiles import made_up_profile
from made_up_run import HOSTILE, LAYERS, N_EXPERTS, SETTINGS, made_up_results, write_run

from data_recipes.artefact import UserError, read_artefact, write_artefact
from data_recipes.publishing.page_frame import COLOURS, cut_text
from data_recipes.translate.endpoint_options import EndpointConfig
from eval.page import comparison_cells
from eval.report import finding, main, model_note, report_stage, shown_config
from eval.samples import choose_samples
from finetune.config import DataConfig, RunConfig
from finetune.eval_options import ContestantConfig, EvalConfig
from finetune.profiling.profile import write_profile
from finetune.training_options import TrainConfig

VOID = {"meta", "br", "path", "use", "rect", "image", "hr"}
COMPARISON = {"base", "tuned", "difference", "low", "high", "n"}
COMPARISON |= {"p", "p_holm", "p_bootstrap", "test", "verdict"}
HEADER = {"kind", "schema", "inputs", "versions"}


@pytest.fixture
def run_folder(tmp_path):
    """A run that a test may spoil."""
    return write_run(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with its report, drawn once for all tests that only look."""
    return report_stage(write_run(tmp_path_factory.mktemp("finished")))


@pytest.fixture
def page_text(finished):
    return finished.read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a browser would load, which ids it would see, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.loaded, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.note(attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.note(attrs)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def note(self, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        loading = ("src", "href", "xlink:href", "srcset", "action", "data", "poster")
        self.loaded += [value for name, value in attrs if name in loading]


def test_report_json_holds_what_the_contract_names(finished):
    report = read_artefact(finished.with_suffix(".json"), "report")
    for metric in ("exact_match", "chrf", "bits_per_byte", "script_share"):
        for group in ("target", "general"):
            assert set(report[metric][group]) == COMPARISON
    assert report["exact_match"]["target"]["difference"] == 1
    assert report["exact_match"]["general"]["difference"] == 0
    assert set(report["by_task"]["exact_match"]["target"]) == {"date", "unit"}
    assert set(report["by_language"]["chrf"]["target"]) == {"ta", "ur"}
    assert (report["plan"]["n_chosen"], report["plan"]["n_experts"]) == (6, 24)
    assert report["plan"]["mean_coverage"]["ta"] == pytest.approx(0.6)
    assert report["training"]["n_trainable"] == 1234
    assert set(report["inputs"]) == {
        "results.json",
        "profile.json",
        "adapter/plan.json",
        "adapter/train.json",
    }


def test_the_page_is_the_same_bytes_each_time_and_small(finished, tmp_path):
    again = report_stage(write_run(tmp_path))
    first, second = (page.read_bytes().replace(str(page.parent).encode(), b"") for page in (finished, again))
    assert first == second
    assert len(first) < 400_000
    assert list(tmp_path.glob(".*")) == []


def test_the_page_asks_for_nothing_outside_itself(page_text):
    page = Page(page_text)
    assert len(page.loaded) > 20  # the marks of the figures refer to shapes in the page
    assert [value for value in page.loaded if not value.startswith(("#", "data:image/png;base64,"))] == []
    assert re.findall(r"url\((?!#)|@import|@font-face", page_text) == []
    assert {"script", "link", "iframe", "object"} & set(page.tags) == set()
    assert len(page.ids) == len(set(page.ids)) > 50
    assert {value[1:] for value in page.loaded if value.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page_text)) <= set(page.ids)


def test_answers_are_shown_as_text_whatever_they_hold(page_text):
    page = Page(page_text)
    assert "<script" not in page_text and "<b>" not in page_text
    assert HOSTILE in "".join(page.text)
    assert re.search(r"Question \d+ <b>&amp;</b>", "".join(page.text))
    assert '<dd lang="ta-Taml" dir="ltr">15 ஆகஸ்ட், 1947</dd>' in page_text
    assert '<dd lang="ur-Arab" dir="rtl">15 اگست، 1947</dd>' in page_text
    assert page_text.count("✗ wrong") == 6 and page_text.count("✓ right") == 6 + 2 * 2


def test_figures_hold_no_indic_text_and_follow_the_theme(page_text):
    figures = re.findall(r"<svg.*?</svg>", page_text, flags=re.DOTALL)
    # Change by language, gain by task, forgetting, loss; routing of both roles, difference, coverage, tree;
    # and the two target languages apart.
    assert len(figures) == 4 + 5 + 2
    for svg in figures:
        assert re.findall(r"[\u0600-\u1cff]", svg) == []
        assert "var(--ink)" in svg and 'role="img" aria-label="' in svg
        assert not any(light in svg for light, _ in COLOURS.values())
    style = page_text[: page_text.index("</style>")]
    for name, (light, dark) in COLOURS.items():
        assert f"--{name}: {light};" in style and f"--{name}: {dark};" in style


def test_a_report_says_who_a_contestant_is_and_not_at_which_address(tmp_path):
    address = EndpointConfig(
        base_url="https://llm.inside.example/v1", model="glm-5.2", key_variable="OUR_KEY"
    )
    asked = {"hosted": ContestantConfig(kind="endpoint", endpoint=address)}
    train = TrainConfig(steps=1, learning_rate=0.1)
    run = RunConfig(name="x", data=DataConfig(recipe="x"), train=train, eval=EvalConfig(contestants=asked))
    shown = shown_config(run)
    assert shown["eval"]["contestants"]["hosted"]["model"] == "glm-5.2"
    assert not {"inside", "OUR_KEY"} & set(re.findall(r"\w+", json.dumps(shown)))


def test_finding_says_direction_interval_and_rows():
    def exact_match(low, high, verdict):
        found = {
            "verdict": verdict,
            "base": 0.25,
            "tuned": 0.5,
            "difference": (low + high) / 2,
            "low": low,
            "high": high,
            "n": 1200,
        }
        return {"target": found, "general": None, "by_language": {"target": {"ta": found, "hi": found}}}

    rose = finding(exact_match(0.2, 0.3, "gain"))["target"]
    assert rose == (
        "On 1,200 held-out target rows (Tamil, Hindi) exact match rose from 0.250 to 0.500, "
        "difference +0.250 (95 % interval +0.200 to +0.300)."
    )
    assert "fell from" in finding(exact_match(-0.3, -0.2, "loss"))["target"]
    unseen = finding(exact_match(-0.01, 0.02, "no difference seen"))["target"]
    assert "did not change measurably: from" in unseen
    unclear = finding(exact_match(-0.1, 0.2, "too few rows to tell"))["target"]
    assert "shows no change that so few rows can tell from chance: from" in unclear
    assert "no held-out general rows" in finding(exact_match(0.1, 0.2, "gain"))["general"]


def test_a_small_model_is_said_to_show_mechanics_only():
    assert "12.0 M parameters" in model_note(SETTINGS)
    assert "nothing about quality at the 744 B" in model_note(SETTINGS)
    large = model_note({**SETTINGS, "n_parameters": 30_500_000_000})
    assert "30.5 B parameters" in large and "744" not in large


def test_numbers_carry_sign_and_no_negative_zero():
    found = {"base": 0.5, "tuned": 0.4, "difference": -0.1, "low": -0.2, "high": -0.0001, "n": 1234}
    cells = comparison_cells(found, "exact_match")
    assert cells["difference"] == "\N{MINUS SIGN}0.100"
    assert cells["interval"] == "\N{MINUS SIGN}0.200 to 0.000"
    assert (cells["rows"], cells["p"], cells["verdict"]) == ("1,234", "–", "not judged")
    judged = comparison_cells({**found, "p_holm": 0.0004, "verdict": "loss"}, "exact_match")
    assert (judged["p"], judged["verdict"], judged["class"]) == ("<0.001", "loss", "worse")


def test_samples_are_drawn_by_the_seed_for_every_task():
    rows = made_up_results()["rows"]
    shown = choose_samples(rows, 2, seed=0)
    assert [(rows[i]["group"], rows[i]["task"]) for i in shown] == [
        ("target", "date"),
        ("target", "date"),
        ("target", "unit"),
        ("target", "unit"),
        ("general", "date"),
        ("general", "unit"),
    ]
    assert shown == choose_samples(rows, 2, seed=0)
    assert any(choose_samples(rows, 2, seed=seed) != shown for seed in range(1, 5))
    assert choose_samples(rows, 0, seed=0) == []


def test_every_language_is_among_the_samples():
    rows = [
        {"group": "target", "task": "date", "language": language}
        for language in ("ta", "ur", "ks", "sd", "brx")
        for _ in range(5)
    ]
    chosen = choose_samples(rows, 1, seed=0)
    assert len(chosen) == 5 == len({rows[i]["language"] for i in chosen})


def test_a_run_without_general_rows_has_a_report(run_folder):
    folder = Path(run_folder.output)
    results = read_artefact(folder / "results.json", "eval_results")
    for metric in results["metrics"].values():
        metric["general"] = None
        for by in ("by_task", "by_language", "by_kind"):
            metric[by].pop("general")
    body = {key: results[key] for key in ("rows", "metrics", "signatures", "settings")}
    write_artefact(folder / "results.json", "eval_results", results["inputs"], body)
    text = report_stage(run_folder).read_text(encoding="utf-8")
    assert "no held-out general rows" in text
    assert "Forgetting" not in text


def test_routing_stands_in_the_page_with_its_words(page_text):
    titles = re.findall(r"<h3>([^<]*)</h3>", page_text)
    assert [title for title in titles if "outing" in title] == [
        "Routing of the base, target rows",
        "Routing of the base, general rows",
        "Routing, target minus general",
    ]
    assert titles[-2:] == ["Tamil (target)", "Urdu (target)"]
    assert "<summary>Routing of each language</summary>" in page_text
    described = re.findall(r'aria-label="([^"]*)"', page_text)
    assert any(text.startswith("Which languages are routed alike. The further left") for text in described)


def test_a_plan_without_experts_has_a_report(run_folder):
    plan = read_artefact(Path(run_folder.output) / "adapter" / "plan.json", "expert_plan")
    plan |= {"method": "none", "experts": {}, "borderline": {}}
    inputs, body = plan["inputs"], {key: plan[key] for key in plan.keys() - HEADER}
    write_artefact(Path(run_folder.output) / "adapter" / "plan.json", "expert_plan", inputs, body)
    text = report_stage(run_folder).read_text(encoding="utf-8")
    assert "none: attention or shared experts only" in text


def test_a_plan_chosen_from_another_profile_is_refused(run_folder):
    counts = {"ta": np.ones((len(LAYERS), N_EXPERTS), dtype=int)}
    write_profile(Path(run_folder.output) / "profile.json", made_up_profile(counts, ["ta"], LAYERS), {})
    with pytest.raises(UserError, match="not the profile that .* run `local-experts select`"):
        report_stage(run_folder)


def test_a_missing_part_of_the_profile_is_named(run_folder):
    (Path(run_folder.output) / "profile.safetensors").unlink()
    with pytest.raises(UserError, match=r"profile\.safetensors is missing .* `local-experts profile` again"):
        report_stage(run_folder)


def test_results_of_another_adapter_are_refused(run_folder):
    write_artefact(
        Path(run_folder.output) / "adapter" / "adapter_config.json", "expert_adapter", {}, {"rank": 4}
    )
    with pytest.raises(UserError, match="made with another adapter"):
        report_stage(run_folder)


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("results.json", "local-experts eval"),
        ("profile.json", "local-experts profile"),
        ("adapter/train.json", "local-experts train"),
        ("adapter/metrics.jsonl", "train again"),
    ],
)
def test_a_missing_file_names_what_makes_it(run_folder, file, command):
    (Path(run_folder.output) / file).unlink()
    with pytest.raises(UserError, match=command):
        report_stage(run_folder)
    assert not (Path(run_folder.output) / "report.html").exists()


def test_a_page_past_its_size_is_refused_with_the_way_out(run_folder, monkeypatch):
    monkeypatch.setattr("eval.report.MAX_PAGE_BYTES", 10_000)
    with pytest.raises(UserError, match="lower eval.samples"):
        report_stage(run_folder)
    assert not (Path(run_folder.output) / "report.html").exists()


def test_long_answers_are_cut_between_letters_not_inside_them():
    assert cut_text("கொ" * 300) == "கொ" * 240 + "…"
    assert cut_text("கொ" * 240) == "கொ" * 240


def test_the_command_prints_the_finding(run_folder, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"name: made-up\noutput: {run_folder.output}\ndata: {{recipe: none.yaml}}\n"
        "train: {steps: 20, learning_rate: 0.1}\n"
    )
    assert main(["--config", str(file)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("On 24 held-out target rows (Tamil, Urdu) exact match rose from 0.000 to 1.000")
    assert out[-1].endswith("report.html")
