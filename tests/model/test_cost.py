"""The list of what a tick calls, beside what it does call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from microturn.kernels.registry import OP_NAMES
from microturn.model.cost import TickWork, by_op, even, totals
from microturn.model.interaction import load_family
from microturn.model.interaction.cost import tick_calls, window_rows
from microturn.model.interaction.presets import preset
from microturn.runtime import Runtime, VirtualClock

TINY = preset("interaction-tiny")


@contextmanager
def recorded(into: list[tuple[str, Any, Any]]) -> Iterator[None]:
    """Inside, every op that no other op called is noted: name, x, weights."""
    depth = 0

    def wrapped(pick: Callable[..., Any]) -> Callable[..., Any]:
        def picked(op: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
            run = pick(op, *args, **kwargs)

            def call(x: Any, weights: Any, *rest: Any, **named: Any) -> Any:
                nonlocal depth
                if not depth:
                    into.append((op, x, weights))
                depth += 1
                try:
                    return run(x, weights, *rest, **named)
                finally:
                    depth -= 1

            return call

        return picked

    patch = pytest.MonkeyPatch()
    for name in OP_NAMES:
        module = import_module(f"microturn.kernels.{name}.op")
        if hasattr(module, "pick"):
            patch.setattr(module, "pick", wrapped(module.pick))
    try:
        yield
    finally:
        patch.undo()


@pytest.fixture(scope="module")
def called() -> list[tuple[str, Any, Any]]:
    """A tick of two sessions, one of which has five tokens to read."""
    found: list[tuple[str, Any, Any]] = []
    family = load_family("interaction-tiny", None, tick_ms=100, seed=0, trained=False)
    with Runtime(model=family, max_sessions=2, clock=VirtualClock()) as runtime:
        sessions = [runtime.open(), runtime.open()]
        runtime.tick()
        sessions[0]._inbox.push_context(range(5))
        for session in sessions:
            session.push_audio(np.zeros(1600, np.float32), 16_000)
        with recorded(found):
            runtime.tick()
    return found


WORK = TickWork(counts=(8, 3), starts=(4, 4), speaking=2)


def test_a_tick_calls_the_ops_of_the_list_as_often(called: list[tuple[str, Any, Any]]) -> None:
    listed = Counter(call.op for call in tick_calls(TINY, 2, WORK))
    counts = Counter(op for op, _, _ in called)
    # Embedded rows are normed kind by kind, and what is read back twice.
    for op in set(counts) | set(listed) - {"rms_norm"}:
        if op != "rms_norm":
            assert counts[op] == listed[op], op


def test_products_have_the_shapes_of_the_list(called: list[tuple[str, Any, Any]]) -> None:
    listed = Counter(
        (c.case.T, c.case.N, c.case.K)  # type: ignore[attr-defined]
        for c in tick_calls(TINY, 2, WORK)
        if c.op == "linear"
    )
    done = Counter((x.shape[0], *weights.shape) for op, x, weights in called if op == "linear")
    assert done == listed
    assert done != Counter(
        (c.case.T, c.case.N, c.case.K)  # type: ignore[attr-defined]
        for c in tick_calls(TINY, 2, even(2, 10, 4))
        if c.op == "linear"
    )


def test_parts_come_in_the_order_of_the_tick_program() -> None:
    parts = dict.fromkeys(call.part for call in tick_calls(TINY, 2, WORK))
    assert list(parts) == [
        "open",
        "embed",
        "append",
        "heads.0",
        "decode.1",
        "heads.1",
        "codec",
        "commit",
    ]
    warming = TickWork((64,), (0,), 0)
    parts = dict.fromkeys(call.part for call in tick_calls(TINY, 2, warming))
    assert list(parts) == ["open", "embed", "append", "commit"]


@pytest.mark.parametrize("name", ["interaction-tiny", "interaction-mini", "interaction-small"])
def test_work_rises_with_sessions_rows_and_age_and_ends_with_the_window(name: str) -> None:
    config = preset(name)
    full = window_rows(config)

    def work(sessions: int, rows: int, start: int) -> tuple[int, int]:
        return totals(tick_calls(config, 2, even(sessions, rows, start)), 2)

    one = work(1, 3, 0)
    for more in ((2, 6, 0), (1, 64, 0), (1, 3, full)):
        assert all(a < b for a, b in zip(one, work(*more), strict=True))
    old, older = work(1, 3, full), work(1, 3, 50 * full)
    assert old == older


def test_a_pass_streams_at_least_the_weights_it_multiplies_with() -> None:
    """A tick of one session reads the dense parts of interaction-tiny twice."""
    found = by_op(list(tick_calls(TINY, 2, even(1, 3, 0))), 4)
    layers, hidden = TINY.trunk.num_layers, TINY.trunk.hidden_size
    attention = layers * hidden * (4 * (64 + 16) + 2 * 2 * 64 + 4 * 64)
    unembedding = hidden * TINY.trunk.vocab_size
    assert found["linear"].bytes == pytest.approx(4 * 2 * (attention + unembedding), rel=0.02)
    assert sum(op.flops for op in found.values()) > 0


def test_patches_pass_the_vision_tower() -> None:
    blind = totals(tick_calls(TINY, 2, TickWork((13,), (0,), 1)), 4)
    sees = totals(tick_calls(TINY, 2, TickWork((13,), (0,), 1, patches=10)), 4)
    assert TINY.vision is not None
    tower = 10 * 2 * (2 * 8 * 8 * 16 * 75 + 2 * 4 * 4 * 32 * 64 + 2 * 48 * 512 + 256 * 96)
    assert sees.flops - blind.flops == pytest.approx(tower, rel=0.05)
