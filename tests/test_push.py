"""A push to a server that speaks the Hub's protocol, by the real client: what goes, and what goes wrong."""

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from finished_run import HUB_BASE, save_run, save_small_adapter, save_results
from hub_server import Fault, HubServer, hub
from huggingface_hub.utils import _http
from tuned_bases import logits, plain, save_base, tuned_logits

from data_recipes.artefact import UserError
from finetune.cli import main
from finetune.hub.contents import Wanted
from finetune.hub.push import prepare, push

TOKEN, BOBS = "hf_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7", "hf_" + "b" * 34
ALL = Wanted("ann/tuned", formats=("ours", "peft", "vllm", "sglang", "merged"))


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run that no test changes, its base, and what a push of all formats prepares."""
    from conftest import build_tiny_model, build_tiny_tokenizer

    top = tmp_path_factory.mktemp("push")
    base = save_base(build_tiny_model(vocab_size=262), build_tiny_tokenizer(), top / "private-base")
    folder = save_run(top / "run", base)
    contents = prepare(folder, ALL, base, HUB_BASE)
    return SimpleNamespace(folder=folder, base=base, contents=contents)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Hub with two users; Ann is logged in, and no retry waits."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    huggingface_hub.utils.disable_progress_bars()
    with hub({TOKEN: "ann", BOBS: "bob"}) as running:
        yield running
    huggingface_hub.utils.close_session()


def pushed(run: Any, server: HubServer, wanted: Wanted = ALL, **options: Any) -> list[Any]:
    return push(run.folder, wanted, base=run.base, hub_base=HUB_BASE, endpoint=server.url, **options)


def test_the_push_sends_exactly_what_the_dry_run_shows(tiny_run: Any, server: HubServer):
    outcomes = pushed(tiny_run, server)
    assert [one.repository for one in outcomes] == ["ann/tuned-data", "ann/tuned", "ann/tuned-merged"]
    for repository, files in tiny_run.contents:
        there = server.files(repository.kind, repository.name)
        there.pop(".gitattributes")
        shown = {file.name: (file.n_bytes, file.sha256) for file in files}
        assert {name: (len(b), hashlib.sha256(b).hexdigest()) for name, b in there.items()} == shown
        assert server.repos[repository.kind, repository.name].private
