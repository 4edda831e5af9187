"""Rows are encoded once, audited as a whole, and read from files that need not fit into memory."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from filelock import FileLock
from interrupted_training import EVERY_TWO, crashed
from safetensors.torch import load_file
from test_train import LORA, PLAN, chat_rows, train_config, write_run_inputs

from data_recipes.artefact import UserError, read_artefact, write_artefact
from finetune.adapters.adapter import attach
from finetune.batches import encode_rows
from finetune.batching.token_store import encode_in_memory, encode_on_disk
from finetune.config import RunConfig
from finetune.train import train_rows, train_stage
from finetune.training_options import ReplayConfig


class CountedRows:
    """Rows that count how often they are read."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.n_read = rows, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            self.n_read += 1
            yield row


def mixed_rows(n_rows: int) -> list[dict[str, Any]]:
    return [{**row, "language": ("ta", "hi", "en")[n % 3]} for n, row in enumerate(chat_rows(n_rows))]


@pytest.fixture
def run_config(tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path) -> RunConfig:
    return write_run_inputs(tmp_path, tiny_model_factory(vocab_size=262), tiny_tokenizer)


def test_a_store_gives_the_examples_that_went_in(tiny_tokenizer: Any, tmp_path: Path) -> None:
    rows = mixed_rows(20)
    expected = encode_rows(tiny_tokenizer, rows, 64)
    in_memory = encode_in_memory(tiny_tokenizer, rows, 64)
    on_disk = encode_on_disk(tmp_path / "tokens", "c" * 64, tiny_tokenizer, rows, 64)
    for store in (in_memory, on_disk):
        assert len(store) == 20
        found = [store.example(number, "language") for number in range(20)]
        assert [example._replace(group="") for example in found] == expected
        assert [example.group for example in found] == [row["language"] for row in rows]
        assert store.example(3).group == "general" and store.example(4).group == "target"
        assert store.lengths().tolist() == [len(example.tokens) for example in expected]
        assert store.lengths().dtype == np.int32 and store.names["source"] == [""]
    assert all(isinstance(array, np.memmap) for array in on_disk.arrays.values())
    assert sum(path.stat().st_size for path in (tmp_path / "tokens").glob("*.bin")) < 7_000


