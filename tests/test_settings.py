"""Settings: each kind of mistake is named with its place and the way out, and all of them in one message."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from data_recipes.artefact import UserError
from data_recipes.settings import load_settings, settings_dict


@dataclass(frozen=True)
class Train:
    steps: int
    learning_rate: float = 0.001
    schedule: Literal["cosine", "constant"] = "cosine"
    verbose: bool = False
    threads: int | None = None

    def problems(self) -> list[str]:
        return ["steps: must be at least 1"] if self.steps < 1 else []


@dataclass(frozen=True)
class Settings:
    train: Train
    lang: str = "ta"
    folder: Path = Path("runs")
    languages: list[str] = field(default_factory=list)
    window: tuple[int, int] = (0, 1)
    names: tuple[str, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    level: int | Literal["auto"] = "auto"
    extra: Any = None
    other: Train = field(default_factory=lambda: Train(steps=7))


def load(tmp_path: Path, text: str, *overrides: str) -> Settings:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(Settings, path, overrides)


def message(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value)


def test_every_type_is_filled_from_yaml(tmp_path: Path):
    text = """
train: {steps: 5, learning_rate: 1, schedule: constant, verbose: true, threads: 2}
lang: "no"
folder: a/b
languages: [ta, "no"]
window: [2, 3]
names: [x]
shares: {ta: 0.5, en: 1}
level: 3
extra: [1, {a: null}]
"""
    found = load(tmp_path, text)
    assert found.train == Train(5, 1.0, "constant", True, 2)
    assert type(found.train.learning_rate) is float
    assert found.lang == "no"
    assert found.folder == Path("a/b")
    assert found.languages == ["ta", "no"]
    assert (found.window, found.names) == ((2, 3), ("x",))
    assert found.shares == {"ta": 0.5, "en": 1.0}
    assert (found.level, found.extra) == (3, [1, {"a": None}])
    assert found.other == Train(steps=7)


def test_what_is_not_given_keeps_its_default(tmp_path: Path):
    found = load(tmp_path, "train: {steps: 5}\nother:\n  steps: 1\n")
    assert found == Settings(Train(5), other=Train(1))


def test_an_exponent_without_a_dot_is_a_float(tmp_path: Path):
    assert load(tmp_path, "train: {steps: 5, learning_rate: 1e-4}").train.learning_rate == 0.0001
    assert load(tmp_path, "train: {steps: 5}", "train.learning_rate=2e-3").train.learning_rate == 0.002


def test_a_bare_no_is_named(tmp_path: Path):
    said = message(tmp_path, "train: {steps: 5}\nlang: no\nlanguages: [ta, no]\nshares: {no: 0.5}\n")
    assert "run.yaml: lang = False: must be text, but YAML reads a bare no (or off) as false" in said
    assert "languages[1] = False" in said
    assert "shares.False = False" in said
    assert said.count("write it in quotes") == 3


def test_a_text_that_yaml_reads_as_a_number_or_a_date_is_named(tmp_path: Path):
    assert "lang = 750: must be text, but YAML reads it as a number" in message(
        tmp_path, "train: {steps: 5}\nlang: 12:30\n"
    )
    assert "reads it as a date" in message(tmp_path, "train: {steps: 5}\nlang: 2026-01-26\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train: {steps: 5, learning_rte: 1}", "train.learning_rte = 1: unknown key; the nearest valid key is"
         " train.learning_rate"),
        ("train: {steps: 5, zzz: 1}", "train.zzz = 1: unknown key; valid keys are steps, learning_rate"),
        ("train: {learning_rate: 1}", "train.steps: is missing and has no default"),
        ("lang: ta", "train.steps: is missing and has no default"),
        ("train:", "train.steps: is missing and has no default"),
        ("", "train.steps: is missing and has no default"),
        ("train: 5", "train = 5: must be a section"),
        ("train: {steps: many}", "train.steps = 'many': must be a whole number"),
        ("train: {steps: true}", "train.steps = True: must be a whole number"),
        ("train: {steps: 5.0}", "train.steps = 5.0: must be a whole number"),
        ("train: {steps: 5, learning_rate: true}", "train.learning_rate = True: must be a finite number"),
        ("train: {steps: 5, learning_rate: .nan}", "train.learning_rate = nan: must be a finite number"),
        ("train: {steps: 5, learning_rate: fast}", "train.learning_rate = 'fast': must be a finite number"),
        ("train: {steps: 5, verbose: 1}", "train.verbose = 1: must be true or false"),
        ("train: {steps: 5, threads: x}", "train.threads = 'x': must be a whole number"),
        ("train: {steps: 5, schedule: cosin}", "must be one of cosine, constant; nearest: cosine"),
        ("train: {steps: 5, schedule: off}", "YAML reads a bare no (or off) as false"),
        ("train: {steps: 5}\nlang:", "lang = None: must be text, but it is empty"),
        ("train: {steps: 5}\nlang: [a]", "lang = ['a']: must be one text"),
        ("train: {steps: 5}\nlanguages: ta", "languages = 'ta': must be a list, as [a, b]"),
        ("train: {steps: 5}\nwindow: [1]", "window = [1]: must hold exactly 2 items"),
        ("train: {steps: 5}\nwindow: [1, x]", "window[1] = 'x': must be a whole number"),
        ("train: {steps: 5}\nshares: [1]", "shares = [1]: must be a section"),
        ("train: {steps: 5}\nshares: {ta: x}", "shares.ta = 'x': must be a finite number"),
        ("train: {steps: 0}", "train.steps = 0: must be at least 1"),
        ("train: {steps: 5}\nno: 1", "False = 1: unknown key; YAML reads a bare no (or off) as false"),
        ("[1, 2]", "the file must hold `key: value` lines"),
    ],
)  # fmt: skip
def test_each_mistake_is_named_with_file_key_value_and_reason(tmp_path: Path, line: str, said: str):
    found = message(tmp_path, line)
    assert said in found
    assert "run.yaml: " in found


def test_all_problems_come_in_one_message(tmp_path: Path):
    text = (
        "train: {stepz: 5, steps: 0, verbose: 3}\nlang: no\nlang: ta\nfolder: 1\nother: {learning_rate: 1}\n"
    )
    said = message(tmp_path, text, "window=[1]", "seed")
    assert said.startswith("8 problems in the settings\n")
    for key in ("stepz", "steps = 0", "verbose", "lang: written twice", "folder", "other.steps: is missing"):
        assert key in said
    assert "command line: window = [1]" in said
    assert "command line: 'seed': write changes as key=value" in said


def test_a_range_is_checked_beside_a_wrong_type_in_the_same_section(tmp_path: Path):
    said = message(tmp_path, "train: {steps: 0, threads: x}")
    assert "train.threads = 'x'" in said
    assert "train.steps = 0: must be at least 1" in said


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("train: {steps: 5}\nlang: ta\nlang: hi\n", "lang: written twice (line 2 and line 3)"),
        ("train:\n  steps: 5\n  'steps': 6\n", "train.steps: written twice (line 2 and line 3)"),
        ("train: {steps: 5}\nextra:\n- {a: 1, a: 2}\n", "extra[0].a: written twice (line 3 and line 3)"),
    ],
)
def test_a_key_written_twice_is_named_with_its_lines(tmp_path: Path, text: str, key: str):
    assert key in message(tmp_path, text)


def test_a_merged_section_may_override_a_key(tmp_path: Path):
    found = load(tmp_path, "other: &o {steps: 5}\ntrain: {<<: *o, steps: 6}\n")
    assert (found.other.steps, found.train.steps) == (5, 6)


@pytest.mark.parametrize(
    "text",
    [
        "train: !!python/object/apply:os.system ['touch pwned']",
        "train: !!python/tuple [1]",
        "train: {steps: 5",
        "train: !!bool maybe",
        "lang: 2026-99-99",
        "[" * 1500,
        "a: 1\n---\nb: 2\n",
    ],
)
def test_what_is_not_plain_yaml_is_one_message_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
):
    monkeypatch.chdir(tmp_path)
    assert "run.yaml is not plain YAML" in message(tmp_path, text)
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_a_file_that_cannot_be_read_is_one_message(tmp_path: Path):
    (tmp_path / "latin.yaml").write_bytes("lang: é".encode("latin-1"))
    for path, said in {
        tmp_path / "missing.yaml": "No such file",
        tmp_path: "Is a directory",
        tmp_path / "latin.yaml": "not UTF-8",
    }.items():
        with pytest.raises(UserError, match=said) as caught:
            load_settings(Settings, path)
        assert str(path) in str(caught.value)


def test_changes_win_over_the_file_and_are_read_by_the_type_of_their_option(tmp_path: Path):
    changes = [
        "train.steps=6",
        "lang=no",
        "languages=[ta, hi]",
        "train.threads=null",
        "shares.ta=0.25",
        "level=auto",
    ]
    found = load(tmp_path, "train: {steps: 5, threads: 3}\nshares: {ta: 1, en: 1}\nlevel: 1\n", *changes)
    assert found.train == Train(6)
    assert (found.lang, found.languages, found.level) == ("no", ["ta", "hi"], "auto")
    assert found.shares == {"ta": 0.25, "en": 1.0}


def test_changes_alone_are_enough():
    assert load_settings(Settings, None, ["train.steps=3", "lang=a=b"]) == Settings(Train(3), lang="a=b")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "train.stepz=4",
            "command line: train.stepz = '4': unknown key; the nearest valid key is train.steps",
        ),
        ("trane.steps=4", "command line: trane = {'steps': "),
        ("train.steps=x", "command line: train.steps = 'x': must be a whole number"),
        ("train.steps=0", "command line: train.steps = 0: must be at least 1"),
        ("lang.x=1", "command line: 'lang.x=1': lang holds one value"),
        ("=4", "command line: '=4': write changes as key=value"),
        ("train..steps=4", "command line: 'train..steps=4': write changes as key=value"),
        ("languages=[ta", "command line: languages = '[ta': must be a list"),
    ],
)
def test_a_wrong_change_is_named_as_the_command_lines(tmp_path: Path, change: str, said: str):
    found = message(tmp_path, "train: {steps: 5}\nlang: ta\n", change)
    assert said in found
    assert "1 problem in the settings" in found


def test_settings_dict_is_plain_json_and_loads_back(tmp_path: Path):
    settings = Settings(
        Train(5, learning_rate=1e-5), folder=Path("a") / "b", names=("x",), shares={"ta": 0.5}
    )
    plain = settings_dict(settings)
    assert (plain["folder"], plain["names"], plain["window"]) == ("a/b", ["x"], [0, 1])
    assert plain["train"]["learning_rate"] == 1e-5
    assert load(tmp_path, json.dumps(plain)) == settings


def test_a_field_that_settings_cannot_hold_is_our_own_mistake(tmp_path: Path):
    @dataclass(frozen=True)
    class Wrong:
        raw: bytes = b""

    with pytest.raises(TypeError, match="bytes"):
        load_settings(Wrong, None, ["raw=x"])
