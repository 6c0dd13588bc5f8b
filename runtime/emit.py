"""From what a step made to what a session reads. No torch."""

from __future__ import annotations

import logging
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


@dataclass(frozen=True)
class TickTimes:
    """What an output says about its tick."""

    tick: int
    slack_ns: int
    step_ns: int


class Emitter:
    """Hands each session its output, and ends the sessions whose row went wrong."""

    def __init__(self, voice: Voice, scheduler: Scheduler) -> None:
        self._voice = voice
        self._scheduler = scheduler

    def emit(self, share: Share, row: RowOutput | None, times: TickTimes) -> Output | None:
        """The output made, None for a row that made none. Call after the tick was settled.

        What goes wrong here ends this session only.
        """
        seat = share.seat
        if seat.inbox.closed is not None:
            return None
        try:
            if row is None or not row.ok:
                what = "nothing" if row is None else "numbers that are not finite"
                self._end(
                    share, CloseCode.NOT_FINITE, f"the model gave {what} at tick {times.tick}"
                )
                return None
            if not share.held.live:
                return None
            output = self._output(share, row, times)
        except Exception as error:
            log.exception("session %s: tick %d could not be emitted", seat.session_id, times.tick)
            self._end(share, CloseCode.INTERNAL, f"its output failed: {error}")
            return None
        seat.inbox.counters.ticks += 1
        seat.inbox.counters.late_ticks += output.late
        if not seat.outbox.put(output):
            self._end(share, CloseCode.SLOW_READER, f"{len(seat.outbox)} outputs were not read")
        return output

    def _end(self, share: Share, code: CloseCode, detail: str) -> None:
        self._scheduler.end(share.seat.session_id, CloseReason(code, detail))

    def _output(self, share: Share, row: RowOutput, times: TickTimes) -> Output:
        voice, seat = self._voice, share.seat
        start_ms = (seat.position - 1) * voice.tick_ms
        ids = [int(i) for i in row.text_ids]
        events = tuple(
            TextEvent(
                start_ms + j * voice.tick_ms / voice.frames,
                token,
                voice.tokenizer.piece(token) if voice.tokenizer else "",
            )
            for j, token in enumerate(ids)
            if token != voice.listen_id
        )
        per_ms = voice.input_rate / 1000
        return Output(
            session_id=seat.session_id,
            tick=times.tick,
            start_ms=start_ms,
            end_ms=start_ms + voice.tick_ms,
            audio=row.audio,
            sample_rate=voice.output_rate,
            text="".join(event.piece for event in events),
            events=events,
            codes=row.codes,
            slack_ms=times.slack_ns / 1e6,
            step_ms=times.step_ns / 1e6,
            pending_rows=seat.inbox.pending_rows(),
            inserted_silence_ms=share.missing / per_ms,
            dropped_ms=seat.inbox.take_dropped() / per_ms,
            dropped_outputs=0,
            delegation=voice.delegate_id in ids,
            untrained=not voice.trained,
        )
