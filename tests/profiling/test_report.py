"""The page, the Markdown and what they say."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from profiles import made_up

from microturn.profiling import figures, findings, report

VOID = {"meta", "link", "line", "rect", "circle", "polyline", "wbr"}


class Page(HTMLParser):
    """Every tag closed in order; ids, links and what is asked of a network."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.outside: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        for name in ("href", "src"):
            if value := found.get(name):
                (self.links if value.startswith("#") else self.outside).append(value)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_the_page_is_whole_and_asks_nothing_of_a_network(captured: dict[str, Any]) -> None:
    text = report.html(captured)
    page = Page(text)
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert page.outside == ["data:,"] and "url(" not in text and page.count("script") == 0
    assert page.count("svg") == 4 and "prefers-color-scheme: dark" in text
    numbers = re.findall(r'(?:x|y|cx|cy|width|height|points|x1|y1)="([^"]*)"', text)
    assert numbers and not [n for n in numbers if "nan" in n or "inf" in n]


def test_the_page_is_usable_by_keyboard_and_by_ear(captured: dict[str, Any]) -> None:
    page = Page(report.html(captured))
    scrolls = [found for tag, found in page.tags if found.get("class") in ("scroll", "figure")]
    assert scrolls and all(s["tabindex"] == "0" and s["aria-label"] for s in scrolls)
    drawn = [found for tag, found in page.tags if tag == "svg"]
    assert all(s["role"] == "img" and s["aria-label"] for s in drawn)
    assert page.count("caption") == page.count("table") == 5
    heads = [found for tag, found in page.tags if tag == "th"]
    assert {found.get("scope") for found in heads} == {"col", "row"}
    assert page.links[0] == "#main" and page.count("nav") == 1


def test_what_loses_most_is_said_first_and_words_are_escaped() -> None:
    profile = made_up(linear=1.5, router=4.0, sampling=2.0)
    assert [loss.op for loss in findings.losses(profile)] == ["router", "sampling", "linear"]
    assert [loss.binds for loss in findings.losses(profile)] == ["bytes", "bytes", "bytes"]
    assert findings.losses(made_up(router=4.1))[0].binds == findings.CALLS
    first = findings.advice(profile)[0]
    assert first.startswith("router at its floor would give back 3.00 ms (40%)")
    assert len(findings.summary(profile)) == 5
    assert all(re.search(r"\d", sentence) for sentence in findings.summary(profile))
    assert "a &lt;machine&gt; &amp; more" in report.html(profile)


def test_one_outlier_does_not_move_what_a_tick_costs() -> None:
    profile = made_up(linear=1.5, router=4.0)
    for ms in (profile["lines"][0]["ms"], profile["ticks"]["wall"], profile["ticks"]["model"]):
        ms[3] += 500.0
    assert findings.losses(profile)[0].op == "router"


def test_markdown_has_the_same_tables(captured: dict[str, Any]) -> None:
    text = report.markdown(captured)
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert titles[:3] == ["What would help most", "Waterfall", "Phases"]
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count(" | ") for line in block.strip().splitlines()}) == 1


def test_a_gpu_gets_its_strip() -> None:
    samples = [
        {"at_ms": 10.0 * i, "power_w": 300.0 + i, "sm_mhz": 1980, "held_back_by": ["SwPowerCap"]}
        for i in range(5)
    ]
    assert figures.strip(samples[:1]) == ""
    drawn = figures.strip(samples)
    assert "SwPowerCap" in drawn and drawn.count("<polyline") == 2
