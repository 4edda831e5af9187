"""Shards of a profile add up to the bits of the whole, and what does not belong together is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import build_tiny_model, build_tiny_tokenizer
from test_routing import ROWS_BY_GROUP, same_arrays

from data_recipes.artefact import UserError, write_artefact
from finetune.cli import main as cli_main
from finetune.config import ProfileConfig
from finetune.profiling.profile import (
    Profile,
    profile_inputs,
    read_profile,
    read_shard,
    write_profile,
)
from finetune.profiling.profile_merge import main, merge_profiles
from finetune.profiling.routing import profile_rows

# The fifth Tamil row is of a source of its own: a shard without it lacks those cells.
ROWS = {
    "ta": [row | {"source": "own" if i == 4 else "cldr"} for i, row in enumerate(ROWS_BY_GROUP["ta"])],
    "en": ROWS_BY_GROUP["en"],
}


def profiled(**options: Any) -> Profile:
    config = ProfileConfig(batch_size=2, check_tokens=100, replicates=4, **options)
    return profile_rows(build_tiny_model(vocab_size=262), build_tiny_tokenizer(), ROWS, config, seed=5)


@pytest.fixture(scope="module")
def whole() -> Profile:
    return profiled()


@pytest.fixture(scope="module")
def shards() -> dict[str, Profile]:
    return {f"{number}.json": profiled(shard=f"{number}/3") for number in (1, 2, 3)}


def other(profile: Profile, **head: Any) -> Profile:
    return replace(profile, head={**profile.head, **head})


def test_shards_add_up_to_the_whole_in_any_order(whole: Profile, shards: dict[str, Profile]) -> None:
    assert len({len(shard.cells) for shard in shards.values()}) > 1, "the shards must differ in cells"
    assert all(shard.counts_CLE.any() for shard in shards.values())
    for names in (("1.json", "2.json", "3.json"), ("3.json", "1.json", "2.json")):
        merged = merge_profiles({name: shards[name] for name in names})
        assert same_arrays(merged, whole)
        assert merged.head == whole.head


def test_the_command_writes_the_bytes_of_the_whole(
    whole: Profile, shards: dict[str, Profile], tmp_path: Path, capsys
) -> None:
    write_profile(tmp_path / "whole.json", whole, profile_inputs(whole))
    for name, shard in shards.items():
        write_profile(tmp_path / name, shard, profile_inputs(shard))
    paths = [str(tmp_path / name) for name in shards]
    assert cli_main(["profile-merge", str(tmp_path / "merged.json"), *paths]) == 0
    assert "3 shards, tokens: en " in capsys.readouterr().out
    for suffix in (".json", ".safetensors"):
        files = (tmp_path / f"{name}{suffix}" for name in ("merged", "whole"))
        assert len({file.read_bytes() for file in files}) == 1
    with pytest.raises(UserError, match=r"1\.json is given twice"):
        main([str(tmp_path / "merged.json"), paths[0], paths[0]])
    with pytest.raises(UserError, match=r"2\.json is shard 2/3 of a profile.*profile-merge"):
        read_profile(paths[1])
    assert same_arrays(read_shard(paths[1]), shards["2.json"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_fingerprint": "other"}, "their model fingerprint differs: other and "),
        ({"tokenizer_fingerprint": "other"}, "their tokenizer fingerprint differs: other and "),
        ({"dataset": "other"}, "their dataset differs"),
        ({"dtype": "bfloat16"}, "their dtype differs: bfloat16 and float32"),
        ({"seed": 0}, "their seed differs: 0 and 5"),
        ({"kinds": "answer"}, "their kinds differs: answer and all"),
        ({"settings": {}}, "their settings differs"),
        ({"shards": ["2/4"]}, r"these are shards of 3 and of 4: 1/3 in 1\.json, 2/4 in 2\.json"),
        ({"shards": ["1/3"]}, r"shard 1/3 is there twice: 1/3 in 1\.json, 1/3 in 2\.json"),
        ({"shards": []}, r"2\.json is a whole profile and no shard"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    shards: dict[str, Profile], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        merge_profiles(shards | {"2.json": other(shards["2.json"], **changed)})


def test_a_missing_shard_is_named_with_its_command(shards: dict[str, Profile]) -> None:
    with pytest.raises(UserError, match=r"shard 2/3, 3/3 is missing .*profile\.shard=2/3"):
        merge_profiles({"1.json": shards["1.json"]})
    with pytest.raises(UserError, match="no shard to merge"):
        merge_profiles({})


def test_fewer_batches_than_shards_are_refused() -> None:
    with pytest.raises(UserError, match="there are 7 batches of rows for 8 processes or shards"):
        profiled(shard="8/8")


def test_a_profile_read_from_disk_can_be_written_again(whole: Profile, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    write_profile(first, whole, profile_inputs(whole))
    read = read_profile(first)
    assert same_arrays(read, whole) and np.array_equal(read.replicate_mass["en"], whole.replicate_mass["en"])
    write_profile(second, read, profile_inputs(read))
    assert first.read_bytes() == second.read_bytes()


def test_arrays_of_another_profile_and_old_profiles_are_refused(whole: Profile, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    write_profile(path, whole, {})
    path.with_suffix(".safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match=r"profile\.safetensors is missing or not of profile\.json"):
        read_profile(path)
    write_artefact(path, "routing_profile", {}, {"groups": {}})
    with pytest.raises(UserError, match="written by an older version"):
        read_profile(path)
