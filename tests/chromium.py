"""A real browser for tests: the machine's chromium, else Playwright's own; without either, a skip."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

# As root chromium has no sandbox, and a container little shared memory; without the others it asks its makers
# for updates.
FLAGS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without pages; skips the test where there is none."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
        path = next((path for path in found if path), own)
        if not Path(path).exists():
            pytest.skip("no browser: `make browser` installs Debian's chromium where it may")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()
