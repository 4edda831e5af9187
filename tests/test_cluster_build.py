"""A whole recipe on a cluster of two nodes on this machine, beside the same in one process."""

import json
import shutil
from pathlib import Path

import pytest

from data_recipes.artefact import file_hashes, read_artefact
from data_recipes.build import BuildOptions, build_dataset
from tests.throughput_rows import paragraph_rows

ROOT = Path(__file__).parents[1]
RECIPE = {
    "name": "cluster",
    "languages": ["ta"],
    "general_languages": ["en"],
    "tasks": ["date"],
    "train_rows_per_task": 12,
    "validation_rows_per_task": 2,
    "test_rows_per_task": 2,
    "general_test_rows_per_task": 2,
    "rows_per_part": 10,
    "chat": {"tokenizer": "./tokenizer"},
    "sources": [{"files": {"paths": ["rows.jsonl"], "licence": "BSD-3-Clause", "language": "hi"}}],
}


@pytest.mark.slow
def test_a_whole_build_on_two_nodes_gives_the_bytes_of_one_process(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE), encoding="utf-8")
    lines = [json.dumps({"messages": row["messages"]}) for row in paragraph_rows(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    shutil.copytree(ROOT / "finetune/tiny_glm", tmp_path / "tokenizer")
    alone = build_dataset(tmp_path / "recipe.yaml", tmp_path / "alone")
    options = BuildOptions(engine="datatrove", nodes=("env NODE=one", "env NODE=two"))
    cluster = build_dataset(tmp_path / "recipe.yaml", tmp_path / "cluster", options=options)
    manifest = read_artefact(cluster / "manifest.json", "dataset_manifest")
    assert manifest["n_rows"]["train"] > 40 and manifest["pii"] and manifest["rejected"]["duplicates"]
    assert file_hashes(cluster) == file_hashes(alone)
