"""The report in a real browser: light, dark and on a phone; by eye of a program and by keyboard."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from browser import Browser
from PIL import Image

from microturn.profiling import report

SCREENS: dict[str, dict[str, Any]] = {
    "light": {"width": 1000, "height": 800},
    "dark": {"width": 1000, "height": 800, "dark": True},
    "phone": {"width": 390, "height": 844, "phone": True},
}
FIGURES = ["Waterfall", "Slack", "Sessions", "Roofline", "GPU"]
LEAST_INK = 0.002
"""Of a figure's pixels; a lone title or frame has less."""

OUT_OF_FRAME = """[...document.querySelectorAll('svg')].flatMap(svg => {
  const view = svg.viewBox.baseVal;
  return [...svg.querySelectorAll('text, rect, circle, line, polyline')].filter(part => {
    const box = part.getBBox();
    return box.x < -1 || box.y < -1 || box.x + box.width > view.width + 1
      || box.y + box.height > view.height + 1;
  }).map(part => svg.getAttribute('aria-label') + ': ' + part.outerHTML);
})"""
BOXES = """[...document.querySelectorAll('.figure svg')].map(svg => {
  const box = svg.getBoundingClientRect();
  return [svg.closest('section').querySelector('h2').textContent, box.x + scrollX,
    box.y + scrollY, box.width, box.height];
})"""
STOPS = """[...document.querySelectorAll('a[href], summary, [tabindex="0"]')]
  .filter(part => part.checkVisibility()).map(part => part.outerHTML.slice(0, 120))"""
HERE = """(() => {
  const part = document.activeElement, style = getComputedStyle(part);
  return part === document.body ? null : [part.outerHTML.slice(0, 120),
    style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
    part.getBoundingClientRect().right > 0];
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = browser.installed()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(browser.NAMES)} is installed")
    with browser.browser(program, tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture(scope="module")
def path(captured: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every figure."""
    samples = [
        {"at_ms": 10.0 * i, "power_w": 300.0 + i, "sm_mhz": 1980, "held_back_by": ["SwPowerCap"]}
        for i in range(5)
    ]
    folder = tmp_path_factory.mktemp("report")
    report.write({**captured, "gpu": samples}, folder)
    return folder / "report.html"


def faults(page: Browser, path: Path, screen: str, folder: Path) -> list[str]:
    """Opens it; everything that is wrong with how it looks."""
    page.said.clear()
    page.asked.clear()
    page.look(**SCREENS[screen])
    page.open(path)
    found = [f"the page says {text}" for text in page.said]
    found += [f"asks for {url}" for url in page.asked if url != path.as_uri()]
    wide = page.run("document.documentElement.scrollWidth")
    if wide > SCREENS[screen]["width"]:
        found.append(f"is {wide} pixels wide")
    found += [f"out of its frame, {text}" for text in page.run(OUT_OF_FRAME)]
    image = np.asarray(Image.open(io.BytesIO(page.shot(folder / f"{screen}.png"))).convert("RGB"))
    paper = image[-1, -1].astype(int)
    if (paper.sum() < 384) != (screen == "dark"):
        found.append(f"the paper is {paper}")
    for name, x, y, width, height in page.run(BOXES):
        part = image[int(y) : int(y + height), max(0, int(x)) : int(x + width)]
        ink = np.mean(np.abs(part.astype(int) - paper).max(-1) > 60) if part.size else 0
        if ink < LEAST_INK:
            found.append(f"{name} is blank")
    return found


@pytest.mark.parametrize("screen", SCREENS)
def test_every_figure_is_drawn_and_nothing_is_wrong(
    screen: str, page: Browser, path: Path, tmp_path: Path
) -> None:
    assert faults(page, path, screen, tmp_path) == []
    assert [name for name, *_ in page.run(BOXES)] == FIGURES


def test_what_is_wrong_would_be_seen(page: Browser, tmp_path: Path) -> None:
    path = tmp_path / "planted.html"
    svg = "<section><h2>{}</h2><div class=figure><svg viewBox='0 0 720 50'>{}</svg></div></section>"
    path.write_text(
        "<!doctype html><link rel='icon' href='data:,'><script>console.error('planted')</script>"
        "<img src='http://127.0.0.1:9/none.png'><p style='width: 1200px'>wide</p>"
        + svg.format("Blank", "")
        + svg.format("Cut", "<rect width='90' height='40' x='700'/>")
    )
    found = " ".join(faults(page, path, "light", tmp_path))
    for word in ("planted", "asks for http", "pixels wide", "Blank is blank", "out of its frame"):
        assert word in found
    assert "Cut is blank" not in found


def test_the_keyboard_reaches_everything(page: Browser, path: Path) -> None:
    page.look(**SCREENS["phone"])
    page.open(path)
    stops = page.run(STOPS)
    assert len(stops) > 2 * len(FIGURES)
    for stop in stops:
        page.press("Tab")
        where, outlined, on_screen = page.run(HERE)
        assert where == stop and outlined and on_screen, f"Tab reached {where}, wanted {stop}"

    page.open(path)
    page.press("Tab")
    page.press("Enter")
    assert page.run("location.hash") == "#main", "the first stop skips the links"
    page.run("document.querySelector('summary').focus()")
    page.press(" ")
    assert page.run("document.querySelector('details').open")
    page.run("document.querySelector('.figure').focus()")
    page.press("ArrowRight")
    page.run("new Promise(done => setTimeout(done, 400))")
    assert page.run("document.querySelector('.figure').scrollLeft") > 0
