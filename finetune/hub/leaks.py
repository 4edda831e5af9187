"""What may never be published: pickles, tokens and secrets, and folder names of this machine.

Reads the files that are about to go; a secret is named by where it comes from, never shown.
A path of this machine is read up to its first space: one whose name has a space is not seen, unless it is
one of the folders that the push names.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from data_recipes.artefact import UserError

# Files that run code when they are loaded, as the Hub's own scanner lists them.
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".dill", ".npy", ".npz")
SECRET_FORMS = {
    "a Hugging Face token": re.compile(rb"\bhf_[A-Za-z0-9]{20,}"),
    "a Hugging Face organisation token": re.compile(rb"\bapi_org_[A-Za-z0-9]{30,}"),
    "an OpenAI or Anthropic key": re.compile(rb"\bsk-[A-Za-z0-9_-]{32,}"),
    "a GitHub token": re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})"),
    "an AWS key": re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|_KEY$", re.IGNORECASE
)
SHORTEST_SECRET = 8  # letters: a shorter value is no secret that could be told from a word
WINDOW_BYTES, OVERLAP_BYTES = 1 << 22, 1 << 12
TEXT_SUFFIXES = (".json", ".jsonl", ".md", ".html", ".yaml", ".txt", ".csv")
# Not by \w: vowel signs of Indian scripts are no letters to it.
NAME = r"[^\s/\"'`<>|\\,;()\[\]{}*?\ufffd]+"
BEFORE = r"(?:(?<=file://)|(?<![\w./<~-]))"  # what an absolute path may follow; an address has its host there
ABSOLUTE_PATH = re.compile(rf"{BEFORE}/{NAME}(?:/{NAME})+")
HOME_FOLDER = re.compile(rf"{BEFORE}/(?:home|Users)/(?:{NAME}|\\u[0-9a-f]{{4}})")
SENTENCE_END = ".:!…।۔"
# Made by the run, so a home folder there is somebody's; a row may speak of one.
RUN_FILES = (
    "report.json",
    "results.json",
    "plan.json",
    "manifest.json",
    "adapter_config.json",
    "export.json",
)
ADAPTER_FOLDERS = ("local-experts/", "vllm/", "sglang/")
SYSTEM_FOLDERS = ("bin", "dev", "etc", "lib", "lib64", "proc", "sbin", "sys", "usr")  # the same everywhere


def environment_secrets(environment: Mapping[str, str], token: str | None) -> dict[str, bytes]:
    """What to look for by value: the Hub token, and variables whose names say that they are secret."""
    found = {
        f"the value of ${name}": value.encode()
        for name, value in environment.items()
        if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET and not os.path.exists(value)
    }
    return found | ({"your Hub token": token.encode()} if token else {})


def machine_folders(folders: Iterable[Path]) -> list[str]:
    """The folders whose names nobody else should read, as they could stand in a file.

    A name right under / ("/root", "/data") says nothing of anybody, and rows may speak of it.
    """
    every = {form for folder in folders for form in (str(folder.absolute()), str(folder.resolve()))}
    return sorted(form for form in every if len(Path(form).parts) > 2)


def refuse_leaks(files: Mapping[str, Path], secrets: Mapping[str, bytes], folders: Sequence[str]) -> None:
    """Read the files that are to go, by their path in the repository.

    Raises:
        UserError: one is a pickle, or holds a secret, one of `folders` or another path; all are listed.
    """
    problems = []
    for name, path in sorted(files.items()):
        if name.lower().endswith(PICKLE_SUFFIXES):
            problems.append(f"{name}: a pickle or array file, which can run code when it is loaded")
        problems += [f"{name}: {what}" for what in _found_in(name, path, secrets, folders)]
    if problems:
        raise UserError(
            "nothing was sent, because these may not be published:\n  "
            + "\n  ".join(problems)
            + "\nremove them from the run's folder, or make the files again without them"
        )


def _found_in(name: str, path: Path, secrets: Mapping[str, bytes], folders: Sequence[str]) -> list[str]:
    sought = {
        f"the folder {folder} of this machine": re.compile(
            rb"(?<![\w.-])" + re.escape(folder.encode()) + rb"(?![\w-])"
        )
        for folder in folders
    }
    sought |= {what: re.compile(re.escape(value)) for what, value in secrets.items()} | SECRET_FORMS
    found: list[str] = []
    rest = b""
    for block in _texts(path):
        window = rest + block
        found += [what for what, pattern in sought.items() if what not in found and pattern.search(window)]
        if name.endswith(TEXT_SUFFIXES):
            paths = _paths_in(name, window.decode(errors="replace"))
            found += [what for what in paths if what not in found]
        rest = window[-OVERLAP_BYTES:]
    return found


def _paths_in(name: str, text: str) -> list[str]:
    """Absolute paths in a text that exist on this machine, as that of a recipe's source, and home folders."""
    found = {form for path in ABSOLUTE_PATH.findall(text) for form in (path, path.rstrip(SENTENCE_END))}
    own = [path for path in found if path.split("/")[1] not in SYSTEM_FOLDERS and os.path.exists(path)]
    told = [f"the path {path} of this machine" for path in sorted(own)]
    if name.rpartition("/")[2] in RUN_FILES or name.startswith(ADAPTER_FOLDERS):
        homes = {home.rstrip(SENTENCE_END) for home in HOME_FOLDER.findall(text)}
        told += [f"the home folder {home} of a machine" for home in sorted(homes)]
    return told


def _texts(path: Path) -> Iterator[bytes]:
    """A file in blocks; of safetensors only the header: what follows is numbers, up to terabytes of them."""
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            yield file.read(min(int.from_bytes(file.read(8), "little"), path.stat().st_size))
            return
        while block := file.read(WINDOW_BYTES):
            yield block
