"""The runtime: a model, a clock, and sessions."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from microturn.model.family import ModelFamily, Sampling
from microturn.runtime.background import Background
from microturn.runtime.clock import Clock, RealClock
from microturn.runtime.config import RuntimeConfig, build_config
from microturn.runtime.conversation import Conversation, Source
from microturn.runtime.delegation import Delegations, Desk
from microturn.runtime.dump import DumpWriter, Header
from microturn.runtime.emit import Emitter, Voice
from microturn.runtime.engine import Engine
from microturn.runtime.engines import make_engine
from microturn.runtime.errors import (
    CloseCode,
    CloseReason,
    ConfigError,
    EngineLost,
    InputError,
    QueueFull,
    RuntimeClosed,
    RuntimeFull,
    SnapshotError,
)
from microturn.runtime.foresight import Foresight
from microturn.runtime.garbage import SlackCollector
from microturn.runtime.image_input import Video
from microturn.runtime.inbox import Budget, Inbox
from microturn.runtime.keeper import Keeper
from microturn.runtime.loop import Predictor, TickLoop, unknown
from microturn.runtime.metrics import Metrics
from microturn.runtime.mover import Mover
from microturn.runtime.nvml import gpu_sensor
from microturn.runtime.overlap import Launches, OverlappedLoop
from microturn.runtime.plan import TickPlan
from microturn.runtime.queues import AudioQueue, IdQueue, OutputQueue, PatchQueue
from microturn.runtime.scheduler import RETRY_MS, Scheduler, Seat
from microturn.runtime.session import Session, context_ids
from microturn.runtime.snapshot import SnapshotInfo
from microturn.runtime.versions import versions

log = logging.getLogger("microturn.runtime")

T = TypeVar("T")


class Runtime:
    """Runs sessions of one model on one clock.

        with Runtime(preset="interaction-tiny") as runtime:
            session = runtime.open(instructions="...")
            session.push_audio(pcm, rate=48_000)
            for output in session:
                ...

    Made, it has loaded its model, taken its memory, warmed up and, on a real clock, started the
    thread that ticks. On a clock driven by hand (or with start=False) `tick()` does what the thread
    would. Leaving the block closes every session.
    """

    def __init__(
        self,
        config: RuntimeConfig | None = None,
        *,
        model: ModelFamily | None = None,
        engine: Engine | None = None,
        clock: Clock | None = None,
        start: bool | None = None,
        background: Background | None = None,
        predict: Predictor = unknown,
        **overrides: Any,
    ) -> None:
        """config, and RuntimeConfig fields by name that go before it.

        model   a loaded family; otherwise `checkpoint` or `preset` is loaded
        engine  in place of the device's own
        clock   RealClock unless given; start=None starts the thread unless the clock is by hand
        background  asked by sessions that delegate, unless opened with one of their own
        predict seconds that a plan takes: what may be caught up; without it nothing is

        Raises ConfigError, and what loading the model raises.
        """
        config = build_config(config, overrides)
        self.family = model if model is not None else _load(config)
        shape = self.family.shape
        if config.tick_ms != shape.tick_ms:
            queue_ms = max(config.input_queue_ms, shape.tick_ms)
            config = dataclasses.replace(config, tick_ms=shape.tick_ms, input_queue_ms=queue_ms)
        self.config = config
        self.clock: Clock = clock if clock is not None else RealClock()
        self.metrics = Metrics(gpu_sensor() if config.device == "cuda" else None)
        self._stop_serving: Callable[[], None] | None = None
        self.failure: BaseException | None = None
        self.foresight = Foresight(self.family, config, self.clock)
        foreseen = self.foresight.active and predict is unknown
        self._predict = self.foresight.seconds if foreseen else predict
        self._engine: Engine = engine or make_engine(self.family, config)
        self.metrics.graph_misses = lambda: getattr(self._engine, "graph_misses", 0)
        self._scheduler = Scheduler(
            Budget(shape.max_rows, shape.frames, shape.input_samples, self.family.sees),
            self.num_slots,
            shape.tick_ms,
            self._ended,
            self.foresight.refusal,
        )
        self._collector = SlackCollector()
        starts = not self.clock.by_hand if start is None else start
        self._weights = self.family.digest() if config.dump else ""
        self._dump = DumpWriter(Path(config.dump), wait=not starts) if config.dump else None
        self._sessions: dict[str, Session] = {}
        self._background = background
        self._delegations = Delegations(
            self.clock,
            self.family.delegate_id,
            workers=config.background_workers,
            timeout_s=config.background_timeout_s,
        )
        self._mover = Mover(
            self.family, self._engine, self._scheduler, self._delegations, self._sessions
        )
        self._keeper = Keeper(
            self.clock,
            self._mover.copy,
            lambda: tuple(self._sessions),
            self._snapshots(),
            config.snapshot_every_s,
            lambda: self._loop.drain(),
        )
        self._loop = self._make_loop()
        self._opened = itertools.count()
        self._stop = threading.Event()
        self._ticking = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.warm_up_ms = self._warm_up()
        if starts:
            self.start()

    def _warm_up(self) -> float:
        began = time.perf_counter()
        self._engine.warm_up()
        self.foresight.calibrate(self._engine, self.num_slots)
        took = (time.perf_counter() - began) * 1000
        log.info(
            "ready: %s, %d sessions, %.1f MB of state, warm-up %.0f ms",
            self.family.name,
            self.num_slots,
            self._engine.state_bytes / 1e6,
            took,
        )
        return took

    def _snapshots(self) -> Path | None:
        """The folder of periodic snapshots, once it is known that there can be some."""
        folder = self.config.snapshots
        if folder is None:
            return None
        try:
            log.info("sessions of weights %s are saved in %s", self._mover.check()[:12], folder)
        except SnapshotError as error:
            raise ConfigError(f"snapshots: {error}") from None
        return Path(folder)

    def _make_loop(self) -> TickLoop:
        family, shape = self.family, self.family.shape
        voice = Voice(
            tick_ms=shape.tick_ms,
            frames=shape.frames,
            input_rate=shape.input_rate,
            output_rate=shape.output_rate,
            listen_id=family.listen_id,
            delegate_id=family.delegate_id,
            trained=family.trained,
            tokenizer=family.tokenizer,
        )
        kind = TickLoop
        if self.config.loop == "overlapped":
            self._check_overlaps()
            kind = OverlappedLoop
        return kind(
            self.clock,
            shape.tick_ms * 1_000_000,
            self._scheduler,
            self._engine,
            Emitter(voice, self._scheduler, self._delegations.annotate),
            self.metrics,
            self._collector,
            policy=self.config.lateness,
            samples_per_ms=shape.input_rate / 1000,
            max_failures=self.config.max_step_failures,
            predict=self._predict,
            observe=self.foresight.observe,
            record=self._dump.tick if self._dump else None,
            between=self._keeper.between_ticks,
        )

    def _check_overlaps(self) -> None:
        if not isinstance(self._engine, Launches):
            raise ConfigError(
                f"loop='overlapped' needs an engine that launches a tick and returns, as "
                f"device='cuda' has, got {type(self._engine).__name__}; use loop='plain'"
            )

    @property
    def ready(self) -> bool:
        """Warmed up and neither closed nor failed."""
        return not self._closed and self.failure is None

    @property
    def state_bytes(self) -> int:
        """Memory of all slots together."""
        return self._engine.state_bytes

    @property
    def num_slots(self) -> int:
        """Sessions there is a slot for, all in all."""
        return min(self.config.max_sessions, self._engine.num_slots)

    @property
    def free_slots(self) -> int:
        """How many more sessions there is a slot for."""
        return self._scheduler.free_slots

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The sessions that are open."""
        return tuple(self._sessions.values())

    def open(
        self,
        instructions: str | None = None,
        *,
        seed: int | None = None,
        voice: str | None = None,
        sampling: Sampling | None = None,
        background: Background | None = None,
        video: Video | None = None,
    ) -> Session:
        """A new session; it takes part from the next tick on.

        instructions  context it begins with; the session is warming until that has been fed
        seed          of its sampling: the same seed and inputs give the same bits
        voice         refused by models that have only their own
        background    its own background model, in place of the runtime's
        video         what it is going to be shown: admission counts its patches in every tick

        Raises RuntimeFull with a reason and a retry hint when there is no slot, time or memory for
        it, InputError, QueueFull when the instructions exceed context_queue_rows, RuntimeClosed.
        """
        self._check_ready()
        number = next(self._opened)
        seed = _check_seed(seed, self.config.seed + number)
        if voice is not None:
            raise InputError(f"{self.family.name} speaks in its own voice only, got {voice!r}")
        sampling = sampling if sampling is not None else Sampling()
        if not isinstance(sampling, Sampling):
            raise InputError(f"sampling must be a Sampling, got {type(sampling).__name__}")
        images = self._images(video)
        session_id = f"{number:04d}-{secrets.token_hex(4)}"
        try:
            session = self._join(session_id, instructions, seed, sampling, background, images)
        except BaseException as error:  # nothing of it stays
            self._sessions.pop(session_id, None)
            self._delegations.leave(session_id)
            if self._dump is not None:
                self._dump.forget(session_id)
            if isinstance(error, MemoryError):
                error = RuntimeFull("memory", f"no memory for one more session: {error}", RETRY_MS)
            if isinstance(error, RuntimeFull):
                self.metrics.refused(error.reason)
            raise error
        self.metrics.opened()
        if not self.ready:
            self._scheduler.end(session_id, _RUNTIME_CLOSED)
            self._check_ready()
        return session

    def _join(
        self,
        session_id: str,
        instructions: str | None,
        seed: int,
        sampling: Sampling,
        background: Background | None,
        images: int,
    ) -> Session:
        ids = context_ids(instructions, self.family.tokenizer, None) if instructions else ()
        inbox, outbox = self._queues(session_id, sampling)
        if not inbox.context.push(ids):
            raise QueueFull(
                f"{len(ids)} tokens of instructions, the queue holds {inbox.context.capacity}; "
                f"shorten them or raise context_queue_rows"
            )
        conversation = Conversation()
        if instructions:
            conversation.told(Source.INSTRUCTIONS, instructions)
        session = self._session(inbox, outbox, seed, conversation)
        self._delegations.join(self._desk(session, conversation, background))
        if self._dump is not None:
            self._dump.open(self._header(session))
        self._foresee(len(ids), images)
        self._sessions[session_id] = session
        self._scheduler.admit(inbox, outbox, seed, images)
        log.info("session %s opened, %d context tokens", session_id, len(ids))
        return session

    def snapshot(
        self, session_id: str, path: str | os.PathLike[str], *, timeout_s: float = 60.0
    ) -> SnapshotInfo:
        """Saves a session in a file, from which `restore` goes on bit for bit, here or elsewhere.

        Waits until the file is safe on disk: the session is copied between two ticks, and written
        by another thread. Until then `path` holds what it held before. What the session was given
        is in it, what it has not heard or seen yet too, and the outputs that nobody has read: the
        restored session gives them first.

        Raises SnapshotError, SessionClosed, TimeoutError, RuntimeClosed.
        """
        self._check_ready()
        self._mover.check()
        return self._between(self._keeper.save(session_id, Path(path)), timeout_s)

    def restore(
        self, path: str | os.PathLike[str], *, background: Background | None = None
    ) -> Session:
        """A session goes on where its snapshot was taken, with the id it had.

        Inputs and seed being the same, so are all bits, on the same versions and device. Its
        delegations under way are asked again. It is not dumped: a dump begins with its session.

        Raises SnapshotError for what cannot be read or is of another model, and while the session
        is open here; RuntimeFull, QueueFull when queues here are smaller, RuntimeClosed.
        """
        self._check_ready()
        state = self._mover.read(Path(path))
        spoken = state.spoken
        if state.session_id in self._sessions:
            raise SnapshotError(f"session {state.session_id} is open here; close it first")
        inbox, outbox = self._queues(state.session_id, spoken.inbox.sampling)
        conversation = Conversation()
        session = self._session(inbox, outbox, spoken.seed, conversation)
        session.load(spoken, state.seat.position * self.family.shape.tick_ms)
        desk = self._desk(session, conversation, background)
        self._foresee(len(inbox.context), state.seat.images)

        def admit() -> Seat:
            try:
                seat = self._scheduler.admit(inbox, outbox, spoken.seed, state.seat.images)
            except RuntimeFull as full:
                self.metrics.refused(full.reason)
                raise
            self.metrics.opened()
            self._sessions[session.id] = session
            self._delegations.join(desk)
            return seat

        def put() -> None:
            self._mover.put(state, session, admit)
            self._delegations.resume(desk, state.desk)

        self._between(self._keeper.run(put), None)
        log.info("session %s restored at tick %d of its own", session.id, state.seat.position)
        return session

    def _between(self, future: Future[T], timeout_s: float | None) -> T:
        """What a job between ticks gives. Without a clock thread, there is no tick now."""
        if self._thread is None:
            with self._ticking:
                while self._keeper.between_ticks(math.inf):
                    pass
        return future.result(timeout_s)

    def tick(self) -> TickPlan:
        """One tick by hand: waits for its due time on the runtime's clock, and runs it.

        Raises RuntimeError when the clock thread runs, RuntimeClosed, EngineLost, which ends every
        session.
        """
        self._check_ready()
        if self._thread is not None:
            raise RuntimeError("the clock thread ticks; make the Runtime with start=False")
        try:
            with self._ticking:
                plan = self._loop.tick()
        except EngineLost as error:
            self._died(error)
            raise
        assert plan is not None
        return plan

    def start(self) -> None:
        """Starts the clock thread. Raises RuntimeError when it runs already, RuntimeClosed."""
        self._check_ready()
        if self._thread is not None:
            raise RuntimeError("the clock thread runs already")
        self._collector.start()
        self._thread = threading.Thread(target=self._run, name="microturn-clock", daemon=True)
        self._thread.start()

    def summary(self) -> dict[str, Any]:
        """Metrics.summary() with what the runtime is."""
        return {
            "model": self.family.name,
            "untrained": not self.family.trained,
            "tick_ms": self.config.tick_ms,
            "max_sessions": self.config.max_sessions,
            "num_slots": self.num_slots,
            "warm_up_ms": self.warm_up_ms,
            "state_bytes": self.state_bytes,
            "graph_misses": self.metrics.graph_misses(),
            **self.foresight.summary(self.num_slots),
            **self.metrics.summary(),
        }

    def write_summary(self, path: str | os.PathLike[str]) -> None:
        """summary(), the configuration and the versions of a run as one JSON file. Raises
        OSError.
        """
        whole = {
            "summary": self.summary(),
            "config": dataclasses.asdict(self.config),
            "versions": versions(),
        }
        Path(path).write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n", "utf-8")

    def serve_metrics(self, port: int = 0, address: str = "127.0.0.1") -> int:
        """Prometheus may scrape http://address:port/metrics until the runtime is closed; says which
        port that is. Raises OSError when it is taken, RuntimeError when it is served already.
        """
        self._check_ready()
        if self._stop_serving is not None:
            raise RuntimeError("the metrics of this Runtime are served already")
        port, self._stop_serving = self.metrics.serve(port, address)
        return port

    def close(self) -> None:
        """Stops the clock and ends every session; outputs already made can still be read. With a
        folder of snapshots, every session is saved there first.
        """
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        if self.failure is None:
            self._loop.drain()
            self._keeper.save_all()
        self._keeper.close()
        self._end_all(_RUNTIME_CLOSED)
        self._delegations.close()
        self._collector.stop()
        if self._dump is not None:
            self._dump.close()
        if self._stop_serving is not None:
            self._stop_serving()
        self._engine.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while self._loop.tick(self._stop) is not None:
                pass
        except BaseException as error:
            self._died(error)

    def _died(self, error: BaseException) -> None:
        log.critical("the clock thread died", exc_info=error)
        self.failure = error
        self._collector.stop()
        detail = f"the clock thread died: {type(error).__name__}: {error}"
        self._keeper.close()
        self._end_all(CloseReason(CloseCode.INTERNAL, detail))

    def _end_all(self, reason: CloseReason) -> None:
        for seat in self._scheduler.seats:
            self._scheduler.end(seat.session_id, reason)

    def _ended(self, seat: Seat, reason: CloseReason) -> None:
        self._sessions.pop(seat.session_id, None)
        self._delegations.leave(seat.session_id)
        self._keeper.ended(seat.session_id, forget=reason.code is CloseCode.CLOSED)
        counters, per_ms = seat.inbox.counters, self.family.shape.input_rate / 1000
        self.metrics.closed(
            reason.code,
            dropped_ms=counters.dropped_samples / per_ms,
            inserted_silence_ms=counters.silence_samples / per_ms,
            missed_ticks=counters.missed_ticks,
        )
        if self._dump is not None:
            self._dump.end(seat.session_id, str(reason))

    def _queues(self, session_id: str, sampling: Sampling) -> tuple[Inbox, OutputQueue]:
        config = self.config
        inbox = Inbox(
            session_id,
            AudioQueue(config.input_queue_ms * self.family.shape.input_rate // 1000),
            IdQueue(config.context_queue_rows),
            PatchQueue(config.image_queue_rows),
            sampling,
            drop_oldest=config.input_overflow == "drop_oldest",
            excused=self._loop.behind,
        )
        drops = config.output_overflow == "drop_oldest"
        return inbox, OutputQueue(config.output_queue_ticks, drops)

    def _session(
        self, inbox: Inbox, outbox: OutputQueue, seed: int, conversation: Conversation
    ) -> Session:
        return Session(
            inbox,
            outbox,
            seed=seed,
            input_rate=self.family.shape.input_rate,
            tokenizer=self.family.tokenizer,
            speak_ids=self.family.speak_ids,
            end=self._scheduler.end,
            conversation=conversation,
            cancel=self._delegations.cancel,
            snapshot=self.snapshot,
        )

    def _desk(
        self, session: Session, conversation: Conversation, background: Background | None
    ) -> Desk:
        return Desk(session.id, conversation, background or self._background, session.prepare)

    def _images(self, video: Video | None) -> int:
        """Patches that it adds to every tick, as far as a tick takes them."""
        if video is None:
            return 0
        if not isinstance(video, Video):
            raise InputError(f"video must be a Video, got {type(video).__name__}")
        if not self.family.sees:
            raise InputError(f"{self.family.name} has no vision tower, it cannot be shown video")
        shape = self.family.shape
        return min(video.patches_a_tick(shape.tick_ms), shape.max_rows - 1 - shape.frames)

    def _foresee(self, waiting_rows: int, images: int) -> None:
        declared = [*self._scheduler.images(), images]
        self.foresight.prepare(len(self._sessions), waiting_rows, declared)

    def _header(self, session: Session) -> Header:
        return Header(
            session_id=session.id,
            family=self.family.name,
            weights=self._weights,
            shape=dataclasses.asdict(self.family.shape),
            config=dataclasses.asdict(self.config),
            seed=session.seed,
            versions=versions(),
        )

    def _check_ready(self) -> None:
        if self.failure is not None:
            raise RuntimeClosed("the clock thread died; make a new Runtime") from self.failure
        if self._closed:
            raise RuntimeClosed("this Runtime is closed; make a new one")


_RUNTIME_CLOSED = CloseReason(CloseCode.RUNTIME_CLOSED, "the runtime was closed")


def _check_seed(seed: int | None, otherwise: int) -> int:
    if seed is None:
        return otherwise % 2**63
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be an integer in [0, 2**63), got {seed!r}")
    return seed


def _load(config: RuntimeConfig) -> ModelFamily:
    from microturn.model.interaction import load_family

    preset = None if config.checkpoint else config.preset
    try:
        return load_family(
            preset,
            config.checkpoint,
            tick_ms=config.tick_ms,
            seed=config.seed,
            window=config.window,
            num_sink_tokens=config.num_sink_tokens,
        )
    except (ValueError, KeyError) as error:
        raise ConfigError(str(error.args[0] if error.args else error)) from error
