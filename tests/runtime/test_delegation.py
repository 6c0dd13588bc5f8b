"""Delegation: what the background model is asked, how its answer comes in, and what ends it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microturn.model.interaction import preset
from microturn.model.interaction.load import _packaged_tokenizer
from microturn.runtime import (
    Answer,
    BackgroundError,
    ConfigError,
    DelegationEvent,
    DelegationKind,
    DelegationRequest,
    HttpBackground,
    InputError,
    Line,
    Runtime,
    Session,
    Source,
)
from microturn.runtime.conversation import MAX_CHARS, Conversation
from microturn.runtime.cpu_engine import CpuEngine
from microturn.runtime.engine import TickOutputs

MakeRuntime = Callable[..., Runtime]
DELEGATE = 39


class Script(CpuEngine):
    """Says what it is told to: `says[session position]` in place of the model's words."""

    def __init__(self, family: Any, num_slots: int = 4) -> None:
        super().__init__(family, num_slots)
        self.says: dict[int, list[int]] = {}
        self.heard: list[tuple[int, ...]] = []

    def step(self, plan: Any, inputs: Any) -> TickOutputs:
        made = super().step(plan, inputs)
        for row in plan.rows:
            self.heard.append(tuple(inputs[row.session_id].context_ids))
            if row.exec:
                said = self.says.get(self.arenas.committed("frames", row.slot) // 2 - 1, [0, 0])
                made.rows[row.session_id].text_ids[:] = said
        return made


class Talk:
    """A runtime that delegates, and all events of its one session."""

    def __init__(self, make_runtime: MakeRuntime, family: Any, **config: Any) -> None:
        self.engine = Script(family)
        self.runtime = make_runtime(model=family, engine=self.engine, **config)
        self.session: Session = self.runtime.open("be kind")
        self.events: list[DelegationEvent] = []

    def tick(self, count: int = 1) -> Any:
        output = None
        for _ in range(count):
            self.runtime.tick()
            while (next_one := self.session.poll()) is not None:
                output = next_one
                self.events += output.delegations
        return output

    def until(self, kind: DelegationKind) -> DelegationEvent:
        """Ticks while other threads work, at most five seconds."""
        for _ in range(500):
            self.tick()
            if found := [event for event in self.events if event.kind is kind]:
                return found[-1]
            time.sleep(0.01)
        raise AssertionError(f"no {kind}, only {self.events}")


@pytest.fixture
def talk(make_runtime: MakeRuntime, make_family: Any) -> Callable[..., Talk]:
    return lambda **config: Talk(make_runtime, make_family(), **config)


def words(*names: str) -> list[int]:
    """As the fake tokenizer does it."""
    return [1 + sum(map(ord, name)) % 37 for name in names]


def test_a_delegation_carries_the_conversation_out_and_the_answer_in(talk: Any) -> None:
    asked: list[DelegationRequest] = []
    threads: list[str] = []
    gate = threading.Event()

    def background(request: DelegationRequest) -> Answer:
        asked.append(request)
        threads.append(threading.current_thread().name)
        gate.wait(5)
        return Answer("it is noon", speak=True)

    t = talk(background=background)
    t.engine.says = {0: [3, 0], 1: [4, 5], 2: [DELEGATE, 6], 30: [7, 0]}
    t.tick(2)
    t.session.append_context("the user is called Ada")
    output = t.tick()
    [created] = output.delegations
    assert output.delegation and created.kind is DelegationKind.CREATED
    assert (created.id, created.session_id, created.offset_ms) == ("d1", t.session.id, 200.0)
    assert created.context == (
        Line(0.0, Source.INSTRUCTIONS, "be kind"),
        Line(0.0, Source.MODEL, "w3 w4 w5"),
        Line(200.0, Source.CONTEXT, "the user is called Ada"),
    )
    assert json.loads(json.dumps(created.to_json())) == {
        "type": "delegation.created",
        "id": "d1",
        "session": t.session.id,
        "offset_ms": 200.0,
        "context": [line._asdict() for line in created.context],
    }
    t.session.push_audio(np.full(16_000, 0.3, np.float32), 16_000)
    assert t.tick(10) is not None and t.events == [created], "speech cancels nothing"
    gate.set()
    answered = t.until(DelegationKind.ANSWERED)
    assert (answered.id, answered.offset_ms, answered.context) == ("d1", 200.0, ())
    assert [(r.id, r.context) for r in asked] == [("d1", created.context)]
    assert threads[0].startswith("microturn-background-")
    t.tick(2)
    assert t.engine.heard[-1] == () and (38, *words("it", "is", "noon")) in t.engine.heard
    assert t.session.conversation[-1].source is Source.BACKGROUND
    assert t.session.conversation[-1].ms > 1_000, "at the time it came"


def test_without_a_background_model_the_owner_is_told_and_may_answer(talk: Any) -> None:
    t = talk()
    t.engine.says = {1: [0, DELEGATE]}
    t.tick(4)
    assert [event.kind for event in t.events] == [DelegationKind.CREATED]
    assert t.events[0].offset_ms == 150.0
    t.session.append_context("seven")
    t.tick()
    assert tuple(words("seven")) in t.engine.heard
    assert t.session.cancel_delegation("d1") is False


def test_a_session_may_bring_its_own_background_model(talk: Any) -> None:
    t = talk(background=lambda request: "the runtime's")
    own = t.runtime.open(background=lambda request: "mine is this")
    t.engine.says = {0: [DELEGATE, 0]}
    kinds = []
    for _ in range(500):
        t.tick()
        while (output := own.poll()) is not None:
            kinds += [event.kind for event in output.delegations]
        if DelegationKind.ANSWERED in kinds:
            break
        time.sleep(0.01)
    assert [line.text for line in own.conversation][-1] == "mine is this"
    t.until(DelegationKind.ANSWERED)
    assert [line.text for line in t.session.conversation][-1] == "the runtime's"


@pytest.mark.parametrize(
    ("answer", "failure", "detail"),
    [
        (ValueError("no such tool"), "error", "ValueError: no such tool"),
        (SystemExit("bye"), "error", "SystemExit: bye"),
        (42, "refused", "must answer an Answer or a str, got int"),
        ("  ", "refused", "an empty text"),
        ("many " * 20, "refused", "20 context tokens do not fit"),
    ],
)
def test_what_goes_wrong_ends_in_an_event_and_never_the_session(
    talk: Any, answer: Any, failure: str, detail: str
) -> None:
    def background(request: DelegationRequest) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    t = talk(background=background, context_queue_rows=19)
    t.engine.says = {0: [DELEGATE, 0], 40: [DELEGATE, 0]}
    failed = t.until(DelegationKind.FAILED)
    assert failed.failure == failure and detail in failed.detail
    assert failed.to_json()["failure"] == failure
    assert t.session.state == "live"
    t.session.append_context("it goes on")
    t.tick()
    assert tuple(words("it", "goes", "on")) in t.engine.heard


def test_time_that_is_up_ends_it_and_the_late_answer_is_dropped(
    talk: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """On the runtime's clock. The thread that is stuck keeps one worker and nothing else."""
    gate, done, given_up = threading.Event(), threading.Event(), threading.Event()

    def background(request: DelegationRequest) -> str:
        if request.id == "d1":
            gate.wait(10)
            given_up.set() if request.cancelled.is_set() else None
            threading.Timer(0.05, done.set).start()
        return f"answer to {request.id}"

    t = talk(background=background, background_timeout_s=2, background_workers=2)
    t.engine.says = {0: [DELEGATE, 0], 3: [DELEGATE, 0]}
    t.until(DelegationKind.ANSWERED)
    failed = t.until(DelegationKind.FAILED)
    assert failed.id == "d1" and failed.failure == "timeout" and "after 2 s" in failed.detail
    with caplog.at_level("INFO", "microturn.runtime.delegation"):
        gate.set()
        assert done.wait(5) and given_up.is_set()
        t.tick(3)
    assert "the answer to d1 came when nobody waited" in caplog.text
    texts = [line.text for line in t.session.conversation if line.source is Source.BACKGROUND]
    assert texts == ["answer to d2"]
    assert len(t.events) == 4


def test_cancelling_is_explicit_and_final(talk: Any) -> None:
    started, gate = threading.Event(), threading.Event()
    requests = []

    def background(request: DelegationRequest) -> str:
        requests.append(request)
        started.set()
        gate.wait(5)
        return "too late"

    t = talk(background=background)
    t.engine.says = {0: [DELEGATE, 0]}
    t.tick()
    assert started.wait(5)
    assert t.session.cancel_delegation("d1") is True
    assert requests[0].cancelled.is_set()
    t.tick()
    assert [e.kind for e in t.events] == [DelegationKind.CREATED, DelegationKind.CANCELLED]
    assert t.session.cancel_delegation("d1") is False
    for name in ("d2", "d0", "1", "d01", "other"):
        with pytest.raises(InputError, match=r"made no delegation .*but 1 others"):
            t.session.cancel_delegation(name)
    gate.set()
    t.tick(3)
    assert all(line.source is not Source.BACKGROUND for line in t.session.conversation)


def test_a_flood_is_bounded_and_a_closed_session_wants_no_answers(talk: Any) -> None:
    gate, requests = threading.Event(), []

    def background(request: DelegationRequest) -> str:
        requests.append(request)
        gate.wait(5)
        return "late"

    t = talk(background=background, background_workers=1)
    t.engine.says = {k: [DELEGATE, DELEGATE] for k in range(3)}
    t.tick(3)
    kinds = [event.kind for event in t.events]
    assert kinds.count(DelegationKind.CREATED) == 6
    busy = [event for event in t.events if event.failure == "busy"]
    assert [event.id for event in busy] == ["d5", "d6"]
    assert "4 of this session are under way" in busy[0].detail
    t.engine.says = {}
    other = t.runtime.open()
    t.session.close()
    gate.set()
    t.tick(3)
    assert len(requests) <= 1 and other.state == "live"
    assert t.session.cancel_delegation("d1") is False


def test_events_of_outputs_that_were_not_read_are_carried_on(talk: Any) -> None:
    t = talk(output_queue_ticks=2, output_overflow="drop_oldest")
    t.engine.says = {k: [DELEGATE, 0] for k in range(4)}
    for _ in range(6):
        t.runtime.tick()
    output = t.session.poll()
    assert output is not None and output.dropped_outputs == 4
    assert [event.id for event in output.delegations] == ["d1", "d2", "d3", "d4"]


def test_a_conversation_is_bounded_and_joins_what_is_said() -> None:
    talk = Conversation()
    talk.told(Source.INSTRUCTIONS, "stay")
    for k in range(30):
        talk.said(50.0 * k, " word")
    assert talk.lines()[1:] == (Line(0.0, Source.MODEL, ("word " * 30).strip()),)
    talk.said(5_000.0, " later")
    assert [line.text for line in talk.lines()][-1] == "later", "a pause ends a line"
    assert not talk.truncated
    for k in range(60):
        talk.passed(10_000.0 + k)
        talk.told(Source.CONTEXT, "x" * 5_000)
    lines = talk.lines()
    assert sum(len(line.text) for line in lines) <= MAX_CHARS + len("stay")
    assert lines[0].text == "stay" and lines[-1].ms == 10_059.0 and talk.truncated


def test_delegations_under_way_are_asked_again_where_a_snapshot_goes_on(
    talk: Any, tmp_path: Path
) -> None:
    gate = threading.Event()
    here = talk(background=lambda request: str(gate.wait(5)))
    here.engine.says = {0: [3, 0], 1: [DELEGATE, 4]}
    here.tick(3)
    here.session.snapshot(tmp_path / "s")
    asked: list[DelegationRequest] = []

    def background(request: DelegationRequest) -> str:
        asked.append(request)
        return "found it"

    there = talk(background=background)
    there.session.close()
    there.session = there.runtime.restore(tmp_path / "s")
    answered = there.until(DelegationKind.ANSWERED)
    assert (answered.id, answered.offset_ms) == ("d1", 100.0)
    [request] = asked
    assert request.context == here.events[0].context
    there.engine.says = {there.runtime._scheduler.seats[0].position: [DELEGATE, 0]}
    assert there.until(DelegationKind.CREATED).id == "d2"
    gate.set()


def test_the_real_presets_delegate_by_their_own_id() -> None:
    """spec/interaction.md: 200059 where the vocabulary is the released one; <listen>, <delegate>
    and <start> behind the words of a vocabulary of its own.
    """
    assert preset("interaction-small").delegate_id == 200_059
    assert preset("interaction-mini").delegate_id == 200_059
    tiny = preset("interaction-tiny")
    assert (tiny.listen_id, tiny.start_id) == (tiny.delegate_id - 1, tiny.delegate_id + 1)
    words = _packaged_tokenizer(tiny)
    assert words is not None
    assert words.piece(tiny.delegate_id) == "" != words.piece(words.encode("hello")[0])
    assert tiny.delegate_id not in words.encode("please <delegate> this")


class Answers(BaseHTTPRequestHandler):
    """What a test put on its server."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.asked.append((self.path, dict(self.headers), json.loads(body)))
        status, reply, drip = server.reply
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        try:
            for at in range(0, len(reply), drip or len(reply) or 1):
                self.wfile.write(reply[at : at + (drip or len(reply))])
                self.wfile.flush()
                time.sleep(0.05 if drip else 0)
        except OSError:
            pass  # the client had enough

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    made.daemon_threads = True
    made.asked, made.reply = [], (200, b'{"text": "noon"}', 0)
    made.url = f"http://127.0.0.1:{made.server_port}/delegate"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


REQUEST = DelegationRequest("d1", "s", 150.0, (Line(0.0, Source.CONTEXT, "what time is it"),))


def test_a_background_model_behind_http_is_asked_and_answers(server: Any, talk: Any) -> None:
    server.reply = (200, b'{"text": "it is noon", "speak": true, "model": "big"}', 0)
    assert HttpBackground(server.url)(REQUEST) == Answer("it is noon", True)
    t = talk(background=HttpBackground(server.url, headers={"Authorization": "Bearer x"}))
    t.engine.says = {0: [3, DELEGATE]}
    created = t.until(DelegationKind.CREATED)
    t.until(DelegationKind.ANSWERED)
    assert t.session.conversation[-1].text == "it is noon"
    path, headers, body = server.asked[-1]
    assert path == "/delegate" and headers["Authorization"] == "Bearer x"
    assert body == {k: v for k, v in created.to_json().items() if k != "type"}


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((500, b"{}", 0), "answered 500 Internal Server Error, 200 is wanted"),
        ((200, b"<html>", 0), "not JSON"),
        ((200, b'["text"]', 0), "must answer"),
        ((200, b'{"text": 3}', 0), "must answer"),
        ((200, b'{"text": "x", "speak": "yes"}', 0), "must answer"),
        ((200, b'{"text": "' + b"x" * 2_000 + b'"}', 0), "more than 1000 bytes"),
        ((200, b'{"text": "' + b"x" * 900 + b'"}', 10), "gave no answer: not done after 0.2 s"),
    ],
)
def test_an_http_answer_of_no_use_is_said_in_words(server: Any, reply: Any, says: str) -> None:
    server.reply = reply
    with pytest.raises(BackgroundError, match=says):
        HttpBackground(server.url, timeout_s=0.2 if reply[2] else 5, max_bytes=1_000)(REQUEST)


def test_a_server_that_is_not_there_and_a_url_that_is_none(server: Any) -> None:
    with pytest.raises(BackgroundError, match="gave no answer"):
        HttpBackground("http://127.0.0.1:9/x", timeout_s=2)(REQUEST)
    for url in ("ftp://host/x", "host/x", "http://", "file:///etc/passwd"):
        with pytest.raises(ConfigError, match=r"must be http\(s\)"):
            HttpBackground(url)
    with pytest.raises(ConfigError, match="above 0"):
        HttpBackground("http://host", timeout_s=0)
