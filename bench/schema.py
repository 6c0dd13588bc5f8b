"""The one format of results (DESIGN 6, schema 1), checked whenever a document is written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from microturn.kernels.registry import OP_NAMES

SCHEMA = 1
COMPOSED = ("mimi_decode", "prologue_attention")
"""Ops put together: timed and checked as one op is."""
SYSTEM_OPS = (
    "tick",
    "capacity",
    "load",
    "soak",
    "interactivity",
    "oracle",
    "chaos",
    "loading",
    "weights",
)
OPS = (*OP_NAMES, *COMPOSED, *SYSTEM_OPS)

META_TEXT = ("device", "torch", "date")
ROW_TEXT = ("op", "case", "dtype", "provider")
TIMES = ("us_p20", "us_p50", "us_p80")
OP_NUMBERS = ("bytes", "flops", "floor_us", "of_floor", "max_rel_err")
TICK_NUMBERS = (
    "step_ms_p50",
    "step_ms_p99",
    "step_ms_p999",
    "step_ms_max",
    "ticks",
    "misses",
    "miss_rate_upper95",
    "sessions",
)
OVER_TIME = ("tick", "capacity", "load", "soak")
ORACLE_NUMBERS = ("seed", "configs", "rejected", "failures", "max_abs_diff", "bar")
CHAOS_NUMBERS = ("seed", "worlds", "session_ticks", "ticks", "misses", "skipped", "violations")
CASE = re.compile(r"^[A-Za-z_]\w*=[^,=\s]+(,[A-Za-z_]\w*=[^,=\s]+)*$")


class SchemaError(ValueError):
    """A document that is not schema 1. The text names the place."""


def document(
    suite: str, meta: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A validated document. Raises SchemaError."""
    made = {"schema": SCHEMA, "suite": suite, "meta": dict(meta), "rows": [dict(r) for r in rows]}
    validate(made)
    return made


def validate(doc: Any) -> None:
    """Raises SchemaError naming the first thing that is missing, unknown or out of range."""
    _need(isinstance(doc, dict), "document", "must be an object")
    _need(doc.get("schema") == SCHEMA, "schema", f"must be {SCHEMA}, got {doc.get('schema')!r}")
    _need(_is_text(doc.get("suite")), "suite", "must be a name")
    meta, rows = doc.get("meta"), doc.get("rows")
    _need(isinstance(meta, dict), "meta", "must be an object")
    for field in META_TEXT:
        _need(_is_text(meta.get(field)), f"meta.{field}", f"must be text, got {meta.get(field)!r}")
    _need(isinstance(rows, list) and bool(rows), "rows", "must be a list that is not empty")
    for index, row in enumerate(rows):
        _row(f"rows[{index}]", row)
    _finite("document", doc)


def _row(where: str, row: Any) -> None:
    _need(isinstance(row, dict), where, "must be an object")
    for field in ROW_TEXT:
        _need(_is_text(row.get(field)), f"{where}.{field}", f"must be text, got {row.get(field)!r}")
    op, case = row["op"], row["case"]
    _need(op in OPS, f"{where}.op", f"unknown {op!r}; known: {', '.join(OPS)}")
    _need(bool(CASE.match(case)), f"{where}.case", f"must be key=value,key=value, got {case!r}")
    if op in SYSTEM_OPS and op not in ("interactivity", "oracle"):
        _need(case.startswith("preset="), f"{where}.case", f"of {op} begins with preset=")
    if op == "interactivity":
        _need(_is_number(row.get("score")), f"{where}.score", "must be a number")
        return
    if op == "oracle":  # a count of comparisons, timed by nobody
        for field in ORACLE_NUMBERS:
            _need(_is_number(row.get(field)), f"{where}.{field}", "must be a number of 0 or more")
        _need(row["failures"] <= row["configs"], f"{where}.failures", "cannot exceed configs")
        return
    if op == "chaos":  # a count of promises kept, on a virtual clock
        for field in CHAOS_NUMBERS:
            _need(_is_number(row.get(field)), f"{where}.{field}", "must be a number of 0 or more")
        _need(isinstance(row.get("faults"), dict), f"{where}.faults", "must be counts by name")
        return
    _need("us_p50" in row, f"{where}.us_p50", "is missing; null when it could not be measured")
    if row["us_p50"] is None:
        _need(_is_text(row.get("note")), f"{where}.note", "must say why nothing was measured")
        return
    for field in TIMES:
        _need(_is_number(row.get(field)), f"{where}.{field}", "must be a number of 0 or more")
    low, mid, high = (row[field] for field in TIMES)
    _need(low <= mid <= high, where, f"us_p20 <= us_p50 <= us_p80 must hold, got {low, mid, high}")
    if op in (*OP_NAMES, *COMPOSED):
        for field in OP_NUMBERS:
            _need(field in row, f"{where}.{field}", "is missing; null when it is not known")
    if op in OVER_TIME:
        for field in TICK_NUMBERS:
            _need(_is_number(row.get(field)), f"{where}.{field}", "must be a number of 0 or more")
        _need(row["misses"] <= row["ticks"], f"{where}.misses", "cannot exceed ticks")


def dumps(doc: Mapping[str, Any]) -> str:
    """One line of strict JSON. Raises SchemaError."""
    validate(doc)
    return json.dumps(doc, allow_nan=False, separators=(", ", ": "))


def write(path: Path, doc: Mapping[str, Any]) -> None:
    """Raises SchemaError before touching the file."""
    validate(doc)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(doc, allow_nan=False, indent=1) + "\n", encoding="utf-8")


def _need(condition: bool, where: str, problem: str) -> None:
    if not condition:
        raise SchemaError(f"results: {where} {problem}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _finite(where: str, value: Any) -> None:
    if isinstance(value, float):
        _need(math.isfinite(value), where, f"holds {value}, which JSON cannot")
    elif isinstance(value, dict):
        for key, item in value.items():
            _finite(f"{where}.{key}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _finite(f"{where}[{index}]", item)
