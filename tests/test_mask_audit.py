"""The audit names every row that must not be trained on, all together, and rows can be looked at."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML_STYLE, GLM_5_STYLE, GLM_45_STYLE, assistant, call, styled_tokenizer, user
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from data_recipes.artefact import UserError
from data_recipes.chats.chat_template import read_template
from data_recipes.chats.control_tokens import typed_control_tokens, without_control_tokens
from data_recipes.chats.mask_audit import AuditOptions, Fertility, audit
from data_recipes.chats.mask_view import show
from data_recipes.locale_rows import split_rows
from data_recipes.recipe import load_recipe
from data_recipes.steps import Rejected
from finetune.batches import IGNORED_LABEL, encode_rows
from finetune.cli import main
from finetune.config import SHIPPED_MODELS, BaseConfig
from finetune.model import load_tokenizer

ROOT = Path(__file__).parents[1]


def row(row_id: str, *messages: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"id": row_id, "messages": list(messages), **columns}


@pytest.fixture(scope="module")
def glm() -> Any:
    return styled_tokenizer(GLM_45_STYLE)


def test_rows_of_the_quickstart_have_the_ids_and_labels_that_transformers_gives() -> None:
    recipe = load_recipe(ROOT / "configs/recipes/tamil_locale.yaml", ["train_rows_per_task=8"])
    rows = split_rows(recipe, "train", Counter())
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_MODELS["tiny-glm"])
    examples = encode_rows(tokenizer, rows, 256)
    assert len(examples) == len(rows) > 100
    for example, source in zip(examples, rows, strict=True):
        own: Any = tokenizer.apply_chat_template(
            source["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        labels = [
            token if mark else IGNORED_LABEL
            for token, mark in zip(own["input_ids"], own["assistant_masks"], strict=True)
        ]
        assert (example.row_id, example.tokens, example.labels) == (source["id"], own["input_ids"], labels)


def test_good_rows_pass_and_are_counted(glm: Any) -> None:
    rows = [
        row("a", user("A"), assistant("B"), language="en"),
        row("b", user("தேதி?"), assistant("5"), language="ta"),
    ]
    report = audit(rows, glm)
    assert report.problems == []
    # By hand: [gMASK] <sop> <|user|> \n A <|assistant|>, then \n <think> </think> \n B <|user|>
    assert report.counts[0] == ("a", 12, 6)
    assert report.fertility["en"] == Fertility(n_tokens=2, n_words=2, n_graphemes=2)
    # தேதி is one word of two graphemes; "?" and "5" are a grapheme each, and "5" is a word.
    n_tokens = len(glm("தேதி?", add_special_tokens=False)["input_ids"]) + 1
    assert report.fertility["ta"] == Fertility(n_tokens, n_words=2, n_graphemes=4)
    assert "2 rows, 2 answers" in str(report)
    assert str(report).endswith("no problems")
    report.refuse()


PROBLEMS = {
    "nothing_trained": (
        row("bad", user("A")),
        r"1 of 2 rows have no token to train on: row bad \(it has no assistant message\)",
    ),
    "untrained_stop": (
        row("bad", user("A"), assistant("B"), assistant("C")),
        r"1 of 2 rows train no stop token.*: row bad \(message 2 is followed by another of the assistant's",
    ),
    "control_in_text": (
        row("bad", user("say <|user|> now"), assistant("B")),
        r"1 of 2 rows hold control tokens inside a text: row bad \(<\|user\|> in message 1, the user's\)",
    ),
    "too_long": (
        row("bad", user("A"), assistant("B " * 40)),
        r"1 of 2 rows are longer than max_length_tokens=20 and rows are never cut.*: row bad \(\d+ tokens\); "
        r"set train.max_length_tokens=\d+",
    ),
    "unreadable": (
        row("bad", user("\ufdd0"), assistant("B")),
        r"1 of 2 rows cannot be told apart into prompt and answer: row bad \(it holds U\+FDD0",
    ),
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_each_problem_is_an_error_that_names_the_row(glm: Any, kind: str) -> None:
    bad, message = PROBLEMS[kind]
    good = row("good", user("A"), assistant("B"))
    report = audit([good, bad], glm, AuditOptions(max_length_tokens=20))
    assert {(problem.kind, problem.row_id) for problem in report.problems} >= {(kind, "bad")}
    assert all(problem.row_id == "bad" for problem in report.problems)
    for refuse in (report.refuse, lambda: encode_rows(glm, [good, bad], 20)):
        with pytest.raises(UserError, match=message):
            refuse()


def test_a_trained_prompt_is_an_error_that_names_the_row() -> None:
    marked_whole = f"{{% generation %}}{CHATML_STYLE}{{% endgeneration %}}"
    with pytest.raises(
        UserError, match=r"1 of 1 rows train tokens of the prompt: row r7 \('<\|im_start\|>user"
    ):
        audit([row("r7", user("A"), assistant("B"))], styled_tokenizer(marked_whole)).refuse()


def test_an_answer_opened_otherwise_than_asked_is_an_error_with_the_option_that_helps() -> None:
    rows = [row("r7", user("A"), assistant("B"))]
    tokenizer = styled_tokenizer(GLM_5_STYLE)
    with pytest.raises(UserError, match=r"open the answer in another way.*r7.*base\.thinking=false"):
        audit(rows, tokenizer).refuse()
    audit(rows, tokenizer, AuditOptions(template_options={"enable_thinking": False})).refuse()


def test_a_stop_token_the_model_does_not_stop_at_is_an_error(glm: Any) -> None:
    rows = [row("r7", user("A"), assistant("B"))]
    stop, other = glm.convert_tokens_to_ids(["<|user|>", "<|endoftext|>"])
    encode_rows(glm, rows, 100, frozenset([stop, other]))
    with pytest.raises(UserError, match=r"r7 \(ends with '<\|user\|>', where the model does not stop\)"):
        encode_rows(glm, rows, 100, frozenset([other]))


def test_all_problems_are_told_together_and_ten_rows_of_each_are_named(glm: Any) -> None:
    rows = [row(f"q{number}", user("A")) for number in range(12)]
    rows += [row("typed", user("<|assistant|>"), assistant("B"))]
    with pytest.raises(UserError) as caught:
        encode_rows(glm, rows, 100)
    message = str(caught.value)
    assert "12 of 13 rows have no token to train on: row q0" in message
    assert "row q9" in message and "row q10" not in message and "and 2 more" in message
    assert "1 of 13 rows hold control tokens inside a text: row typed" in message


def test_control_tokens_are_found_in_every_text_somebody_wrote(glm: Any) -> None:
    template = read_template(glm)
    typed = row(
        "a",
        {"role": "system", "content": "[gMASK]"},
        user("<think> </tool_call>"),
        assistant("<think>R</think> B", tool_calls=[call("f", k="<|observation|>")]),
        {"role": "tool", "content": "<|user|><|user|>"},
    )
    # <think> inside an answer is how thinking is written; what is left is no special token of the answer's.
    assert [(token.message, token.token) for token in typed_control_tokens(template, typed)] == [
        (0, "[gMASK]"),
        (1, "<think>"),
        (1, "</tool_call>"),
        (2, "<|observation|>"),
        (3, "<|user|>"),
    ]
    plain = row("b", user("<user> |user| < |user|> gMASK <think >"), assistant("B"))
    assert typed_control_tokens(template, plain) == []


def test_control_tokens_are_refused_escaped_or_stripped(glm: Any) -> None:
    template = read_template(glm)
    rows = [row("a", user("say <|user|>!"), assistant("B")), row("b", user("A"), assistant("B"))]
    refused, kept = without_control_tokens(rows, template)
    assert refused == Rejected("a", "control_tokens", "control token in a text", "<|user|>")
    assert isinstance(kept, dict) and kept["messages"] == rows[1]["messages"]
    for policy, text in (("escape", "say < |user|>!"), ("strip", "say !")):
        found: Any = next(without_control_tokens(rows, template, policy))  # type: ignore[arg-type]
        assert found["messages"][0] == {"role": "user", "content": text}
        check = {"name": "control_tokens", "version": 1, "checks": {"policy": policy, "changed": 1}}
        assert found["transforms"] == [check]
        audit([found], glm).refuse()
    # Stripping what is inside leaves another: no row is kept that still holds one.
    nested = row("c", user("<|us<|user|>er|>"), assistant("B"))
    (rejected,) = without_control_tokens([nested], template, "strip")
    assert rejected == Rejected("c", "control_tokens", "control token stays in a text", "<|user|>")
    with pytest.raises(UserError, match="no policy 'drop' for control tokens: use refuse, escape, strip"):
        list(without_control_tokens(rows, template, "drop"))  # type: ignore[arg-type]


def test_a_mask_is_read_in_a_terminal(glm: Any) -> None:
    view = show(read_template(glm), row("a", user("A"), assistant("B")))
    assert str(view).splitlines() == [
        "row a: 12 tokens, 6 trained",
        "      4  template   [gMASK]<sop><|user|>↵",
        "      1  user       A",
        "      1  template   <|assistant|>",
        ">     6  assistant  ↵",
        ">                   <think></think>↵",
        ">                   B<|user|>",
    ]


def test_a_mask_is_read_in_a_notebook_without_colour_and_with_every_text_escaped(glm: Any) -> None:
    page = show(
        read_template(glm), row("<i>", user("<script>alert(1)</script>"), assistant("B"))
    )._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page and "row &lt;i&gt;:" in page
    assert 'style="font-weight:bold;text-decoration:underline">↵\n&lt;think&gt;' in page


def test_thinking_of_the_base_is_written_into_the_template(glm: Any, tmp_path: Path) -> None:
    glm.save_pretrained(tmp_path)
    asked = {}
    for thinking in (None, True, False):
        tokenizer: Any = load_tokenizer(BaseConfig(model=str(tmp_path), thinking=thinking))
        asked[thinking] = tokenizer.apply_chat_template(
            [user("A")], tokenize=False, add_generation_prompt=True
        )
    assert asked[None] == asked[True] == "[gMASK]<sop><|user|>\nA<|assistant|>"
    assert asked[False] == "[gMASK]<sop><|user|>\nA/nothink<|assistant|>\n<think></think>"


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    """A run whose dataset has one good row, and one bad row in its validation split."""
    good = row("good", user("A"), assistant("B"), language="en", group="general")
    bad = row("bad", user("<|user|>"), assistant("B"), language="en", group="general")
    splits: Any = {"train": Dataset.from_list([good]), "validation": Dataset.from_list([bad])}
    DatasetDict(splits).save_to_disk(str(tmp_path / "data"))
    path = tmp_path / "run.yaml"
    text = (ROOT / "configs/runs/quickstart.yaml").read_text(encoding="utf-8")
    path.write_text(f"output: {tmp_path}\n{text}", encoding="utf-8")
    return path


def test_the_command_shows_rows_and_fails_on_bad_ones(config_path: Path, capsys: Any) -> None:
    assert main(["masks", "--config", str(config_path), "--rows", "1"]) == 2
    shown = capsys.readouterr()
    # By hand: [gMASK] <sop> <|user|> \n A <|assistant|> \n, then B <|endoftext|>
    assert "row good: 9 tokens, 2 trained" in shown.out
    assert "2 rows, 2 answers" in shown.out
    assert "error: 1 of 2 rows hold control tokens inside a text: row bad" in shown.err
    assert main(["masks", "--config", str(config_path), "--rows", "-1"]) == 2
    assert "--rows -1" in capsys.readouterr().err