def test_rows_are_read_again_only_when_they_or_the_tokenizer_or_the_options_changed(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    rows, folder = CountedRows(mixed_rows(5)), tmp_path / "tokens"
    encode_on_disk(folder, "c" * 64, tiny_tokenizer, rows, 64)
    again = encode_on_disk(folder, "c" * 64, tiny_tokenizer, rows, 64)
    assert rows.n_read == 5 and again.example(4).row_id == "r4"
    encode_on_disk(folder, "d" * 64, tiny_tokenizer, rows, 64)
    assert rows.n_read == 10
    encode_on_disk(folder, "d" * 64, tiny_tokenizer, rows, 65)
    assert rows.n_read == 15
    encode_on_disk(folder, "d" * 64, tiny_tokenizer, rows, 65, frozenset({0}))
    assert rows.n_read == 20
    template = tiny_tokenizer.chat_template
    try:
        tiny_tokenizer.chat_template = template.replace("[gMASK]", "")
        store = encode_on_disk(folder, "d" * 64, tiny_tokenizer, rows, 65, frozenset({0}))
        assert rows.n_read == 25 and tiny_tokenizer.decode(store.example(0).tokens).startswith("<sop>")
    finally:
        tiny_tokenizer.chat_template = template


def test_a_store_that_is_not_whole_is_made_again(tiny_tokenizer: Any, tmp_path: Path) -> None:
    rows, folder = CountedRows(mixed_rows(5)), tmp_path / "tokens"
    encode_on_disk(folder, "c" * 64, tiny_tokenizer, rows, 64)
    content = (folder / "tokens.bin").read_bytes()
    (folder / "tokens.bin").write_bytes(content[:-4])
    encode_on_disk(folder, "c" * 64, tiny_tokenizer, rows, 64)
    assert rows.n_read == 10 and (folder / "tokens.bin").read_bytes() == content


def test_what_a_killed_process_left_half_written_is_removed(tiny_tokenizer: Any, tmp_path: Path) -> None:
    left = tmp_path / ".tokens.partial-0123abcd"
    left.mkdir()
    (left / "tokens.bin").write_bytes(b"half")
    encode_on_disk(tmp_path / "tokens", "c" * 64, tiny_tokenizer, mixed_rows(5), 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tokens.lock", "tokens"]


def test_all_bad_rows_are_named_together_and_no_store_is_left(tiny_tokenizer: Any, tmp_path: Path) -> None:
    rows = chat_rows(30)
    rows[7]["messages"] = rows[7]["messages"][:1]
    rows[29]["messages"][1]["content"] = "x" * 100
    with pytest.raises(UserError, match=r"(?s)1 of 30 rows have no token.*row r7.*1 of 30.*longer.*row r29"):
        encode_on_disk(tmp_path / "tokens", "c" * 64, tiny_tokenizer, rows, 64)
    assert [path.name for path in tmp_path.iterdir()] == [".tokens.lock"]
    encode_on_disk(tmp_path / "tokens", "c" * 64, tiny_tokenizer, chat_rows(3), 64)  # the lock is open again
    with pytest.raises(UserError, match="there are no rows to train on"):
        encode_on_disk(tmp_path / "none", "c" * 64, tiny_tokenizer, [], 64)


def test_a_folder_that_cannot_be_written_or_is_not_ours_is_named(tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/tokens"):
        encode_on_disk(tmp_path / "file" / "tokens", "c" * 64, tiny_tokenizer, chat_rows(3), 64)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letter.txt").write_text("")
    with pytest.raises(UserError, match=r"own holds files that local-experts did not write as token_store"):
        encode_on_disk(tmp_path / "own", "c" * 64, tiny_tokenizer, chat_rows(3), 64)


def test_a_second_process_waits_for_the_first_and_reads_what_it_wrote(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    import threading

    rows, folder, found = CountedRows(mixed_rows(5)), tmp_path / "tokens", []
    lock = FileLock(tmp_path / ".tokens.lock")
    lock.acquire()
    arguments = (folder, "c" * 64, tiny_tokenizer, rows, 64)
    others = [threading.Thread(target=lambda: found.append(encode_on_disk(*arguments))) for _ in range(2)]
    for other in others:
        other.start()
    others[0].join(timeout=0.3)
    assert others[0].is_alive() and rows.n_read == 0
    lock.release()
    for other in others:
        other.join(timeout=20)
    assert len(found) == 2 and rows.n_read == 5, "one of the two has encoded"


def test_a_second_run_reads_the_tokens_and_gives_the_same_bits(run_config: RunConfig, tmp_path: Path) -> None:
    first = load_file(train_stage(run_config) / "adapter.safetensors")
    store = tmp_path / "run" / "tokens" / "train"
    written = (store / "store.json").stat().st_mtime_ns
    again = load_file(train_stage(run_config) / "adapter.safetensors")
    assert (store / "store.json").stat().st_mtime_ns == written, "the second run does not encode"
    shutil.rmtree(tmp_path / "run" / "tokens")
    anew = load_file(train_stage(run_config) / "adapter.safetensors")
    for name, value in first.items():
        assert torch.equal(again[name], value) and torch.equal(anew[name], value)
    assert any(bool(value.any()) for name, value in first.items() if name.endswith(".B"))


def test_the_result_counts_rows_and_tokens_by_group(run_config: RunConfig) -> None:
    folder = train_stage(run_config)
    result = read_artefact(folder / "train.json", "train_result")
    # 6 steps of 8 are two epochs of 24 rows, every third of them general.
    assert result["rows_by_group"] == {"general": 16, "target": 32}
    assert sum(result["tokens_by_group"].values()) == result["tokens"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shares = [line["padding_share"] for line in lines if "loss" in line]
    assert len(shares) == 6 and all(0 <= share < 0.5 for share in shares)
    assert min(shares) <= result["padding_share"] <= max(shares) > 0


def test_a_mixture_changes_what_is_drawn_and_not_how_much(run_config: RunConfig) -> None:
    train = replace(run_config.train, mixture={"target": 0.75, "general": 0.25})
    result = read_artefact(train_stage(replace(run_config, train=train)) / "train.json", "train_result")
    assert result["rows_by_group"] == {"general": 12, "target": 36}
    train = replace(run_config.train, mixture={"target": 1, "none": 1})
    with pytest.raises(UserError, match="train.mixture names none, but the rows have as group: general, tar"):
        train_stage(replace(run_config, train=train))


def test_rows_are_mixed_and_counted_by_another_column(tiny_model_factory: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model_factory(vocab_size=262)
    attach(model, PLAN, LORA, seed=0)
    config = train_config(mixture={"ta": 5, "hi": 2, "en": 1}, mixture_by="language", steps=2)
    result = train_rows(model, tiny_tokenizer, mixed_rows(12), config)
    assert result.rows_by_group == {"en": 2, "hi": 4, "ta": 10}


def write_replay(folder: Path, rows: list[dict[str, Any]]) -> ReplayConfig:
    splits: Any = {"train": Dataset.from_list(rows)}
    DatasetDict(splits).save_to_disk(str(folder))
    write_artefact(folder / "manifest.json", "dataset_manifest", {}, {"content_hash": "e" * 64})
    return ReplayConfig(data=str(folder), share=0.25)


def other_rows(n_rows: int) -> list[dict[str, Any]]:
    """Rows that ask what those of the run do not."""
    rows = chat_rows(n_rows)
    for number, row in enumerate(rows):
        row.update(id=f"other{number}", group="general")
        row["messages"][0]["content"] = f"Other {number}?"
    return rows


@pytest.fixture
def run_with_test_split(run_config: RunConfig, tmp_path: Path) -> RunConfig:
    rows = chat_rows(26)
    splits: Any = {"train": rows[:24], "validation": rows[:6], "test": rows[24:]}
    splits = {name: Dataset.from_list(part) for name, part in splits.items()}
    shutil.rmtree(tmp_path / "run" / "data")
    DatasetDict(splits).save_to_disk(str(tmp_path / "run" / "data"))
    manifest = tmp_path / "run" / "data" / "manifest.json"
    write_artefact(manifest, "dataset_manifest", {}, {"content_hash": "c" * 64})
    return run_config


def test_a_second_dataset_is_replayed_by_its_share(run_with_test_split: RunConfig, tmp_path: Path) -> None:
    other = tmp_path / "other"
    replay = write_replay(other, other_rows(5))
    config = replace(run_with_test_split, train=replace(run_with_test_split.train, replay=replay))
    result = read_artefact(train_stage(config) / "train.json", "train_result")
    assert result["rows_by_group"]["replay"] == 6 * 2
    assert sum(result["rows_by_group"].values()) == 6 * 8
    assert result["inputs"]["replay"] == "e" * 64
    assert {path.name for path in (tmp_path / "run/tokens").iterdir() if path.is_dir()} == {"train", "replay"}
    shutil.rmtree(other / "train")
    shutil.rmtree(tmp_path / "run" / "tokens")
    with pytest.raises(UserError, match="cannot read the train split of .*other"):
        train_stage(config)
    shutil.rmtree(other)
    with pytest.raises(UserError, match=r"other/manifest.json does not exist \(dataset_manifest\)"):
        train_stage(config)


def test_a_killed_run_may_go_on_with_replay_that_it_began_without(
    run_with_test_split: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(run_with_test_split, train=replace(run_with_test_split.train, checkpoint=EVERY_TWO))
    crashed(config)
    replay = write_replay(tmp_path / "other", other_rows(5))
    changed = replace(config.train, replay=replay, checkpoint=replace(EVERY_TWO, resume="changed"))
    train_stage(replace(config, train=changed))
    told = capsys.readouterr().out
    assert "goes on although replay was not there, is eeeeeeeeeeee" in told and "resumed from step 4" in told


def test_bad_rows_of_a_replayed_dataset_name_it(run_with_test_split: RunConfig, tmp_path: Path) -> None:
    rows = other_rows(3)
    rows[1]["messages"] = rows[1]["messages"][:1]
    replay = write_replay(tmp_path / "other", rows)
    config = replace(run_with_test_split, train=replace(run_with_test_split.train, replay=replay))
    with pytest.raises(UserError, match=r"replay.data=.*other: 1 of 3 rows have no token .* row other1"):
        train_stage(config)


def test_a_replayed_row_that_asks_a_test_question_is_refused(
    run_with_test_split: RunConfig, tmp_path: Path
) -> None:
    rows = other_rows(3)
    rows[2]["messages"][0]["content"] = chat_rows(26)[25]["messages"][0]["content"]
    replay = write_replay(tmp_path / "other", rows)
    config = replace(run_with_test_split, train=replace(run_with_test_split.train, replay=replay))
    with pytest.raises(
        UserError, match="1 rows ask what a validation or test row of this run asks: row other2;"
    ):
        train_stage(config)
    assert not (tmp_path / "run" / "tokens" / "replay").exists()


def test_rows_of_a_run_with_everything_on_follow_from_the_step_alone(
    tiny_model_factory: Any, tiny_tokenizer: Any
) -> None:
    from finetune.training.training_rows import training_rows

    model, rows = tiny_model_factory(vocab_size=262), mixed_rows(50)
    for config in (
        train_config(),
        train_config(group_by_length=True),
        train_config(mixture={"target": 2, "general": 1}),
    ):
        one, other = (training_rows(model, tiny_tokenizer, rows, config, seed=4) for _ in range(2))
        forwards = [one.of_step(step) for step in range(20)]
        assert forwards[::-1] == [other.of_step(step) for step in reversed(range(20))]
        assert Counter(row.row_id for step in forwards for row in step).most_common(1)[0][1] <= 6
