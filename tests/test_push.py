"""A push to a server that speaks the Hub's protocol, by the real client: what goes, and what goes wrong."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from finished_run import HUB_BASE, save_results, save_run, save_small_adapter
from hub_server import Blob, Fault, HubServer, Repo, hub
from huggingface_hub import ModelCard
from huggingface_hub.utils import _http, _runtime
from tuned_bases import logits, plain, save_base, tuned_logits

from data_recipes.artefact import UserError
from data_recipes.dataset import read_split
from finetune.cli import main
from finetune.exporting.peft_folder import read_stamp
from finetune.hub.contents import WHAT, Wanted
from finetune.hub.push import prepare, push
from finetune.hub.send import logged_in, send

ROOT = Path(__file__).parents[1]
TOKEN, BOBS = "hf_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7", "hf_" + "b" * 34
ALL = Wanted("ann/tuned", formats=("ours", "peft", "vllm", "sglang", "merged"))
OURS = Wanted("ann/tuned", what=("adapter",))


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run that no test changes, its base, and what a push of all formats prepares."""
    from conftest import build_tiny_model, build_tiny_tokenizer

    top = tmp_path_factory.mktemp("push")
    base = save_base(build_tiny_model(vocab_size=262), build_tiny_tokenizer(), top / "private-base")
    folder = save_run(top / "run", base)
    contents = prepare(folder, ALL, base, HUB_BASE)
    adapter = prepare(Path(shutil.copytree(folder, top / "other-run")), OURS, base, HUB_BASE)
    return SimpleNamespace(folder=folder, base=base, contents=contents, adapter=adapter)


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


def sent(run: Any, server: HubServer) -> list[Any]:
    """Only the sending, of the adapter in two formats that was prepared once."""
    return list(send(logged_in(server.url)[0], run.adapter, private=True))


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


@pytest.mark.slow
def test_an_export_that_was_compared_less_than_asked_is_made_again(run: Any):
    wanted = replace(OURS, formats=("peft",), check="logits")
    for _ in range(2):
        ((_, files),) = prepare(run.folder, wanted, run.base, HUB_BASE)
        (stamp,) = [read_stamp(file.path.parent) for file in files if file.name == "export.json"]
        assert stamp and stamp["check"]["logit_difference"] < 1e-4


def test_a_merged_checkpoint_alone_touches_no_adapter(tiny_run: Any):
    wanted = replace(OURS, formats=("merged",))
    ((repository, files),) = prepare(tiny_run.folder, wanted, tiny_run.base, HUB_BASE)
    assert repository.name == "ann/tuned-merged"
    card: Any = ModelCard.load(next(file.path for file in files if file.name == "README.md"))
    assert (card.data.base_model_relation, card.data.library_name) == ("finetune", "transformers")
    assert "vllm serve ann/tuned-merged" in card.text


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
    rows = huggingface_hub.snapshot_download(
        "ann/tuned-data", repo_type="dataset", endpoint=server.url, token=TOKEN, local_dir=tmp_path / "data"
    )
    for split in ("train", "validation", "test"):
        assert list(read_split(rows, split)) == list(read_split(tiny_run.folder / "data", split))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: pulled[name])
    names = {f'"{HUB_BASE}"': repr(tiny_run.base.model)}
    names |= {
        f'.from_pretrained({before}"{name}"': f".from_pretrained({before}{folder!r}"
        for name, folder in pulled.items()
        for before in ("", "model, ")
    }
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


