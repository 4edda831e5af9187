"""The report in a real browser: it asks for nothing, fits a phone, turns dark; its marks change no shapes.

The browser is the machine's chromium, else Playwright's own; without either the test is skipped and says so.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chromium import chromium
from made_up_run import full_results, write_run

from eval.report import report_stage
from finetune.eval_options import GateConfig

pytestmark = pytest.mark.slow

PHONE = {"width": 390, "height": 844}
# Width of each answer as it stands, and of the same text without marks; signs of one word that are cut apart
# lose their shape, and their width with it.
WIDTHS = """() => [...document.querySelectorAll('dd[dir]:has(mark)')].map(one => {
  const width = element => { const range = document.createRange(); range.selectNodeContents(element);
    return range.getBoundingClientRect().width };
  const plain = one.cloneNode(false); plain.textContent = one.textContent;
  one.style.cssText = plain.style.cssText = 'white-space: nowrap; position: absolute; text-align: left';
  one.parentNode.append(plain);
  const both = [width(one), width(plain), one.lang]; plain.remove(); one.style.cssText = '';
  return both })"""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    """A report with every part, many languages and long names."""
    config = write_run(tmp_path_factory.mktemp("run"), full_results(), GateConfig(max_loss=0.5))
    return report_stage(replace(config, eval=replace(config.eval, samples=120)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


def opened(browser: Any, file: Path, **context: Any) -> tuple[Any, list[str]]:
    """The page, and the addresses that opening it asked for."""
    page = browser.new_context(**context).new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    return page, asked


def test_opening_it_asks_for_nothing_but_itself(browser, page_file):
    _, asked = opened(browser, page_file)
    assert asked[0] == page_file.as_uri()
    assert [url for url in asked[1:] if not url.startswith("data:")] == []


def test_it_fits_a_phone(browser, page_file):
    page, _ = opened(browser, page_file, viewport=PHONE, device_scale_factor=2, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.evaluate("document.querySelectorAll('table').length") >= 20


def test_it_is_dark_where_that_is_wanted_and_light_on_paper(browser, page_file):
    colours = "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])"
    page, _ = opened(browser, page_file, color_scheme="light")
    light = page.evaluate(colours)
    page, _ = opened(browser, page_file, color_scheme="dark")
    dark = page.evaluate(colours)
    assert light == ["rgb(29, 39, 51)", "rgb(255, 255, 255)"]
    assert dark == ["rgb(232, 237, 242)", "rgb(18, 24, 31)"]
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(colours) == light


def test_marks_change_no_shapes(browser, page_file):
    page, _ = opened(browser, page_file)
    widths = page.evaluate(WIDTHS)
    assert len({language for *_, language in widths}) > 15
    assert [one for one in widths if abs(one[0] - one[1]) > 0.5] == []
