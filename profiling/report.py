"""A profile as a page and as Markdown: both from the same sentences and tables."""

from __future__ import annotations

from html import escape
from pathlib import Path

from microturn.profiling import figures, findings, tables
from microturn.profiling.document import Profile
from microturn.profiling.tables import Table

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --paper: #fff; --line: #c8ced6;
  --gather: #7a4fa3; --plan: #2e8b57; --step: #4a6fa5; --emit: #b5541c; --late: #c0392b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4b0; --paper: #14171b;
  --line: #3a424c; --gather: #bb93e0; --plan: #6fcf97; --step: #86aee6; --emit: #f0945a;
  --late: #ff8a7a; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 1.5rem auto; max-width: 60rem; padding: 0 1rem; }
h1 { font-size: clamp(1.3rem, 5vw, 2rem); overflow-wrap: anywhere; }
h2 { margin-top: 2.25rem; } a { color: var(--step); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; }
:focus-visible { outline: 3px solid var(--emit); outline-offset: 2px; }
.scroll { overflow-x: auto; }
.figure { overflow-x: auto; } svg { display: block; width: 100%; min-width: 42rem; height: auto; }
svg text { font-size: 12px; fill: var(--ink); }
.gather { fill: var(--gather); } .plan { fill: var(--plan); } .step { fill: var(--step); }
.emit { fill: var(--emit); } .late { fill: var(--late); }
.mark { stroke: var(--soft); stroke-dasharray: 4 3; }
.roof, .line-step, .line-emit { fill: none; stroke-width: 2; stroke: var(--soft); }
.line-step { stroke: var(--step); } .line-emit { stroke: var(--emit); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
caption { text-align: left; color: var(--soft); white-space: normal; padding-bottom: .4rem; }
caption span { display: block; position: sticky; left: 0; width: max-content;
  max-width: min(58rem, 100vw - 2rem); }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; font-weight: 600; }
summary { cursor: pointer; }
.skip { position: absolute; left: -100vw; } .skip:focus { position: static; }
"""
LONG = 12
"""A table of more rows is folded."""


def html(profile: Profile) -> str:
    """One file without a network, a script or a font of its own."""
    parts, wall = findings.waterfall(profile)
    losses = findings.losses(profile)
    drawn = (
        ("Waterfall", figures.waterfall(parts, wall, profile["tick_ms"])),
        (
            "Slack",
            figures.histogram(
                profile["ticks"]["slack"], "Slack of each tick, in ms", "ms", "deadline"
            ),
        ),
        ("Sessions", figures.levels(profile["levels"], profile["tick_ms"])),
        ("Roofline", figures.roofline(losses, profile["ceilings"])),
        ("GPU", figures.strip(profile["gpu"])),
    )
    sections = [
        ("Summary", _list(findings.summary(profile), "ul")),
        ("What would help most", _list(findings.advice(profile), "ol")),
        *((name, _scrolls("figure", name, figure)) for name, figure in drawn if figure),
        *((table.title, _table(table)) for table in tables.every(profile)),
    ]
    title = f"microturn profile: {profile['case']}"
    links = "".join(f'<a href="#{_id(name)}">{escape(name)}</a>' for name, _ in sections)
    body = "".join(
        f'<section aria-labelledby="{_id(name)}"><h2 id="{_id(name)}">{escape(name)}</h2>'
        f"{content}</section>"
        for name, content in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        '<a class="skip" href="#main">Skip to the report</a>'
        f"<header><h1>{escape(title).replace(',', ',<wbr>')}</h1><p>{escape(profile['device'])}, "
        f'{escape(profile["date"])}</p><nav aria-label="Sections">{links}</nav></header>'
        f'<main id="main">{body}</main></body></html>\n'
    )


def markdown(profile: Profile) -> str:
    """The same without figures."""
    made = [f"# microturn profile: {profile['case']}", ""]
    made += [f"{profile['device']}, {profile['date']}", "", *findings.summary(profile), ""]
    made += ["## What would help most", ""]
    made += [f"{i}. {text}" for i, text in enumerate(findings.advice(profile), 1)]
    parts, wall = findings.waterfall(profile)
    rows = tuple((part.name, part.phase, f"{part.ms:.3f}") for part in parts)
    stretches = Table(
        "Waterfall", f"The mean tick took {wall:.3f} ms.", ("stretch", "phase", "ms"), rows
    )
    for table in (stretches, *tables.every(profile)):
        made += ["", f"## {table.title}", "", *markdown_table(table)]
    return "\n".join(made) + "\n"


def markdown_table(table: Table) -> list[str]:
    """Its lines, the note first."""
    rule = ["---", *["---:"] * (len(table.head) - 1)]
    note = [table.note, ""] if table.note else []
    return [*note, _line(table.head), _line(rule), *(_line(row) for row in table.rows)]


def write(profile: Profile, folder: Path) -> tuple[Path, ...]:
    """report.html and report.md. Raises OSError."""
    made = []
    for name, text in (("report.html", html(profile)), ("report.md", markdown(profile))):
        path = folder / name
        path.write_text(text, encoding="utf-8")
        made.append(path)
    return tuple(made)


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _list(texts: list[str], kind: str) -> str:
    return f"<{kind}>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</{kind}>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.head)
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in table.rows
    )
    whole = _scrolls(
        "scroll",
        table.title,
        f"<table><caption><span>{escape(table.note)}</span></caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>",
    )
    if len(table.rows) <= LONG:
        return whole
    return f"<details><summary>{len(table.rows)} rows</summary>{whole}</details>"


def _scrolls(kind: str, name: str, content: str) -> str:
    """What may be wider than a phone can be scrolled from the keyboard."""
    return (
        f'<div class="{kind}" tabindex="0" role="region" aria-label="{escape(name, quote=True)}">'
        f"{content}</div>"
    )


def _id(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())
