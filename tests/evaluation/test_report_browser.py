"""The report in a real browser: at a desk, on a phone of 360 px, and on paper."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import samples
from browser import chromium, screenshot

from evaluation.report import report
from evaluation.results import result_files

pytestmark = pytest.mark.slow


def decode_step() -> bytes:
    """A timeline of two layers with two ops each, as the trace stage writes it."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": 0, "args": {"name": "0.tensor"}},
        {"ph": "M", "name": "thread_name", "pid": 100, "tid": 1, "args": {"name": "ops"}},
    ]
    for number in range(4):
        name = f"layer {number // 2} {('rmsnorm', 'experts_decode')[number % 2]}"
        start = 10.0 * number
        events += [
            {"ph": "X", "name": name, "pid": 100, "tid": 1, "ts": start, "dur": 10.0,
             "args": {"kernel": "nki_rmsnorm_kernel"}},
            {"ph": "X", "name": "matmul", "pid": 0, "tid": 0, "ts": start + 2, "dur": 5.0},
        ]  # fmt: skip
    return gzip.compress(json.dumps({"traceEvents": events}).encode())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch, chromium() as browser:
        patch.chdir(root)
        results = samples.project(root)
        samples.write(results, "baseline")
        samples.write(results, "norms", slower=1.4)
        file = result_files(results, "tiny", "norms")["trace"]
        trace = samples.trace("norms", samples.OPS_OF["norms"])
        trace.model_copy(update={"timeline": "decode_step.json.gz"}).write(file)
        (file.parent / "decode_step.json.gz").write_bytes(decode_step())
        samples.write_kernel_error(results, "rmsnorm")
        html = results / "report.html"
        report(samples.config(), results, results / "summary.json", html)
        context = browser.new_context()
        requests: list[str] = []
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: pytest.fail(str(error)))
        page.goto(html.absolute().as_uri())
        page.requests = requests
        yield page


def test_it_asks_for_nothing_else(page: Any) -> None:
    assert [url for url in page.requests if not url.startswith("data:")] == [page.url]


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (360, 740)])
def test_it_fits_desk_and_phone(page: Any, tmp_path: Path, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    shown = page.locator("figure svg:visible")
    assert shown.count() == 7, "one shape of every plot"
    for number in range(shown.count()):
        box = shown.nth(number).bounding_box()
        assert 0.8 * min(width, 900) < box["width"] <= width
    smallest = page.evaluate(
        """[...document.querySelectorAll('p, td, th, li, summary, figcaption, svg text')]
           .filter(e => e.textContent.trim() && e.getClientRects().length)
           .map(e => e.namespaceURI.endsWith('svg')
             ? e.getBoundingClientRect().height : parseFloat(getComputedStyle(e).fontSize))
           .reduce((a, b) => Math.min(a, b))"""
    )
    assert smallest >= 8, "px: every text can be read"
    screenshot(page, f"report-{width}", tmp_path, full=True)


def test_the_verdict_is_seen_without_scrolling_on_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.evaluate("window.scrollTo(0, 0)")
    for text in ("2 of 3 kernel configurations pass", "Best that passes: norms", "✗ fail"):
        assert page.get_by_text(text).first.bounding_box()["y"] < 700


def test_wide_tables_scroll_inside_themselves_and_keep_their_first_column(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    moved = page.evaluate(
        """(() => {
          const box = document.querySelector('#predicted ~ .scroll');
          const cell = box.querySelector('tbody td');
          const before = cell.getBoundingClientRect().x;
          box.scrollLeft = 120;
          return [box.scrollLeft, cell.getBoundingClientRect().x - before];
        })()"""
    )
    assert moved[0] == 120
    assert abs(moved[1]) < 2


def test_on_paper_nothing_is_cut_off(page: Any, tmp_path: Path) -> None:
    page.emulate_media(media="print")
    # A4 less 1 cm on each side, at 96 px to the inch.
    page.set_viewport_size({"width": 718, "height": 1046})
    assert page.locator("nav").is_hidden()
    assert page.locator(".narrow:visible").count() == 0
    widest = page.evaluate(
        "Math.max(...[...document.querySelectorAll('details[open] table, .scroll > table')]"
        ".filter(e => e.offsetParent).map(e => e.getBoundingClientRect().right))"
    )
    assert widest <= 718
    pdf = page.pdf(format="A4", margin=dict.fromkeys(("top", "bottom", "left", "right"), "1cm"))
    assert pdf.startswith(b"%PDF")
    screenshot(page, "report-print", tmp_path, full=True)
    page.emulate_media(media="screen")
