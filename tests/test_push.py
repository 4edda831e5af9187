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


def test_a_dry_run_needs_no_token_and_no_network(
    tiny_run: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", "no such file")
    line = ["push", "--run", str(tiny_run.folder), "--repo", ALL.repo, "--base", HUB_BASE, "--dry-run"]
    assert main([*line, "--formats", *ALL.formats]) == 0
    said = capsys.readouterr().out
    rows = re.findall(r"^  ([0-9a-f]{64}) +([\d,]+)  (.+)$", said, re.MULTILINE)
    every = [file for _, files in tiny_run.contents for file in files]
    assert rows == [(file.sha256, f"{file.n_bytes:,}", file.name) for file in every]
    assert re.findall(r"^(?:model|dataset) +(\S+)  (\w+)", said, re.MULTILINE) == [
        ("ann/tuned-data", "private"),
        ("ann/tuned", "private"),
        ("ann/tuned-merged", "private"),
    ]


def test_pushing_again_makes_no_commit_and_says_so(
    tiny_run: Any, server: HubServer, capsys: pytest.CaptureFixture[str]
):
    pushed(tiny_run, server)
    n_bytes = server.n_bytes_put
    capsys.readouterr()
    outcomes = pushed(tiny_run, server)
    assert [one.commit for one in outcomes] == [None, None, None]
    assert capsys.readouterr().out.count("unchanged, no commit") == 3
    assert server.n_bytes_put == n_bytes
    # One that the Hub makes, and one of ours.
    assert [len(repo.commits) for repo in server.repos.values()] == [2, 2, 2]


def test_what_was_pushed_loads_by_the_cards_own_code_with_the_same_numbers(
    tiny_run: Any, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pushed(tiny_run, server)
    pulled = {
        name: huggingface_hub.snapshot_download(
            name, endpoint=server.url, token=TOKEN, local_dir=tmp_path / name.replace("/", "-")
        )
        for name in ("ann/tuned", "ann/tuned-merged")
    }
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: pulled[name])
    names = {f'"{HUB_BASE}"': repr(tiny_run.base.model)}
    names |= {f'.from_pretrained({before}"{name}"': f".from_pretrained({before}{folder!r}"
              for name, folder in pulled.items() for before in ("", "model, ")}
    expected = tuned_logits(tiny_run.base, tiny_run.folder / "adapter")
    blocks = []
    for folder in pulled.values():
        blocks += re.findall(r"```python\n(.*?)```", (Path(folder) / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3  # PEFT, local-experts, merged
    for block in blocks:
        code = block
        for name, place in names.items():
            code = code.replace(name, place)
        variables: dict[str, Any] = {}
        exec(code, variables)
        torch.testing.assert_close(logits(variables["model"]), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(logits(plain(tiny_run.base)), expected, rtol=0, atol=1e-3)
