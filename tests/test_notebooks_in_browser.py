"""A notebook runs to its end in a real JupyterLab in a browser, and its slider changes the plan there."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
from chromium import chromium
from playwright.sync_api import Page, expect

ROOT = Path(__file__).parents[1]
NOTEBOOK = "02_routing_and_experts.ipynb"
# Of the parameters in the second cell: few rows, so that it takes seconds.
DATA = ["languages=[ta]", "general_languages=[en, hi]", "train_rows_per_task=10"]
CHANGES = [f"data.overrides={json.dumps(DATA)}", "profile.max_tokens=2048"]
SETTINGS = {
    "notebook-extension/tracker": {
        "windowingMode": "none"
    },  # all cells are in the page, not the visible ones
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
START_S, RUN_S = 60, 240


def project_copy(folder: Path) -> Path:
    """A project of one notebook with small parameters: it writes its runs there, and none into this one."""
    (folder / "notebooks").mkdir(parents=True)
    (folder / "configs").symlink_to(ROOT / "configs")
    notebook = nbformat.read(ROOT / "notebooks" / NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    changed = notebook.cells[1].source.replace("CHANGES = []", f"CHANGES = {CHANGES}")
    assert changed != notebook.cells[1].source
    notebook.cells[1].source = changed
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, folder / "notebooks" / NOTEBOOK)
    return folder


@contextmanager
def jupyterlab(project: Path, home: Path) -> Iterator[str]:
    """The address of a JupyterLab over `project`; what it keeps of a user lies in `home`."""
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
    }
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {name: str(home / folder) for name, folder in folders.items()}
    line = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}"]
    line += ["--ServerApp.port_retries=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={project}"]
    with (home / "log.txt").open("w") as log:
        server = subprocess.Popen(
            line, env=environment | {"PYTHONPATH": search}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_it_answers(f"{address}/api", server, home / "log.txt")
            yield address
        finally:
            server.terminate()  # its kernels end with it
            server.wait(timeout=30)


def wait_until_it_answers(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(START_S * 4):
        assert server.poll() is None, log.read_text(encoding="utf-8")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.25)
    pytest.fail(f"JupyterLab did not answer in {START_S} s:\n{log.read_text(encoding='utf-8')}")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """The notebook in a browser, before it is run; the page's address is that of the server."""
    with chromium() as browser, jupyterlab(project_copy(tmp_path / "project"), tmp_path) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.goto(f"{address}/lab/tree/notebooks/{NOTEBOOK}", timeout=START_S * 1000)
        yield page


def run_all_cells(page: Page, n_cells: int) -> None:
    """Run the notebook by its menu and wait for the last cell's number."""
    page.locator(".jp-Notebook .jp-CodeCell").nth(n_cells - 1).wait_for(timeout=START_S * 1000)
    # What is asked of a kernel that is not there yet is lost.
    expect(page.get_by_text("| Idle")).to_be_visible(timeout=START_S * 1000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    prompt = page.locator(".jp-CodeCell").last.locator(".jp-InputPrompt")
    error = page.locator("[data-mime-type='application/vnd.jupyter.error']").first
    expect(prompt.get_by_text(f"[{n_cells}]:").or_(error).first).to_be_visible(timeout=RUN_S * 1000)


@pytest.mark.slow
def test_a_notebook_runs_to_its_end_in_jupyterlab_and_its_slider_changes_the_plan(page: Page):
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    notebook: Any = nbformat.read(ROOT / "notebooks" / NOTEBOOK, as_version=4)
    n_cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    run_all_cells(page, n_cells)
    assert page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts() == []
    last = page.locator(".jp-CodeCell").last.locator(".jp-OutputArea-output")
    expect(last).to_contain_text("of the target's tokens in each layer")

    chosen = page.locator(".jupyter-widgets td b")
    before = chosen.all_inner_texts()
    assert before[1] == "0.6" and " of 160" in before[2]
    page.locator(".jupyter-widgets .noUi-handle").press("ArrowRight")
    expect(chosen.nth(1)).to_have_text("0.7")
    assert int(chosen.nth(2).inner_text().split()[0]) > int(before[2].split()[0])
    picture = page.locator(".jupyter-widgets img")
    expect(picture).to_have_attribute("alt", "experts chosen at p = 0.7")

    address = page.url.split("/lab")[0]
    own = (address, address.replace("http", "ws"), "data:", "blob:")
    assert requests and [url for url in requests if not url.startswith(own)] == []
