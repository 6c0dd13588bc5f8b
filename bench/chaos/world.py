"""Sessions that come, talk, misbehave and go, at random by one seed, and what must hold meanwhile.

Promises checked exactly: a slot is free or one session's; accepted audio is heard in order or its
loss is marked; context is told in order; images are seen whole, in order, or were replaced by newer
ones and counted; deadline misses, skipped ticks and session ticks are what
the engine's own log says; nobody is ended by someone's coming; who is evicted came last where
anybody came since lateness began; a session ends for its own fault only, with the reason it names.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from microturn.bench.chaos.echo import SHAPE, EchoEngine, EchoFamily, picture
from microturn.bench.chaos.ledger import Ledger, need
from microturn.runtime import (
    AudioError,
    ImageError,
    QueueFull,
    Runtime,
    RuntimeFull,
    Session,
    SessionClosed,
    VirtualClock,
)
from microturn.runtime.errors import CloseCode
from microturn.runtime.lateness import LatenessPolicy
from microturn.runtime.plan import TickPlan

MS = 1_000_000
PERIOD = SHAPE.tick_ms * MS
MAX_STRIKES = 3
PACKETS = (20, 100, 100, 200, 300)
OVERFLOWS = ("drop_oldest", "close")
LOOPS = ("plain", "overlapped")
CALM = CloseCode.CLOSED


@dataclass(frozen=True)
class Setting:
    """What a world is made of."""

    seed: int
    slots: int = 32
    input_overflow: str = "drop_oldest"
    output_overflow: str = "close"
    evict_after: int = 6
    loop: str = "plain"

    @property
    def case(self) -> str:
        return (
            f"preset=echo,S={self.slots},tick_ms={SHAPE.tick_ms},loop={self.loop},"
            f"input={self.input_overflow},output={self.output_overflow}"
        )

    @property
    def overlapped(self) -> bool:
        return self.loop == "overlapped"


@dataclass(eq=False)
class Client:
    """One session from outside.

    packet    samples that it says at one time
    may_end   reasons that something done to it may end it with
    quiet     ticks that it says nothing for
    unsaid    samples it has not said yet: the newest it says as fast as it can
    stuck     it reads nothing
    waiting   samples that were still unheard when it was closed from outside
    """

    session: Session
    ledger: Ledger
    packet: int
    may_end: set[CloseCode] = field(default_factory=lambda: {CALM, CloseCode.OVERLOADED})
    quiet: int = 0
    unsaid: int = 0
    stuck: bool = False
    flaky: int = 0
    joined: int | None = None
    waiting: int | None = None


class World:
    """`run` goes on until so many session ticks were committed. Raises Broken.

    faults: how often each happened, counted by what it did.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.rng = random.Random(setting.seed)
        self.clock = VirtualClock(self.rng.randrange(10**12))
        self.engine = EchoEngine(setting.slots, self.clock, self._takes)
        self.faults: Counter[str] = Counter()
        self.runtime = Runtime(
            model=EchoFamily(),  # type: ignore[arg-type]
            engine=self.engine,
            clock=self.clock,
            predict=lambda plan: self._takes(len(plan.rows)) / 1e9,
            max_sessions=setting.slots,
            input_queue_ms=500,
            output_queue_ticks=8,
            context_queue_rows=40,
            image_queue_rows=20,
            loop=setting.loop,
            input_overflow=setting.input_overflow,
            output_overflow=setting.output_overflow,
            max_step_failures=MAX_STRIKES,
            lateness=LatenessPolicy(
                degrade_after=2,
                degrade_to_ms=200,
                evict_after=setting.evict_after,
                catch_up_ticks=1,
            ),
        )
        self.clients: dict[str, Client] = {}
        self.base_ns, self.row_ns, self.slow_for = 10 * MS, MS, 0
        self.lateness, self.since = 0, 0
        self.t0: int | None = None
        self.next_tick, self.passed = 0, 1
        self.session_ticks = self.late_session_ticks = 0
        self.ticks = self.misses = self.skipped = self.failed = self.idle = 0

    def run(self, session_ticks: int) -> None:
        made = self.runtime.metrics
        while made.session_ticks < session_ticks:
            self._tick()
        self._end()

    def close(self) -> None:
        self.runtime.close()

    # What happens.

    def _tick(self) -> None:
        rng = self.rng
        while rng.random() < 0.25 or not self.clients:
            self._open()
        for client in list(self.clients.values()):
            self._talk(client)
        if rng.random() < 0.3:
            self._misbehave(rng.choice(list(self.clients.values())))
        self._weather()
        engine = self.engine
        if engine.transient:
            for session_id in self.runtime._scheduler.suspects:
                self.clients[session_id].may_end.add(CloseCode.STEP_FAILED)
        engine.calls.clear()
        before = set(self.clients)
        plan = self.runtime.tick()
        self._check_time(plan)
        for client in list(self.clients.values()):
            self._after(client)
        self._check_ended(before, plan)
        if rng.random() < 0.05:
            self._check_slots()

    def _open(self) -> None:
        rng = self.rng
        words = [rng.randrange(900) for _ in range(rng.choice((0, 0, 0, 3, 30)))]
        here = {session.id for session in self.runtime.sessions}
        seed, session = rng.randrange(2**31), None
        text = "!" if rng.random() < 0.02 else " ".join(map(str, words))
        try:
            session = self.runtime.open(text or None, seed=seed)
        except RuntimeFull as full:
            memory = full.reason == "memory"
            self.faults["open_out_of_memory" if memory else "open_refused"] += 1
            need(full.retry_after_ms > 0, "a refusal says when to ask again", full)
            need(memory == (text == "!"), "a refusal says why", full)
            fits = len(here) < self.setting.slots
            need(memory or not fits, "only the full are refused", len(here))
        there = {s.id for s in self.runtime.sessions}
        need(here <= there, "nobody is ended for a newcomer", *(here - there))
        if session is None:
            if len(here) == self.setting.slots:
                self._close(rng.choice(list(self.clients.values())))
            return
        client = Client(session, Ledger(seed, rng.randrange(2**20)), rng.choice(PACKETS))
        client.ledger.tell(words)
        client.unsaid -= SHAPE.input_samples * (self.passed - 1)
        if rng.random() < 0.02:
            _stops_reading(self, client)
        self.clients[session.id] = client
        self.faults["opened"] += 1

    def _talk(self, client: Client) -> None:
        rng = self.rng
        client.unsaid += SHAPE.input_samples * self.passed
        if client.quiet:
            client.quiet -= 1
            if not client.quiet:
                self.faults["burst"] += 1
        elif rng.random() < 0.004:
            client.quiet = rng.choice((1, 2, 3, 10, 100))
            self.faults["silent"] += 1
        elif client.unsaid >= client.packet:
            said = min(client.unsaid, 500) if rng.random() < 0.95 else rng.randrange(160)
            if said > max(client.packet, SHAPE.input_samples * self.passed):
                client.may_end.add(CloseCode.INPUT_OVERFLOW)
            client.unsaid = max(0, client.unsaid - said) if client.unsaid < 1_000 else 0
            self._say(client, said)

    def _say(self, client: Client, count: int) -> None:
        session, ledger = client.session, client.ledger
        try:
            session.push_audio(ledger.next_samples(count), SHAPE.input_rate)
        except SessionClosed:
            self.faults["push_after_end"] += 1
            return
        ledger.accept(count)

    def _misbehave(self, client: Client) -> None:
        name = self.rng.choice(_NAMES)
        _DEEDS[name](self, client)

    def _weather(self) -> None:
        """How fast the machine is, and stalls."""
        rng = self.rng
        self.row_ns = rng.randrange(2 * MS)
        if self.slow_for:
            self.slow_for -= 1
            self.base_ns = 95 * MS + rng.randrange(40 * MS)
            return
        self.base_ns = rng.randrange(40 * MS)
        at = rng.random()
        if at < 0.01:
            self.base_ns = rng.randrange(50, 500) * MS
            self.faults["step_stalled"] += 1
        elif at < 0.015:
            self.clock.advance(rng.randrange(1, 1_500) * MS)
            self.faults["clock_jumped"] += 1
        elif at < 0.025:
            self.engine.transient = rng.randrange(1, 3)
            self.faults["step_raised"] += 1
        elif at < 0.03:
            self.slow_for = rng.randrange(5, 25)
            self.faults["overload"] += 1

    def _takes(self, rows: int) -> int:
        return self.base_ns + rows * self.row_ns

    def _after(self, client: Client) -> None:
        """The client reads, unless it is stuck."""
        session, ledger, outbox = client.session, client.ledger, client.session._outbox
        if client.flaky:
            client.flaky -= 1
            if not client.flaky:
                self.engine.faults.pop(session.id, None)
        if client.stuck and session.closed_reason is None:
            return
        while len(outbox) and (output := session.poll()) is not None:
            ledger.check(output)
            if output.dropped_outputs:
                self.faults["outputs_dropped"] += 1
                client.stuck = False

    def _close(self, client: Client) -> None:
        client.waiting = round(client.session.stats.waiting_audio_ms)
        client.session.close()
        self._after(client)
        self._check_end(client)

    # What must hold.

    def _check_time(self, plan: TickPlan) -> None:
        """The tick's misses, skips and lateness by the engine's log and the clock alone."""
        tick, calls = plan.tick, self.engine.calls
        need(tick == self.next_tick, "ticks stay on the grid", tick, self.next_tick)
        periods = 1 + self.setting.overlapped
        if self.t0 is None:
            self.t0 = plan.deadline - periods * PERIOD
        need(plan.deadline == self.t0 + (tick + periods) * PERIOD, "the grid is absolute", tick)
        self.failed += sum(call.raised for call in calls)
        self.idle += not plan.rows
        late = self._overlapped(plan) if self.setting.overlapped else self._plain(plan)
        now, self.next_tick = self.clock.now(), tick + 1
        if now >= self.t0 + (tick + 2) * PERIOD:
            self.next_tick = -(-(now - self.t0) // PERIOD)
        self.passed = self.next_tick - tick
        skipped = self.passed - 1
        self.skipped += skipped
        late = late or bool(skipped and plan.rows)
        if late and not self.lateness:
            self.since = tick
        self.lateness = self.lateness + 1 if late else max(0, self.lateness - 1)
        self.faults["late"] += late
        for row in plan.rows:
            client = self.clients.get(row.session_id)
            if client is not None and client.joined is None:
                client.joined = tick

    def _overlapped(self, plan: TickPlan) -> bool:
        """Counts the tick that was handed out, and the present one where it was stepped apart;
        whether one of them was late.
        """
        before = [call for call in self.engine.calls if call.plan.tick != plan.tick]
        apart = [call for call in self.engine.calls if call.plan.tick == plan.tick]
        need(len(before) <= 1, "one tick is handed out", plan.tick)
        late = any(call.end > call.plan.deadline for call in before)
        self.ticks += len(before)
        self.misses += late
        self.faults["overlapped"] += len(before)
        if apart:
            made, after = any(not call.raised for call in apart), apart[-1].end > plan.deadline
            self.ticks += made
            self.misses += made and after
            self.faults["stepped_apart"] += made
            late = late or after
        return late

    def _plain(self, plan: TickPlan) -> bool:
        """Counts the tick and what was caught up in it; whether it was late."""
        tick, calls = plan.tick, self.engine.calls
        left, made, end = {row.session_id for row in plan.rows}, False, 0
        for at, call in enumerate(calls):
            if not left:
                need(
                    any(c.raised for c in calls[at:]) or calls[-1].end <= plan.deadline,
                    "what is caught up is in time when the prediction was right",
                    tick,
                )
                self.faults["caught_up"] += len(call.plan.rows) * (not call.raised)
                continue
            end = call.end
            made = made or not call.raised
            if not call.raised or len(call.plan.rows) == 1:
                left -= {row.session_id for row in call.plan.rows}
        late = bool(plan.rows) and end > plan.deadline
        self.ticks += made
        self.misses += made and late
        return late

    def _check_ended(self, before: set[str], plan: TickPlan) -> None:
        evicted = []
        for client in list(self.clients.values()):
            if client.session.closed_reason is not None:
                self._check_end(client)
                if client.session.closed_reason.code is CloseCode.OVERLOADED:
                    evicted.append(client)
        if not evicted:
            return
        need(len(evicted) == 1, "one at a time is evicted", len(evicted))
        need(self.lateness >= self.setting.evict_after, "only lasting lateness evicts", plan.tick)
        joined = evicted[0].joined
        need(joined is not None, "who takes part is evicted", evicted[0].session.id)
        came = [
            c
            for c in self.clients.values()
            if c.joined is not None and c.joined >= self.since and c.session.state != "paused"
        ]
        need(
            (joined or 0) >= self.since or not came,
            "nobody is evicted while a newcomer stays",
            joined,
            self.since,
        )
        self.lateness = 0

    def _check_end(self, client: Client) -> None:
        """All that an ended session was given is accounted for."""
        session, ledger = client.session, client.ledger
        reason, stats = session.closed_reason, session.stats
        assert reason is not None
        self._after(client)
        if drained := "its input heard" in reason.detail:
            client.waiting = 0
        self.clients.pop(session.id)
        self.engine.faults.pop(session.id, None)
        need(reason.code in client.may_end, "a session ends for its own fault", reason)
        self.faults[f"ended_{reason.code}"] += 1
        unread = ledger.outputs + ledger.lost
        need(
            stats.ticks - unread in (0, reason.code is CloseCode.SLOW_READER),
            "every output is read or counted",
            stats.ticks,
            unread,
        )
        need(stats.dropped_outputs == ledger.lost, "lost outputs are counted", ledger.lost)
        self.session_ticks += stats.ticks
        self.late_session_ticks += stats.late_ticks
        need(
            bool(ledger.lost) or stats.late_ticks - ledger.late in (0, stats.ticks - unread),
            "late outputs are counted",
            stats.late_ticks,
            ledger.late,
        )
        need(
            bool(ledger.lost)
            or 0 <= stats.replaced_images - ledger.replaced <= len(ledger.images) - ledger.last - 1,
            "an image that is not seen was replaced, and counted",
            stats.replaced_images,
            ledger.replaced,
        )
        self.faults["image_seen"] += ledger.begun
        self.faults["image_replaced"] += stats.replaced_images
        if stats.ticks == unread:
            heard = ledger.heard + round(stats.dropped_ms)
            need(heard <= ledger.given, "nothing is heard twice", heard, ledger.given)
            if client.waiting is not None:
                # Of a session that is closed, the tick that is under way is lost.
                most = SHAPE.input_samples * (self.setting.overlapped and not drained)
                need(
                    0 <= ledger.given - heard - client.waiting <= most,
                    "no accepted audio is lost without a mark",
                    ledger.heard,
                    stats.dropped_ms,
                    client.waiting,
                    ledger.given,
                )

    def _check_slots(self) -> None:
        free, taken = self.runtime.free_slots, len(self.runtime.sessions)
        need(free + taken == self.setting.slots, "a slot is free or taken", free, taken)

    def _end(self) -> None:
        """Everybody leaves; the counts of the whole run are compared."""
        for client in list(self.clients.values()):
            self._close(client)
        self.engine.calls.clear()
        self.runtime._loop.drain()
        self.ticks += len(self.engine.calls)
        self.misses += sum(call.end > call.plan.deadline for call in self.engine.calls)
        need(
            self.runtime.free_slots == self.setting.slots, "no slot leaks", self.runtime.free_slots
        )
        counted = self.runtime.metrics
        for what, exact in (
            ("batch_ticks", self.ticks),
            ("idle_ticks", self.idle),
            ("misses", self.misses),
            ("skipped_ticks", self.skipped),
            ("failed_steps", self.failed),
            ("session_ticks", self.session_ticks),
            ("late_session_ticks", self.late_session_ticks),
            ("caught_up_session_ticks", self.faults["caught_up"]),
            ("sessions_open", 0),
        ):
            count = getattr(counted, what)
            need(count == exact, f"{what} are counted exactly", count, exact)
        self.faults["degraded"] += counted.degraded


Deed = Callable[[World, Client], None]


def _row_raises(world: World, client: Client) -> None:
    client.may_end.add(CloseCode.STEP_FAILED)
    world.engine.faults[client.session.id] = RuntimeError("planted")


def _row_raises_once(world: World, client: Client) -> None:
    suspects = world.runtime._scheduler.suspects
    if client.session.id not in world.engine.faults and client.session.id not in suspects:
        world.engine.faults[client.session.id] = RuntimeError("planted")
        client.flaky = world.rng.randrange(1, MAX_STRIKES)
        world.faults["row_raised_once"] += 1


def _row_out_of_memory(world: World, client: Client) -> None:
    client.may_end.add(CloseCode.OUT_OF_MEMORY)
    world.engine.faults[client.session.id] = MemoryError("planted")


def _not_finite(world: World, client: Client) -> None:
    client.may_end.add(CloseCode.NOT_FINITE)
    world.engine.faults[client.session.id] = "nan"


def _unspeakable(world: World, client: Client) -> None:
    client.may_end.add(CloseCode.INTERNAL)
    world.engine.faults[client.session.id] = "unspeakable"


def _bad_queue(world: World, client: Client) -> None:
    """Its input cannot be converted, which nothing from outside can bring about."""
    client.may_end.add(CloseCode.INPUT_FAILED)
    client.session._inbox.audio.hold = None  # type: ignore[method-assign, assignment]


def _stops_reading(world: World, client: Client) -> None:
    client.stuck = True
    client.may_end.add(CloseCode.SLOW_READER)
    world.faults["stopped_reading"] += 1


def _floods(world: World, client: Client) -> None:
    client.may_end.add(CloseCode.INPUT_OVERFLOW)
    for _ in range(4):
        world._say(client, world.rng.randrange(200, 500))
    world.faults["audio_flood"] += 1


def _tells(world: World, client: Client) -> None:
    words = [world.rng.randrange(900) for _ in range(world.rng.choice((1, 5, 20)))]
    text = " ".join(map(str, words))
    if _taken(world, partial(client.session.append_context, text), "context_flood"):
        client.ledger.tell(words)


def _taken(world: World, give: Callable[[], object], flood: str) -> bool:
    """Whether the session took it; a full queue counts as that fault."""
    try:
        give()
    except QueueFull:
        world.faults[flood] += 1
        return False
    except SessionClosed:
        return False
    return True


def _tells_too_much(world: World, client: Client) -> None:
    for _ in range(3):
        _tells(world, client)


def _refused(name: str, pcm: Any, rate: Any) -> Deed:
    def deed(world: World, client: Client) -> None:
        try:
            client.session.push_audio(pcm, rate)
        except AudioError:
            world.faults[name] += 1
        except SessionClosed:
            pass
        else:
            need(False, "bad input is refused", name)

    return deed


def _leaves_mid_step(world: World, client: Client) -> None:
    world.engine.during.append(client.session.close)
    world.faults["closed_in_step"] += 1


def _leaves_twice(world: World, client: Client) -> None:
    if client.session.id in world.clients and client.session.closed_reason is None:
        world._close(client)
        client.session.close()
        client.session.close(drain=True)
        try:
            client.session.push_audio(np.ones(1, np.float32), 1_000)
        except SessionClosed:
            world.faults["closed_twice"] += 1


def _drains(world: World, client: Client) -> None:
    if client.session.closed_reason is None and client.session.id not in world.engine.faults:
        client.session.close(drain=True)
        client.quiet = 10**9
        world.faults["drained"] += 1


def _opens_and_leaves(world: World, client: Client) -> None:
    world._open()
    newest = list(world.clients.values())[-1]
    if newest.session.state == "warming":
        world._close(newest)
        world.faults["closed_while_warming"] += 1


def _pauses(world: World, client: Client) -> None:
    with contextlib.suppress(SessionClosed):
        if client.session.state == "paused":
            client.session.resume()
        else:
            client.session.pause()
            world.faults["paused"] += 1


def _shows(world: World, client: Client) -> None:
    """A few frames of video, faster than they are looked at."""
    patches = world.rng.randrange(1, 5)
    for _ in range(world.rng.choice((1, 3))):
        _show(world, client, patches, still=False)


def _shows_stills(world: World, client: Client) -> None:
    for _ in range(world.rng.choice((1, 5))):
        _show(world, client, world.rng.randrange(1, 9), still=True)


def _show(world: World, client: Client, patches: int, still: bool) -> None:
    image = picture(len(client.ledger.images), patches, still)
    if _taken(world, partial(client.session.push_image, image, still=still), "image_flood"):
        client.ledger.show(still)


def _shows_too_much(world: World, client: Client) -> None:
    try:
        client.session.push_image(picture(0, 8, False).repeat(3, 0))
    except ImageError:
        world.faults["oversize_image"] += 1
    except SessionClosed:
        pass
    else:
        need(False, "an image that no queue holds is refused", client.session.id)


_DEEDS: dict[str, Deed] = {
    "row_raises": _row_raises,
    "row_raises_once": _row_raises_once,
    "row_out_of_memory": _row_out_of_memory,
    "not_finite": _not_finite,
    "unspeakable": _unspeakable,
    "bad_queue": _bad_queue,
    "stops_reading": _stops_reading,
    "floods": _floods,
    "tells": _tells,
    "tells_too_much": _tells_too_much,
    "shows": _shows,
    "shows_stills": _shows_stills,
    "shows_too_much": _shows_too_much,
    "oversize": _refused("oversize_push", np.zeros(501, np.float32), 1_000),
    "wrong_rate": _refused("wrong_rate", np.zeros(10, np.float32), float("nan")),
    "nan": _refused("nan_input", np.full(10, np.nan, np.float32), 1_000),
    "leaves_mid_step": _leaves_mid_step,
    "leaves_twice": _leaves_twice,
    "drains": _drains,
    "opens_and_leaves": _opens_and_leaves,
    "pauses": _pauses,
}
_NAMES = tuple(_DEEDS)
