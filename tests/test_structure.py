"""The rules of CONTRIBUTING.md that a machine can hold, over every file git knows of or would add.

Each rule is a function from a source to its list of offences. Each is also shown a source that breaks it, so
that a rule which has stopped looking fails here.
"""

import ast
import json
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# Each may import itself and those to its left.
PACKAGES = ("data_recipes", "finetune", "eval")
# These two name the stages of eval as strings and import them when they are asked for.
STAGE_CALLERS = ("finetune/cli.py", "finetune/run.py")
# Each of these may hold one long function: the loop, to be read from top to bottom.
LOOP_FILES = ("finetune/train.py", "finetune/base.py")
DEVICE_FILE = "finetune/model.py"
MODEL_FOLDER = "finetune/tiny_glm/"

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_LOOP_LINES = 400, 60, 120
MAX_FILE_BYTES, MAX_MODEL_BYTES, MAX_NOTEBOOK_BYTES = 1_000_000, 40_000_000, 100 * 1024
REGISTRY_HOST = re.compile(r"pypi[.]org|pythonhosted[.]org|npmjs[.]|download[.]pytorch|deb[.]debian")
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/")


def repository_files(*suffixes: str) -> list[str]:
    """Paths (relative, with /) that are tracked or would be added; with one of `suffixes` if any is given."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    paths = sorted(p for p in set(listing.split("\0")) if p and (ROOT / p).is_file())
    return [p for p in paths if not suffixes or p.endswith(suffixes)]


def in_packages(paths: list[str]) -> list[str]:
    return [p for p in paths if p.split("/")[0] in PACKAGES]


def python_source(path: str) -> str:
    """The text of a module, or the code cells of a notebook without their magics."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if not path.endswith(".ipynb"):
        return text
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    lines = "\n".join(cells).splitlines()
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


def strings(tree: ast.AST) -> list[str]:
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [value for value in constants if isinstance(value, str)]


def is_module(name: str) -> bool:
    return (
        bool(re.fullmatch(r"\w+(\.\w+)+", name))
        and (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()
    )


def wrong_way_imports(path: str, source: str) -> list[str]:
    tree, package = ast.parse(source), path.split("/")[0]
    later = PACKAGES[PACKAGES.index(package) + 1 :]
    named = [] if path in STAGE_CALLERS else [text for text in strings(tree) if is_module(text)]
    return [name for name in [*imported_modules(tree), *named] if name.split(".")[0] in later]


def shadowing_imports(path: str, source: str) -> list[str]:
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import)]
    return [alias.name for node in imports for alias in node.names if alias.name.split(".")[0] == "eval"]


def too_long(path: str, source: str) -> list[str]:
    n_lines = len(source.splitlines())
    offences = [f"{n_lines} lines"] if n_lines > MAX_FILE_LINES else []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
    long = {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES}
    if path in LOOP_FILES and len(long) == 1 and max(long.values()) <= MAX_LOOP_LINES:
        return offences
    return offences + [f"{name}: {length} lines" for name, length in long.items()]


def missing_docstring(path: str, source: str) -> list[str]:
    return [] if ast.get_docstring(ast.parse(source)) else ["no module docstring"]


def device_names(path: str, source: str) -> list[str]:
    tree = ast.parse(source)
    if path == DEVICE_FILE:
        return []
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "cuda"]
    literals = [text for text in strings(tree) if text.split(":")[0] == "cuda"]
    return [f"line {node.lineno}: .cuda" for node in attributes] + literals


def machine_names(path: str, source: str) -> list[str]:
    return REGISTRY_HOST.findall(source) + MACHINE_PATH.findall(source)


def vague_name(path: str, source: str) -> list[str]:
    return [path] if Path(path).stem in ("utils", "util", "common", "helpers", "helper", "misc") else []


def not_executed(path: str, source: str) -> list[str]:
    """Cells that were not run, run out of order or ended in an error; `source` is the notebook's JSON."""
    cells = [cell for cell in json.loads(source)["cells"] if cell["cell_type"] == "code" and cell["source"]]
    counts = [cell["execution_count"] for cell in cells]
    errors = [out for cell in cells for out in cell["outputs"] if out["output_type"] == "error"]
    in_order = bool(cells) and counts == list(range(1, len(cells) + 1))
    size = len(source.encode())
    offences = [] if in_order else [f"execution counts {counts}"]
    offences += [f"{out['ename']}: {out['evalue']}" for out in errors]
    return offences + ([f"{size} bytes"] if size > MAX_NOTEBOOK_BYTES else [])


Rule = Callable[[str, str], list[str]]


