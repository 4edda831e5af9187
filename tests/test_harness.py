"""Tasks of lm-evaluation-harness from local files: the same base and tuned as everywhere, and no network.

The harness is an extra: what needs it is skipped where it is not installed. To run it with a copy of its own:
PYTHONPATH=FOLDER pytest tests/test_harness.py, after `pip install --target FOLDER lm-eval`.
"""

import importlib.util
import json

import numpy as np
import pytest
import torch
from tuned_model import OFF_AND_ON, with_drawn_adapter

from data_recipes.artefact import UserError
from data_recipes.translate.cache import ReplyCache
from eval.generate import generate_answers
from eval.tasks.likelihood import choice_logprobs
from eval.tasks.results import evaluate_tasks
from eval.tasks.rows import load_tasks
from finetune.adapters.adapter import adapter_disabled
from finetune.eval_options import EvalConfig

is_installed = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not is_installed, reason="lm-eval is not installed: an extra")
quiet = pytest.mark.filterwarnings("default")  # the harness and what it imports warn of themselves

CHOICE = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
metadata: {version: 2.0}
"""
GENERATED = """
task: words
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["never"], do_sample: false, max_gen_toks: 5}
metric_list:
  - metric: exact_match
metadata: {version: 1.0}
"""
DOCUMENTS = [
    {"q": "grass", "choices": ["green", "blue"], "right": 0},
    {"q": "the sky at noon", "choices": ["red", "blue", "as black as coal"], "right": 1},
    {"q": "பால்", "choices": ["வெள்ளை", "white"], "right": 0},
]


def test_without_the_harness_its_tasks_say_what_to_install(monkeypatch):
    monkeypatch.setattr("eval.tasks.harness_names.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'local-experts\[lm-eval\]'"):
        load_tasks(["lm_eval:hellaswag"])


@pytest.fixture
def tuned(tiny_model_factory):
    model = tiny_model_factory(vocab_size=262, initializer_range=0.3, seed=1)
    return with_drawn_adapter(model)


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "harness"
    folder.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    paths = []
    for name, text in (("colours", CHOICE), ("words", GENERATED)):
        (folder / f"{name}.yaml").write_text(text.replace("ROWS", str(rows)), encoding="utf-8")
        path = tmp_path / f"{name}.yaml"
        path.write_text(
            f"name: our_{name}\nversion: 1\nkind: lm_eval\nlm_eval: {{task: {name}, folder: harness}}\n"
        )
        paths.append(str(path))
    return load_tasks(paths)


def last_logprob(model, tokenizer, row):
    """Log-likelihood of the question's last token, here a line end."""
    ids = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(ids[-1:]) == "\n"
    with torch.no_grad():
        return float(model(torch.tensor([ids])).logits[0, -2].double().log_softmax(-1)[ids[-1]])


@needs_harness
@quiet
def test_the_harness_scores_base_and_tuned_as_we_do(tuned, tiny_tokenizer, tasks, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    config = EvalConfig(batch_size=2, n_bootstrap=50)
    found = evaluate_tasks(tuned, tiny_tokenizer, tasks, config, 0, False, OFF_AND_ON, ReplyCache(":memory:"))
    colours, words = found["our_colours"], found["our_words"]
    asked = [{"messages": [{"role": "user", "content": row["q"]}], "id": 0, **row} for row in DOCUMENTS]

    def right_and_logprobs():
        logprobs = choice_logprobs(tuned, tiny_tokenizer, asked, 4)
        right = [int(one.argmax()) == row["right"] for one, row in zip(logprobs, DOCUMENTS, strict=True)]
        # The harness counts the white space that the template ends with to each answer.
        counted = [
            one + last_logprob(tuned, tiny_tokenizer, row) for one, row in zip(logprobs, asked, strict=True)
        ]
        return right, np.concatenate(counted)

    prompts = [row["messages"] for row in asked]
    with adapter_disabled(tuned):
        of_base = right_and_logprobs(), generate_answers(tuned, tiny_tokenizer, prompts, 2, 5)
    of_tuned = right_and_logprobs(), generate_answers(tuned, tiny_tokenizer, prompts, 2, 5)
    assert of_base[1] != of_tuned[1]
    for system, ((right, logprobs), texts) in (("base", of_base), ("tuned", of_tuned)):
        assert [row[f"{system}_acc"] for row in colours["rows"]] == right
        # "(-12.3, False)" for each choice: its log-likelihood, and whether it would be generated.
        shown = [
            text.strip("()").split(",")[0] for row in colours["rows"] for text in row[system].split(" | ")
        ]
        assert np.array(shown, dtype=float) == pytest.approx(logprobs, rel=1e-5)
        assert [row[system].strip() for row in words["rows"]] == texts
    assert colours["metrics"]["acc"]["all"]["n"] == 3
    assert colours["metrics"]["acc"]["all"]["base"] == colours["aggregate"]["base"]["colours"]["acc,none"]
    assert colours["notes"]["task_versions"] == {"colours": 2.0}
    assert "<|user|>" in colours["rows"][0]["prompt"]  # the base's own chat template
    json.dumps(found, allow_nan=False)


@needs_harness
@quiet
@pytest.mark.slow
def test_an_unknown_task_is_named_with_the_nearest():
    with pytest.raises(UserError, match="no task 'hellaswagg': did you mean 'hellaswag'"):
        load_tasks(["lm_eval:hellaswagg"])


@needs_harness
@quiet
@pytest.mark.slow
def test_a_task_whose_data_is_not_here_says_so(tuned, tiny_tokenizer):
    (task,) = load_tasks(["lm_eval:arc_easy"])
    with pytest.raises(UserError, match="cannot run 'arc_easy'.*needs the network or a filled cache"):
        evaluate_tasks(
            tuned, tiny_tokenizer, [task], EvalConfig(), 0, False, OFF_AND_ON, ReplyCache(":memory:")
        )
