"""Artefacts appear whole or not at all, and a wrong one is refused by name."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_recipes.artefact import (
    UserError,
    file_hashes,
    is_disk_full,
    package_versions,
    read_artefact,
    sha256_file,
    sha256_folder,
    sha256_json,
    whole_folder,
    write_artefact,
    write_json,
)

ROOT = Path(__file__).parents[1]
# A file-size limit is the one full disk that any machine has: every write past 4 kB fails inside the kernel.
LIMITED = """
import resource, signal, sys
import numpy
from safetensors.numpy import save_file
from data_recipes.artefact import UserError, whole_file, whole_folder, write_json
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    if sys.argv[2] == "json":
        write_json(sys.argv[1], {"text": "x" * 100_000})
    elif sys.argv[2] == "tensors":
        with whole_file(sys.argv[1]) as partial:
            save_file({"counts": numpy.zeros(100_000)}, partial)
    else:
        with whole_folder(sys.argv[1]) as folder:
            (folder / "big").write_bytes(b"x" * 100_000)
except UserError as error:
    print(error)
"""


def written_artefact(path: Path) -> Path:
    write_artefact(path, "expert_plan", {"profile": "ab" * 32}, {"share": 0.5, "experts": {"1": [0, 5]}})
    return path


def under_size_limit(target: Path, what: str) -> str:
    """What a process without room for 100 kB prints when it writes `target`."""
    command = [sys.executable, "-c", LIMITED, str(target), what]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_hashes_are_those_of_sha256(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "a") == known
    assert sha256_json({"b": "ä", "a": 1}) == sha256_json({"a": 1, "b": "ä"})
    assert (
        sha256_json("abc") == "6cc43f858fbb763301637b5af970e2a46b46f461f27e5a0f41e009c59b827b25"
    )  # of "abc" in quotes


def test_a_folder_hash_sees_names_and_bytes(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(b"1")
    first = sha256_folder(tmp_path)
    assert list(file_hashes(tmp_path)) == ["deep/a"]
    (tmp_path / "deep" / "a").write_bytes(b"2")
    second = sha256_folder(tmp_path)
    (tmp_path / "deep" / "a").rename(tmp_path / "deep" / "b")
    assert len({first, second, sha256_folder(tmp_path)}) == 3


def test_json_is_sorted_readable_and_the_same_twice(tmp_path: Path):
    write_json(tmp_path / "new" / "a.json", {"b": "தமிழ்", "a": 1})
    assert (tmp_path / "new" / "a.json").read_text(encoding="utf-8") == '{\n "a": 1,\n "b": "தமிழ்"\n}\n'
    write_json(tmp_path / "b.json", {"a": 1, "b": "தமிழ்"})
    assert sha256_file(tmp_path / "b.json") == sha256_file(tmp_path / "new" / "a.json")


@pytest.mark.parametrize("what", ["json", "tensors", "folder"])
def test_a_full_disk_is_one_message_and_the_old_file_stays(tmp_path: Path, what: str):
    target = tmp_path / "target"
    assert "no space left" in under_size_limit(target, what)
    assert list(tmp_path.iterdir()) == []
    if what != "folder":
        target.write_text("old")
    else:
        written_artefact(target / "plan.json")
    before = file_hashes(target)
    assert "free some disk" in under_size_limit(target, what)
    assert file_hashes(target) == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_rename_leaves_neither_file_nor_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="no space left"):
        write_json(tmp_path / "a.json", {})
    with pytest.raises(UserError, match="no space left"), whole_folder(tmp_path / "folder") as folder:
        (folder / "a").write_text("1")
    assert list(tmp_path.iterdir()) == []


def test_when_the_new_folder_cannot_take_its_place_the_old_one_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written_artefact(tmp_path / "folder" / "plan.json")
    before, replace, calls = file_hashes(tmp_path / "folder"), os.replace, []

    def fail_second(source: str, target: str) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "input/output error")
        replace(source, target)

    with pytest.raises(OSError, match="input/output"), whole_folder(tmp_path / "folder") as folder:
        (folder / "new").write_text("1")
        monkeypatch.setattr(os, "replace", fail_second)
    assert len(calls) == 3
    assert file_hashes(tmp_path / "folder") == before
    assert len(list(tmp_path.iterdir())) == 1


def test_json_cannot_be_written_over_a_folder_or_under_a_file(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    for place in (tmp_path / "folder", tmp_path / "file" / "a.json"):
        with pytest.raises(UserError, match="cannot write"):
            write_json(place, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_not_a_number_is_refused_and_nothing_is_written(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_only_when_its_body_ended(tmp_path: Path):
    target = tmp_path / "new" / "folder"
    with whole_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert file_hashes(target).keys() == {"a"}
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_a_body_that_raises_leaves_no_folder(tmp_path: Path, error: BaseException):
    with pytest.raises(type(error)), whole_folder(tmp_path / "folder") as folder:
        (folder / "a").write_text("1")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_ours_is_replaced_whole(tmp_path: Path):
    target = tmp_path / "folder"
    written_artefact(target / "plan.json")
    with whole_folder(target) as folder:
        (folder / "new").write_text("1")
    assert file_hashes(target).keys() == {"new"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("broken", [1, 2])
def test_an_interrupt_at_a_renaming_leaves_the_old_folder(
    tmp_path: Path, broken: int, monkeypatch: pytest.MonkeyPatch
):
    target = tmp_path / "folder"
    written_artefact(target / "plan.json")
    replace, calls = os.replace, []

    def interrupted(*paths: Path) -> None:
        calls.append(paths)
        if len(calls) == broken:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder(target) as folder:
        (folder / "new").write_text("1")
    assert file_hashes(target).keys() == {"plan.json"}
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path: Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    (tmp_path / "home" / "settings.json").write_text("{}")
    started = False
    with pytest.raises(UserError, match="did not write"), whole_folder(tmp_path / "home"):
        started = True
    assert not started
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(UserError, match="is a file"), whole_folder(tmp_path / "home" / "thesis.txt"):
        started = True
    assert not started


def test_a_new_folder_has_the_rights_of_any_new_folder(tmp_path: Path):
    (tmp_path / "plain").mkdir()
    with whole_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_artefact_comes_back_with_its_head(tmp_path: Path):
    found = read_artefact(written_artefact(tmp_path / "plan.json"), "expert_plan")
    assert found["share"] == 0.5
    assert found["experts"] == {"1": [0, 5]}
    assert found["inputs"] == {"profile": "ab" * 32}
    assert found["versions"] == package_versions()
    assert found["versions"].keys() >= {"torch", "transformers"}
    with pytest.raises(ValueError, match="reserved"):
        write_artefact(tmp_path / "b.json", "expert_plan", {}, {"kind": "other"})


def test_an_artefact_that_does_not_fit_is_refused_with_the_way_out(tmp_path: Path):
    path = written_artefact(tmp_path / "plan.json")
    whole = path.read_text(encoding="utf-8")
    refusals = {
        "is not whole JSON": whole[:-20],
        "is of kind None": "[1, 2]",
        "is of kind 'other'": whole.replace("expert_plan", "other"),
        "has schema 99": whole.replace('"schema": 1', '"schema": 99'),
    }
    for message, text in refusals.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message) as caught:
            read_artefact(path, "expert_plan")
        assert "plan.json" in str(caught.value)
        assert "make it again with `local-experts select --config FILE`" in str(caught.value)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match="is not whole JSON"):
        read_artefact(path, "expert_plan")


def test_an_artefact_that_is_missing_or_a_folder_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"plan.json does not exist .*make it with `local-experts select"):
        read_artefact(tmp_path / "plan.json", "expert_plan")
    with pytest.raises(UserError, match="Is a directory"):
        read_artefact(tmp_path, "expert_plan")
    with pytest.raises(UserError, match="cannot read"):
        sha256_file(tmp_path / "missing")


def test_a_full_disk_is_known_by_number_and_by_text():
    assert is_disk_full(OSError(errno.ENOSPC, "x"))
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(errno.EACCES, os.strerror(errno.EACCES)))
    assert not is_disk_full(RuntimeError("index out of range"))