def offences_of(rule: Rule, paths: list[str], read: Callable[[str], str]) -> list[str]:
    """Every offence as `path: what`; no file to read at all is an error of the guard itself."""
    assert len(paths) > 0, f"{rule.__name__} read no file"
    return [f"{path}: {offence}" for path in paths for offence in rule(path, read(path))]


def test_packages_import_only_to_the_left():
    paths = in_packages(repository_files(".py"))
    assert {p.split("/")[0] for p in paths} == set(PACKAGES)
    assert offences_of(wrong_way_imports, paths, python_source) == []


def test_nothing_imports_over_the_builtin_eval():
    paths = repository_files(".py", ".ipynb")
    assert any(p.endswith(".ipynb") for p in paths), "no notebook was read"
    assert offences_of(shadowing_imports, paths, python_source) == []


@pytest.mark.parametrize("rule", [too_long, missing_docstring, vague_name])
def test_modules_are_short_named_and_say_what_they_are(rule: Rule):
    assert offences_of(rule, repository_files(".py"), python_source) == []


def test_devices_are_named_in_one_place():
    paths = in_packages(repository_files(".py")) + repository_files(".ipynb")
    assert DEVICE_FILE in paths
    assert offences_of(device_names, paths, python_source) == []


def test_no_file_names_a_registry_or_a_folder_of_one_machine():
    paths = [p for p in repository_files() if not p.endswith((".safetensors", ".png"))]
    assert offences_of(machine_names, paths, lambda p: (ROOT / p).read_text(encoding="utf-8")) == []


def test_notebooks_are_committed_executed_and_small():
    paths = repository_files(".ipynb")
    assert offences_of(not_executed, paths, lambda p: (ROOT / p).read_text(encoding="utf-8")) == []


def test_no_file_is_large_but_the_base_model():
    n_bytes = {p: (ROOT / p).stat().st_size for p in repository_files()}
    model = [p for p in n_bytes if p.startswith(MODEL_FOLDER)]
    assert len(model) > 0 and len(n_bytes) > len(model)
    assert [p for p in n_bytes if n_bytes[p] > MAX_FILE_BYTES and p not in model] == []
    assert sum(n_bytes[p] for p in model) <= MAX_MODEL_BYTES


def test_every_dependency_is_pinned_within_its_bounds_and_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    requirements = [Requirement(line) for line in project["dependencies"] + extras]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    reasons = (ROOT / "LOG.md").read_text(encoding="utf-8")
    assert len(requirements) > 0
    assert [r.name for r in requirements if pins.get(canonicalize_name(r.name), "") not in r.specifier] == []
    assert [r.name for r in requirements if f"`{r.name}`" not in reasons] == []


BAD_CELL = {"cell_type": "code", "execution_count": None, "source": ["1/0"], "outputs": []}
BROKEN = [
    (wrong_way_imports, "data_recipes/build.py", "from finetune.config import RunConfig"),
    (wrong_way_imports, "finetune/train.py", "def f():\n    import eval.metrics"),
    (wrong_way_imports, "finetune/train.py", "importlib.import_module('eval.metrics')"),
    (shadowing_imports, "notebooks/00.ipynb", "import eval.report as report"),
    (too_long, "eval/report.py", "x = 1\n" * 401),
    (too_long, "finetune/adapters/lora.py", "def f():\n" + "    x = 1\n" * 60),
    (too_long, "finetune/train.py", "def f():\n" + "    x = 1\n" * 120),
    (missing_docstring, "eval/report.py", "# a comment\nx = 1"),
    (vague_name, "eval/utils.py", ""),
    (device_names, "finetune/train.py", "model.cuda()"),
    (device_names, "finetune/train.py", "model.to('cuda:0')"),
    (machine_names, "README.md", "see /" + "home/me/local-experts"),
    (machine_names, "Makefile", "--index-url https://pypi" + ".org/simple"),
    (not_executed, "notebooks/00.ipynb", json.dumps({"cells": [BAD_CELL]})),
    (not_executed, "notebooks/00.ipynb", json.dumps({"cells": []})),
]


@pytest.mark.parametrize(("rule", "path", "source"), BROKEN)
def test_each_rule_sees_what_breaks_it(rule: Rule, path: str, source: str):
    assert len(rule(path, source)) == 1


def test_a_file_with_a_loop_may_hold_one_long_function_and_no_more():
    loop = "def train():\n" + "    x = 1\n" * 100
    assert too_long("finetune/train.py", loop) == []
    assert len(too_long("finetune/train.py", loop + loop.replace("train", "validate"))) == 2
    assert len(too_long("finetune/adapters/lora.py", loop)) == 1