@pytest.fixture
def run(tiny_run: Any, tmp_path: Path) -> Any:
    """A copy of the finished run that a test may change; its exports are made already."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run.folder, folder)
    save_results(folder, tiny_run.base)
    return SimpleNamespace(folder=folder, base=tiny_run.base)


def test_a_changed_run_sends_what_changed_and_removes_what_is_stale(run: Any, server: HubServer):
    pushed(run, server, replace(ALL, formats=("ours", "peft", "vllm", "sglang")))
    shutil.rmtree(run.folder / "adapter")
    save_small_adapter(run.folder / "adapter", run.base, seed=6)
    save_results(run.folder, run.base)
    of_adapter = pushed(run, server, replace(OURS, what=WHAT, formats=("ours",)))[1]
    there = server.files("model", "ann/tuned")
    # No file of the old adapter for PEFT, vLLM or SGLang may stay beside the new one.
    assert of_adapter.n_removed == 9
    assert "adapter_model.safetensors" not in there
    assert {name.partition("/")[0] for name in there if "/" in name} == {
        ".eval_results",
        "local-experts",
        "report",
    }
    assert (
        there["local-experts/adapter.safetensors"]
        == (run.folder / "adapter/adapter.safetensors").read_bytes()
    )
    assert len(server.repos["dataset", "ann/tuned-data"].commits) == 2  # the rows did not change


def test_a_push_of_the_report_alone_leaves_the_adapter_and_its_card(run: Any, server: HubServer):
    pushed(run, server, replace(OURS, what=("adapter", "report")))
    before = server.files("model", "ann/tuned")
    (run.folder / "report.html").write_text("<p>another page</p>")
    (outcome,) = pushed(run, server, replace(OURS, what=("report",)))
    assert (outcome.n_sent, outcome.n_removed) == (1, 0)
    assert server.files("model", "ann/tuned") == before | {"report/report.html": b"<p>another page</p>"}


REFUSED = [
    ("GET", "whoami", 401, "log in again with `hf auth login`"),
    ("GET", "whoami", 429, "too many requests"),
    ("POST", "repos/create", 500, r"the Hub failed \(500\). It says: made to fail with 500"),
    ("POST", "preupload", 403, "somebody else's, or your token may not write there"),
    ("POST", "objects/batch", 429, "too many requests: wait some minutes"),
    ("PUT", "storage", 500, r"ann/tuned: the Hub failed \(500\)"),
    ("PUT", "storage", "cut", "ann/tuned: the connection broke"),
    ("POST", "verify", 500, r"ann/tuned: the Hub failed \(500\)"),
    ("POST", "commit", 403, "choose another --repo"),
    ("POST", "commit", 409, "changed by somebody else in the meantime"),
    ("POST", "commit", 412, "changed by somebody else in the meantime"),
    ("POST", "commit", 500, "push again, and what was uploaded is not sent again"),
    ("POST", "commit", "cut", "the connection broke"),
    ("POST", "commit", "deaf", "the connection broke"),
]


@pytest.mark.parametrize(("method", "path", "kind", "message"), REFUSED)
def test_a_push_that_fails_publishes_no_half_and_the_next_one_finishes(
    method: str, path: str, kind: Any, message: str, tiny_run: Any, server: HubServer
):
    server.faults = [Fault(method, path, kind, times=50)]
    with pytest.raises(UserError, match=message) as raised:
        sent(tiny_run, server)
    assert TOKEN not in str(raised.value)
    repo = server.repos.get(("model", "ann/tuned"))
    n_files = [len(tree) for _, tree in repo.commits] if repo else []
    assert n_files in ([], [1], [1, 9])  # no commit of ours, or, if only its answer was lost, a whole one
    server.faults = []
    (outcome,) = sent(tiny_run, server)
    assert (outcome.commit is None) == (kind == "deaf")
    assert len(server.files("model", "ann/tuned")) == 9
    large = sum(
        len(b) for name, b in server.files("model", "ann/tuned").items() if name.endswith(".safetensors")
    )
    assert server.n_bytes_put == large  # each once, over both pushes


@pytest.mark.parametrize("kind", [429, 500, "cut"])
def test_a_fault_that_passes_is_not_noticed(kind: Any, tiny_run: Any, server: HubServer):
    server.faults = [Fault("PUT", "storage", kind)]
    (outcome,) = sent(tiny_run, server)
    assert outcome.commit
    assert server.n_asked("PUT", "storage") == 3


@pytest.mark.parametrize("public", [None, False, True])
def test_a_repository_of_someone_else_is_refused_before_anything_is_sent(
    public: bool | None, tiny_run: Any, server: HubServer
):
    if public is not None:
        server.repos["model", "bob/tuned"] = Repo(private=not public)
        server.repos["model", "bob/tuned"].add({})
    before = {key: list(repo.commits) for key, repo in server.repos.items()}
    with pytest.raises(UserError, match=r"^bob/tuned: it is somebody else's.*\(403\)"):
        pushed(tiny_run, server, Wanted("bob/tuned", what=("adapter",)))
    assert {key: repo.commits for key, repo in server.repos.items()} == before
    assert server.n_bytes_put == 0


@pytest.mark.parametrize(("there", "asked"), [(True, False), (False, True)])
def test_a_repository_of_the_other_visibility_is_refused(
    there: bool, asked: bool, tiny_run: Any, server: HubServer
):
    api, _ = logged_in(server.url)
    assert list(send(api, tiny_run.adapter, private=there))
    word = "private" if there else "public"
    with pytest.raises(UserError, match=f"ann/tuned is {word} on the Hub and would have to be"):
        list(send(api, tiny_run.adapter, private=asked))


def test_without_a_token_or_offline_the_way_out_is_said(
    tiny_run: Any, server: HubServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tiny_run.folder / "none"))
    with pytest.raises(UserError, match="log in with `hf auth login`, or set HF_TOKEN"):
        pushed(tiny_run, server)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="unset it .HF_HUB_OFFLINE=0 local-experts push"):
        pushed(tiny_run, server)
    assert server.asked == []


def test_the_token_is_in_no_file_no_address_and_no_message(
    tiny_run: Any, server: HubServer, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    caplog.set_level("DEBUG")
    server.faults = [Fault("PUT", "storage", 500), Fault("POST", "commit", 500)]
    with pytest.raises(UserError):
        pushed(tiny_run, server, OURS)
    pushed(tiny_run, server, OURS)
    said = capfd.readouterr()
    assert "ann/tuned" in said.out and len(caplog.records) > 10
    assert TOKEN not in said.out + said.err + caplog.text
    assert not any(TOKEN in address for _, address, _ in server.asked)
    assert sum(TOKEN in str(headers) for _, _, headers in server.asked) > 10
    files = [file for file in tiny_run.folder.rglob("*") if file.is_file()]
    assert len(files) > 40 and not any(TOKEN.encode() in file.read_bytes() for file in files)


def test_a_server_without_xet_is_sent_to_by_lfs_where_the_client_alone_fails(
    tiny_run: Any, server: HubServer
):
    assert _runtime.is_xet_available()
    sent(tiny_run, server)
    assert server.n_asked("GET", "/api/models/ann/tuned/xet-write-token/main") == 1
    assert server.n_asked("PUT", "storage") == 2
    assert not huggingface_hub.constants.HF_HUB_DISABLE_XET
    weights = tiny_run.folder / "adapter" / "adapter.safetensors"
    api = huggingface_hub.HfApi(endpoint=server.url, token=TOKEN)
    with pytest.raises(Exception, match="404|xet"):
        api.upload_file(
            path_or_fileobj=weights.read_bytes() + b" ", path_in_repo="a.safetensors", repo_id="ann/tuned"
        )


def test_where_the_server_has_xet_it_is_used_and_a_storage_that_fails_is_one_message(
    tiny_run: Any, server: HubServer, monkeypatch: pytest.MonkeyPatch
):
    server.xet = True
    with pytest.raises(
        UserError, match="ann/tuned: the connection broke .*HF_HUB_DISABLE_XET=1 sends by LFS"
    ):
        sent(tiny_run, server)
    assert server.n_asked("POST", "^/xet/v1/xorbs/") > 0
    assert len(server.repos["model", "ann/tuned"].commits) == 1
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    n_asked = server.n_asked("GET", "xet-write-token")
    (outcome,) = sent(tiny_run, server)
    assert outcome.commit
    assert server.n_asked("GET", "xet-write-token") == n_asked


def test_a_file_that_changes_while_it_is_sent_is_noticed(run: Any, server: HubServer):
    contents = prepare(run.folder, OURS, run.base, HUB_BASE)
    (run.folder / "adapter" / "train.json").write_text("{}")
    with pytest.raises(UserError, match="other bytes than were listed for local-experts/train.json"):
        list(send(logged_in(server.url)[0], contents, private=True))


def test_a_repository_that_hides_files_from_a_commit_is_refused(tiny_run: Any, server: HubServer):
    repo = server.repos["model", "ann/tuned"] = Repo(private=True)
    repo.add({".gitignore": Blob(b"*.json", False)})
    with pytest.raises(UserError, match="ann/tuned has a .gitignore"):
        sent(tiny_run, server)


def test_a_token_that_may_only_read_is_refused_at_once(tiny_run: Any, server: HubServer):
    server.role = "read"
    with pytest.raises(UserError, match="the token of ann may only read"):
        pushed(tiny_run, server)
    assert len(server.asked) == 1


@pytest.mark.slow
def test_a_killed_push_goes_on_and_the_cards_commands_fetch_what_the_servers_load(
    run: Any, server: HubServer, tmp_path: Path
):
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
    }
    line = [sys.executable, "-m", "finetune.cli", "push", "--run", str(run.folder), "--repo", ALL.repo]
    line += ["--base", HUB_BASE, "--what", "adapter", "--formats", "ours", "vllm", "sglang"]
    process = subprocess.Popen(line, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    server.faults = [Fault("PUT", "storage", process.kill)]
    process.communicate(timeout=120)
    assert process.returncode == -9
    assert list(server.files("model", "ann/tuned")) == [".gitattributes"]
    finished = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert "ann/tuned: 11 files in commit" in finished.stdout
    card = server.files("model", "ann/tuned")["README.md"].decode()
    downloads = re.findall(r"^hf download .*$", card, re.MULTILINE)
    assert len(downloads) == 2
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for download in downloads:
        subprocess.run(
            download,
            shell=True,
            check=True,
            cwd=tmp_path,
            env=environment | {"PATH": path},
            capture_output=True,
        )
    for name in ("vllm", "sglang"):
        assert f"--lora-modules tuned=tuned/{name}" in card or f"--lora-paths tuned=tuned/{name}" in card
        assert read_stamp(tmp_path / "tuned" / name)
