"""From what a step made to what a session reads. No torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from microturn.runtime.engine import RowOutput
from microturn.runtime.errors import CloseCode, CloseReason
from microturn.runtime.output import Output, TextEvent
from microturn.runtime.scheduler import Scheduler, Share

log = logging.getLogger("microturn.runtime.emit")


class Pieces(Protocol):
    """Ids to text."""

    def piece(self, token_id: int) -> str: ...


@dataclass(frozen=True)
class Voice:
    """The facts of a model that its outputs need."""

    tick_ms: int
    frames: int
    input_rate: int
    output_rate: int
    listen_id: int
    delegate_id: int
    trained: bool
    tokenizer: Pieces | None


class Emitter:
    """Hands each session its output, and ends the sessions whose row went wrong."""

    def __init__(
        self,
        voice: Voice,
        scheduler: Scheduler,
        annotate: Callable[[Output], Output] = lambda output: output,
    ) -> None:
        """annotate: what else becomes of an output: delegations begin there."""
        self._voice = voice
        self._scheduler = scheduler
        self._annotate = annotate

    def make(self, share: Share, row: RowOutput | None, tick: int, step_ns: int) -> Output | None:
        """The session's output, its slack still to come; None for a row that makes none. Call after
        the tick was settled.

        What goes wrong here ends this session only.
        """
        session_id = share.seat.session_id
        if share.seat.inbox.closed is not None:
            return None
        try:
            if row is None or not row.ok:
                what = "nothing" if row is None else "numbers that are not finite"
                self._end(share, CloseCode.NOT_FINITE, f"the model gave {what} at tick {tick}")
                return None
            if not share.held.live:
                return None
            return self._annotate(self._output(share, row, tick, step_ns))
        except Exception as error:
            log.exception("session %s: tick %d could not be emitted", session_id, tick)
            self._end(share, CloseCode.INTERNAL, f"its output failed: {error}")
            return None

    def put(self, share: Share, output: Output, slack_ns: int) -> None:
        """Hands it over; a session that reads too slowly may end by it, and it alone."""
        seat = share.seat
        object.__setattr__(output, "slack_ms", slack_ns / 1e6)  # nobody has seen it yet
        seat.inbox.counters.ticks += 1
        seat.inbox.counters.late_ticks += output.late
        try:
            if not seat.outbox.put(output):
                detail = f"{len(seat.outbox)} outputs were not read"
                self._end(share, CloseCode.SLOW_READER, detail)
        except Exception as error:
            log.exception("session %s: an output could not be handed over", seat.session_id)
            self._end(share, CloseCode.INTERNAL, f"its output could not be handed over: {error}")

    def _end(self, share: Share, code: CloseCode, detail: str) -> None:
        self._scheduler.end(share.seat.session_id, CloseReason(code, detail))

    def _output(self, share: Share, row: RowOutput, tick: int, step_ns: int) -> Output:
        voice, seat = self._voice, share.seat
        start_ms = (seat.position - 1) * voice.tick_ms
        ids = row.text_ids.tolist()
        silent = ids.count(voice.listen_id) == len(ids)
        events = () if silent else self._events(ids, start_ms)
        per_ms = voice.input_rate / 1000
        return Output(
            session_id=seat.session_id,
            tick=tick,
            start_ms=start_ms,
            end_ms=start_ms + voice.tick_ms,
            audio=row.audio,
            sample_rate=voice.output_rate,
            text="".join([event.piece for event in events]),
            events=events,
            codes=row.codes,
            slack_ms=0.0,
            step_ms=step_ns / 1e6,
            pending_rows=seat.inbox.pending_rows(),
            inserted_silence_ms=share.missing / per_ms,
            dropped_ms=share.held.dropped / per_ms,
            dropped_outputs=0,
            delegation=voice.delegate_id in ids,
            untrained=not voice.trained,
        )

    def _events(self, ids: list[int], start_ms: int) -> tuple[TextEvent, ...]:
        voice = self._voice
        return tuple(
            TextEvent(
                start_ms + j * voice.tick_ms / voice.frames,
                token,
                voice.tokenizer.piece(token) if voice.tokenizer else "",
            )
            for j, token in enumerate(ids)
            if token != voice.listen_id
        )
