"""Rows of the ops suites.

They add to schema 1: tb_per_s and tflops (of the bytes and flops that a call needs at least, over
its p50), bar_us, bar_of_floor, bar_tflops, bar_times_peer, bar_times_beside and bar_beside (what
the case must reach on an H200, where its bar says so; beside: the id of another case), times_beside
(over that case's p50), meets_bar (null where there is no bar, or nothing to compare with), ok (the
check passed; false: the result was wrong or the call failed, and nothing was timed), repeats,
copies (of the inputs, used in turn), how ("graph", "eager", "host"), cold ("rotated", "flushed",
"warm"), us_net (on a GPU: p50 less what two events cost with nothing between them) and, where a bar
is met by that alone, meets_bar_net; times_peer in rows of microturn: the fastest peer's p50 over
its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from microturn.bench.subjects import Item, nbytes
from microturn.kernels.registry import Bar, Case
from microturn.runtime.ceilings import Ceilings
from microturn.runtime.timing import Times

OURS = "microturn"
NOT_PEERS = (OURS, "reference", "base", "predicted")

Row = dict[str, Any]


def costs(case: Case, dtype: str, ceilings: Ceilings) -> Row:
    """What is known of a case before anything runs."""
    moved, flops = nbytes(case, dtype), case.flops
    return {"bytes": moved, "flops": flops, "floor_us": round(ceilings.floor_us(moved, flops), 3)}


def bar_of(case: Case, dtypes: Sequence[str], dtype: str) -> Bar | None:
    """What is asked of a case in one of its op's dtypes."""
    bar: Bar | None = getattr(case, "bar", None)
    if bar is None or dtype == dtypes[0]:
        return bar
    return bar.fp8 if dtype == "fp8" else None


def null(item: Item, provider: str, note: str, ok: bool | None) -> Row:
    """A row without a time. ok: see above; None where it could not run here."""
    note = note.strip() or "no reason was given"
    return {**item._asdict(), "provider": provider, "us_p50": None, "note": note, "ok": ok}


def timed(
    item: Item,
    provider: str,
    known: Row,
    times: Times,
    error: float,
    copies: int,
    bar: Bar | None,
    note: str,
) -> Row:
    """A row with a time, of a provider whose check passed."""
    us = times.p50
    row = {
        **item._asdict(),
        "provider": provider,
        "us_p20": times.p20,
        "us_p50": us,
        "us_p80": times.p80,
        **known,
        **fractions(known, us),
        "max_rel_err": float(f"{error:.3g}"),
        "ok": True,
        "repeats": times.repeats,
        "copies": copies,
        "how": times.how,
        "cold": times.cold,
        "note": note,
    }
    if provider == OURS:
        row |= against(bar, row)
    return row


def fractions(known: Row, us: float) -> Row:
    """Of a floor, and per second."""
    return {
        "of_floor": round(known["floor_us"] / us, 4) if us else None,
        "tb_per_s": round(known["bytes"] / us / 1e6, 4) if us else None,
        "tflops": round(known["flops"] / us / 1e6, 4) if us else None,
    }


def against(bar: Bar | None, row: Row) -> Row:
    """The bar, and whether the row meets it; the fraction governs where there is one."""
    given = asked(bar)
    return {**given, "meets_bar": judge(row | given)} if given else {}


def asked(bar: Bar | None) -> Row:
    """The fields of a bar, as far as it asks for them."""
    if bar is None:
        return {}
    fields = {f"bar_{field.name}": getattr(bar, field.name) for field in dataclasses.fields(bar)}
    del fields["bar_fp8"]
    return {name: value for name, value in fields.items() if value is not None}


def net(row: Row, events_us: float | None) -> Row:
    """The same time without the events around it, and what that does to the bar."""
    if events_us is None:
        return {}
    us = round(max(0.001, row["us_p50"] - events_us), 3)
    found: Row = {"us_net": us}
    if row.get("meets_bar") is False and judge(row | fractions(row, us) | {"us_p50": us}):
        found["meets_bar_net"] = True
    return found


def judge(row: Row) -> bool | None:
    """Whether a row meets the bar it carries; None where that cannot be said from it alone."""
    if row.get("bar_of_floor") is not None and row["of_floor"] is not None:
        return bool(row["of_floor"] >= row["bar_of_floor"])
    if row.get("bar_tflops") is not None and row["tflops"] is not None:
        return bool(row["tflops"] >= row["bar_tflops"])
    if row.get("bar_us") is not None:
        return bool(row["us_p50"] <= row["bar_us"])
    return None


def beside_peers(rows: Iterable[Row]) -> list[Row]:
    """The same rows; those of microturn with times_peer, and their bar's multiple judged."""
    rows = list(rows)
    fastest: dict[Item, float] = {}
    for row in rows:
        item = Item(row["op"], row["case"], row["dtype"])
        if row["provider"] not in NOT_PEERS and row["us_p50"]:
            fastest[item] = min(row["us_p50"], fastest.get(item, float("inf")))
    for row in rows:
        peer = fastest.get(Item(row["op"], row["case"], row["dtype"]))
        if row["provider"] != OURS or not row["us_p50"] or peer is None:
            continue
        row["times_peer"] = round(peer / row["us_p50"], 3)
        if (least := row.get("bar_times_peer")) is not None:
            row["meets_bar"] = row["meets_bar"] is not False and row["times_peer"] >= least
    return rows


def beside_cases(rows: Iterable[Row]) -> list[Row]:
    """The same rows; those that are held against another case of their op, by the same provider,
    with times_beside, and judged.
    """
    rows = list(rows)
    times = {(row["op"], row["case"], row["dtype"], row["provider"]): row["us_p50"] for row in rows}
    for row in rows:
        other = times.get((row["op"], row.get("bar_beside"), row["dtype"], row["provider"]))
        if not row["us_p50"] or not other:
            continue
        row["times_beside"] = round(row["us_p50"] / other, 3)
        within = row["times_beside"] <= row["bar_times_beside"]
        row["meets_bar"] = row["meets_bar"] is not False and within
    return rows
