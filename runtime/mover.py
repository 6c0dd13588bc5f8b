"""Sessions out of a runtime's parts, and into another's. No torch."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microturn.runtime.delegation import Delegations
from microturn.runtime.engine import Engine, SavesSlots
from microturn.runtime.errors import CloseCode, CloseReason, SnapshotError
from microturn.runtime.keeper import Copied
from microturn.runtime.machine import version
from microturn.runtime.scheduler import Scheduler, Seat
from microturn.runtime.session import Session
from microturn.runtime.session_state import SeatState, SessionState, pack, unpack
from microturn.runtime.snapshot import Snapshot, read_snapshot
from microturn.runtime.versions import versions

if TYPE_CHECKING:
    from microturn.model.family import ModelFamily

log = logging.getLogger("microturn.runtime.mover")

_SEAT = [field.name for field in dataclasses.fields(SeatState)]


class Mover:
    """What a snapshot is made of and where it goes. `copy` and `put` are called between ticks."""

    def __init__(
        self,
        family: ModelFamily,
        engine: Engine,
        scheduler: Scheduler,
        delegations: Delegations,
        sessions: Mapping[str, Session],
    ) -> None:
        self._family = family
        self._engine = engine
        self._scheduler = scheduler
        self._delegations = delegations
        self._sessions = sessions

    @cached_property
    def model(self) -> dict[str, Any]:
        """What a snapshot's runtime and this one must have the same of. The first time it reads all
        weights.
        """
        family = self._family
        return {
            "family": family.name,
            "shape": dataclasses.asdict(family.shape),
            "weights": family.digest(),
        }

    def check(self) -> str:
        """Which weights snapshots would be of. Call it where time is, before a tick is to wait.
        Raises SnapshotError when there can be none.
        """
        self._saves()
        return str(self.model["weights"])

    def _saves(self) -> SavesSlots:
        if not isinstance(self._engine, SavesSlots):
            name = type(self._engine).__name__
            raise SnapshotError(f"{name} cannot save sessions: it has no save_slot and load_slot")
        return self._engine

    def copy(self, session_id: str) -> Copied | None:
        """None while the session is pushed to. Raises SnapshotError, SessionClosed."""
        seat = next((s for s in self._scheduler.seats if s.session_id == session_id), None)
        session = self._sessions.get(session_id)
        if seat is None or session is None:
            raise SnapshotError(f"there is no open session {session_id!r} to save")
        desk = self._delegations.desk(session_id)
        if desk is None:
            raise SnapshotError(f"session {session_id} ends just now")
        with desk.lock:
            spoken, asked = session.save(), desk.save()
        if spoken is None:
            return None
        state = SessionState(
            session_id,
            SeatState(**{name: getattr(seat, name) for name in _SEAT}),
            spoken,
            asked,
            None if seat.fresh else self._saves().save_slot(seat.slot),
        )

        def over() -> bool:
            reason = session.closed_reason
            return reason is not None and reason.code is CloseCode.CLOSED

        position_ms = seat.position * self._family.shape.tick_ms
        return Copied(position_ms, lambda: self._pack(state), over)

    def read(self, path: Path) -> SessionState:
        """A session of this model. Raises SnapshotError."""
        snapshot = read_snapshot(path)
        theirs, ours = snapshot.facts.get("model"), self.model
        if not isinstance(theirs, dict) or set(theirs) != set(ours):
            raise SnapshotError(f"{path} does not say which model it is of")
        for what, wanted in ours.items():
            if theirs[what] != wanted:
                raise SnapshotError(
                    f"{path} is of a model with {what} {theirs[what]}, this one has {wanted}; "
                    f"restore it where the same checkpoint or seed is loaded"
                )
        for name, then in dict(snapshot.facts.get("versions", {})).items():
            if then != (now := _versions().get(name)):
                log.warning(
                    "%s was saved with %s %s, here is %s: bits may differ", path, name, then, now
                )
        return unpack(snapshot)

    def put(self, state: SessionState, session: Session, admit: Callable[[], Seat]) -> Seat:
        """Gives the session a seat, and its slot what was saved. Raises RuntimeFull, SnapshotError;
        it has no seat then.
        """
        seat = admit()
        if state.slot is not None:
            try:
                self._saves().load_slot(seat.slot, state.slot)
            except ValueError as error:
                detail = f"its state does not fit: {error}"
                self._scheduler.end(session.id, CloseReason(CloseCode.INTERNAL, detail))
                raise SnapshotError(f"session {session.id}: {detail}") from None
        for name in _SEAT:
            setattr(seat, name, getattr(state.seat, name))
        return seat

    def _pack(self, state: SessionState) -> Snapshot:
        made = pack(state)
        about = {"model": self.model, "versions": _versions()}
        return Snapshot({**made.facts, **about}, made.arrays)


def _versions() -> dict[str, str]:
    return {**versions(), "soxr": version("soxr") or "unknown"}
