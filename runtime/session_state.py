"""All that a session is, as one value, and that value as a snapshot's facts and arrays.

No torch before something is unpacked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microturn.runtime.audio_input import ResamplerState
from microturn.runtime.background import DelegationRequest
from microturn.runtime.conversation import Line, lines_from_json
from microturn.runtime.delegation import DelegationEvent, DeskState, event_from_json
from microturn.runtime.engine import SlotState
from microturn.runtime.errors import SnapshotError
from microturn.runtime.image_input import Pixels
from microturn.runtime.inbox import Counters, InboxState
from microturn.runtime.output import Output, TextEvent
from microturn.runtime.queues import Frame, OutboxState
from microturn.runtime.snapshot import Snapshot


@dataclass(frozen=True)
class SeatState:
    """What a snapshot holds of a Seat."""

    fresh: bool
    starved: bool
    position: int
    rows: float
    images: int = 0


@dataclass(frozen=True)
class SpokenState:
    """What a snapshot holds of a Session: the caller's side.

    last_frame  the video frame that the next one is seen with
    """

    seed: int
    resampler: ResamplerState
    last_frame: Pixels | None
    inbox: InboxState
    outbox: OutboxState
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class SessionState:
    """A session between two ticks. slot: None before its first one."""

    session_id: str
    seat: SeatState
    spoken: SpokenState
    desk: DeskState
    slot: SlotState | None


def pack(state: SessionState) -> Snapshot:
    """For `unpack`."""
    spoken, inbox = state.spoken, state.spoken.inbox
    arrays: dict[str, NDArray[Any]] = {
        "audio": inbox.audio,
        "context_ids": np.array(inbox.context_ids, np.int64),
        "recent": spoken.resampler.recent,
    }
    facts: dict[str, Any] = {
        "id": state.session_id,
        "seed": spoken.seed,
        "seat": vars(state.seat),
        "sampling": dataclasses.asdict(inbox.sampling),
        "counters": vars(inbox.counters),
        "inbox": {
            name: getattr(inbox, name)
            for name in ("live", "paused", "draining", "unmarked", "replaced", "owed")
        },
        "frames": [[frame.still, frame.started] for frame in inbox.frames],
        "resampler": [spoken.resampler.rate, spoken.resampler.given],
        "outbox": list(spoken.outbox[2:]),
        "carried": [event.to_json() for event in spoken.outbox.carried],
        "outputs": [_output_facts(output) for output in spoken.outbox.outputs],
        "lines": [line._asdict() for line in spoken.lines],
        "delegations": {
            "count": state.desk.count,
            "pending": [request.to_json() for request in state.desk.pending],
            "events": [event.to_json() for event in state.desk.events],
        },
    }
    arrays |= {f"frames/{k}": frame.patches for k, frame in enumerate(inbox.frames)}
    for k, output in enumerate(spoken.outbox.outputs):
        arrays |= {f"outputs/{k}/audio": output.audio, f"outputs/{k}/codes": output.codes}
    if spoken.last_frame is not None:
        arrays["last_frame"] = spoken.last_frame
    if state.slot is not None:
        facts["layout"] = list(state.slot.layout)
        facts["cursors"] = dict(state.slot.cursors)
        arrays |= {f"slot/{name}": data for name, data in state.slot.data.items()}
    return Snapshot(facts, arrays)


def unpack(snapshot: Snapshot) -> SessionState:
    """Raises SnapshotError when something is missing."""
    try:
        return _unpack(snapshot.facts, snapshot.arrays)
    except (KeyError, ValueError, TypeError) as error:
        raise SnapshotError(f"the snapshot lacks something of a session: {error!r}") from None


def _unpack(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> SessionState:
    from microturn.model.family import Sampling

    inbox = InboxState(
        audio=arrays["audio"],
        context_ids=tuple(arrays["context_ids"].tolist()),
        frames=tuple(
            Frame(arrays[f"frames/{k}"], still, 0, started)
            for k, (still, started) in enumerate(facts["frames"])
        ),
        sampling=Sampling(**facts["sampling"]),
        counters=Counters(**facts["counters"]),
        **facts["inbox"],
    )
    rate, given = facts["resampler"]
    outputs = tuple(
        _output(values, arrays[f"outputs/{k}/audio"], arrays[f"outputs/{k}/codes"])
        for k, values in enumerate(facts["outputs"])
    )
    spoken = SpokenState(
        facts["seed"],
        ResamplerState(rate, arrays["recent"], given),
        arrays.get("last_frame"),
        inbox,
        OutboxState(outputs, _events(facts["carried"]), *facts["outbox"]),
        lines_from_json(facts["lines"]),
    )
    asked = facts["delegations"]
    desk = DeskState(
        asked["count"],
        [DelegationRequest.from_json(values) for values in asked["pending"]],
        _events(asked["events"]),
    )
    slot = None
    if "layout" in facts:
        data = {
            name.removeprefix("slot/"): array
            for name, array in arrays.items()
            if name.startswith("slot/")
        }
        slot = SlotState(facts["layout"], facts["cursors"], data)
    return SessionState(facts["id"], SeatState(**facts["seat"]), spoken, desk, slot)


def _events(values: Iterable[Mapping[str, Any]]) -> tuple[DelegationEvent, ...]:
    return tuple(map(event_from_json, values))


_APART = ("audio", "codes", "events", "delegations")


def _output_facts(output: Output) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(output) if field.name not in _APART]
    return {
        **{name: getattr(output, name) for name in names},
        "events": list(output.events),
        "delegations": [event.to_json() for event in output.delegations],
    }


def _output(
    values: Mapping[str, Any], audio: NDArray[np.float32], codes: NDArray[np.int64]
) -> Output:
    apart = {
        "audio": audio,
        "codes": codes,
        "events": tuple(TextEvent(*event) for event in values["events"]),
        "delegations": _events(values["delegations"]),
    }
    return Output(**{**values, **apart})
