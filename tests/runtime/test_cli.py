"""The `microturn` command, its parts and its mistakes."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from microturn.runtime import FastClock, RealClock, machine
from microturn.runtime.cli import doctor, picture, talk
from microturn.runtime.cli.app import app
from microturn.runtime.cli.audio import Recording, level, read_recording
from microturn.runtime.cli.converse import Player, play_fast, play_real, script
from microturn.runtime.cli.errors import UsageError
from microturn.runtime.cli.events import TimedText, load_events
from microturn.runtime.cli.live import PanelView, PlainView, Status, panel
from microturn.runtime.cli.report import TickRecord, summarise, words
from microturn.runtime.cli.rings import Ring

pytestmark = pytest.mark.usefixtures("untrained")

SPEECH = Path(__file__).parents[1] / "data" / "jfk.flac"
CLIP_SECONDS = 0.73
TICKS = 10  # 730 ms of clip and 200 ms of tail in ticks of 100 ms


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording's first words: 44.1 kHz, stereo, not a whole number of ticks."""
    samples, rate = soundfile.read(SPEECH, dtype="float32", frames=int(CLIP_SECONDS * 44_100))
    path = tmp_path_factory.mktemp("clip") / "clip.flac"
    soundfile.write(path, samples, rate)
    return path


@pytest.fixture(scope="module")
def reply(clip: Path) -> SimpleNamespace:
    """One fast run of the real tiny model."""
    folder = clip.parent
    events = folder / "events.json"
    events.write_text('[{"at_ms": 450, "text": "say hello", "speak": true}]')
    result = invoke(
        *("run", clip, "--out", folder / "reply.wav", "--fast", "--tail-ms", 200, "--seed", 7),
        *("--text", events, "--dump", folder / "dump", "--instructions", "count to five"),
    )
    assert result.exit_code == 0, result.output
    return SimpleNamespace(folder=folder, wav=folder / "reply.wav", output=result.output)


def test_the_reply_lasts_as_long_as_the_ticks_and_its_file_says_untrained(
    reply: SimpleNamespace,
) -> None:
    with soundfile.SoundFile(reply.wav) as file:
        assert (file.samplerate, file.channels, file.frames) == (24_000, 1, TICKS * 2_400)
        assert "untrained" in file.comment
        assert np.abs(file.read()).max() > 0
    assert "untrained" in reply.output
    assert len(reply.output.splitlines()) <= 12


def test_the_json_holds_every_tick_in_order_with_its_times_text_and_slack(
    reply: SimpleNamespace,
) -> None:
    document = json.loads(reply.wav.with_suffix(".json").read_text())
    ticks, summary = document["ticks"], document["summary"]
    assert [t["start_ms"] for t in ticks] == list(range(0, TICKS * 100, 100))
    assert all(t["end_ms"] == t["start_ms"] + 100 for t in ticks)
    for tick in ticks:
        assert "".join(piece for _, _, piece in tick["events"]) == tick["text"]
        assert all(tick["start_ms"] <= ms < tick["end_ms"] for ms, _, _ in tick["events"])
        assert tick["slack_ms"] <= 100 - tick["step_ms"] + 1e-3
        assert not [mark for mark in tick["marks"] if "silence" in mark or "dropped" in mark]
    steps = sorted(tick["step_ms"] for tick in ticks)
    assert summary["step_ms_p50"] == steps[TICKS // 2 - 1]
    assert summary["step_ms_p99"] == summary["step_ms_max"] == steps[-1]
    # A machine that stalls may skip a tick of the grid: that is a miss as well.
    skipped = ticks[-1]["tick"] - ticks[0]["tick"] + 1 - TICKS
    assert summary["skipped_ticks"] == skipped
    assert summary["misses"] == skipped + sum(tick["slack_ms"] < 0 for tick in ticks)
    assert (summary["ticks"], summary["seed"], summary["reply_seconds"]) == (TICKS, 7, 1.0)
    assert document["untrained"] is summary["untrained"] is True
    assert document["told"] == [{"at_ms": 450.0, "text": "say hello", "speak": True}]


def test_the_picture_is_drawn(reply: SimpleNamespace) -> None:
    with Image.open(reply.wav.with_suffix(".png")) as image:
        assert image.size == (2080, 1200)
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 20) or []}
    for color in (picture.HEARD, picture.SAID, picture.TOLD, picture.MISS):
        assert tuple(bytes.fromhex(color[1:])) in colors, color


def test_the_same_seed_gives_the_same_reply_and_another_seed_another(
    reply: SimpleNamespace, clip: Path, tmp_path: Path
) -> None:
    replies = {}
    for seed in (7, 8):
        out = tmp_path / f"{seed}.wav"
        arguments = ("run", clip, "--out", out, "--fast", "--tail-ms", 0, "--seed", seed)
        assert invoke(*arguments, "--instructions", "count to five").exit_code == 0
        replies[seed] = soundfile.read(out)[0]
    before_text = 4 * 2_400
    known = soundfile.read(reply.wav)[0]
    assert np.array_equal(replies[7][:before_text], known[:before_text])
    assert not np.array_equal(replies[8][:before_text], known[:before_text])


def test_a_dump_replays_bit_for_bit_until_one_sample_of_it_is_changed(
    reply: SimpleNamespace,
) -> None:
    result = invoke("replay", reply.folder / "dump")
    assert result.exit_code == 0, result.output
    assert f"{TICKS} ticks, bit-identical" in result.output
    assert "untrained" in result.output
    said = next((reply.folder / "dump").glob("*/said.f32"))
    samples = np.fromfile(said, "<f4")
    samples[3 * 2_400 + 5] += 1e-6
    samples.tofile(said)
    result = invoke("replay", reply.folder / "dump")
    assert result.exit_code == 1
    differs = re.search(r"differs at tick (\d+): audio differs at 5", result.output)
    assert differs and int(differs[1]) >= 3, "the fourth output; a busy machine skips ticks before"


@pytest.mark.parametrize("real", [False, True])
def test_the_model_hears_the_recording_from_its_first_sample_also_after_a_long_warm_up(
    make_runtime: Callable[..., Any], make_family: Any, tools: SimpleNamespace, real: bool
) -> None:
    recording = Recording(tools.noise(7_600), 8_000)
    family = make_family(max_rows=16)
    runtime = make_runtime(family, RealClock() if real else FastClock(), start=False)
    session = runtime.open(instructions=" ".join(["word"] * 40))
    told = [TimedText(230.0, "hello there")]
    play = script(recording, told, rate=16_000, tick_ms=100, tail_ms=0)
    outputs: list[Any] = []
    player = Player(session, play, outputs.append)
    (play_real if real else play_fast)(runtime, [player])
    runtime.close()
    live = [lines[0] for lines in family.fed if len(lines[0].audio)][-len(outputs) :]
    heard = np.concatenate([line.audio.numpy() for line in live])[:15_200]
    want = soxr.resample(recording.samples, 8_000, 16_000, quality="VHQ")[: len(heard)]
    assert len(outputs) == play.num_ticks == 10
    assert np.array_equal(heard, np.clip(want, -1, 1).astype(np.float32))
    assert sum(output.inserted_silence_ms + output.dropped_ms for output in outputs) == 0
    told_at = [k for k, line in enumerate(live) if len(line.context_ids)][-1]
    assert len(live[told_at].context_ids) == 2
    assert 2 <= told_at <= (5 if real else 2)  # a busy machine may read an output late


BAD_EVENTS = {
    "nothing": "is not JSON",
    '{"at_ms": 1}': "must hold a list",
    "[3]": "entry 0: must be an object",
    '[{"at_ms": 1, "text": "a"}, {"at_ms": "soon", "text": "a"}]': "entry 1: at_ms",
    '[{"at_ms": NaN, "text": "a"}]': "entry 0: at_ms",
    '[{"at_ms": -1, "text": "a"}]': "entry 0: at_ms",
    '[{"at_ms": true, "text": "a"}]': "entry 0: at_ms",
    '[{"at_ms": 1, "text": " "}]': "entry 0: text",
    '[{"at_ms": 1, "text": "a", "speak": "yes"}]': "entry 0: speak",
    '[{"at_ms": 1, "text": "a", "say": true}]': "unknown field 'say'",
}


@pytest.mark.parametrize(("content", "says"), BAD_EVENTS.items(), ids=range(len(BAD_EVENTS)))
def test_bad_timed_text_is_refused_by_entry_and_field(
    tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "events.json"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        load_events(path)
    assert says in str(caught.value)


def test_timed_text_comes_sorted_by_time(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    path.write_text('[{"at_ms": 9, "text": "b"}, {"at_ms": 2.5, "text": "a", "speak": true}]')
    assert load_events(path) == (TimedText(2.5, "a", True), TimedText(9.0, "b", False))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("no.wav", "--out", "r.wav"), "no.wav: no such file"),
        (("events.json", "--out", "r.wav"), "events.json"),
        (("empty.wav", "--out", "r.wav"), "holds no samples"),
        (("nan.wav", "--out", "r.wav"), "NaN"),
        (("ok.wav", "--out", "r.mp3"), "must name a .wav file"),
        (("ok.wav", "--out", "no/r.wav"), "no folder no"),
        (("ok.wav", "--out", "r.wav", "--text", "no.json"), "no.json: no such file"),
        (("ok.wav", "--out", "r.wav", "--text", "ok.wav"), "is not JSON"),
        (("ok.wav", "--out", "r.wav", "--text", "late.json"), "raise --tail-ms"),
        (("ok.wav", "--out", "r.wav", "--preset", "huge"), "known: interaction-tiny"),
        (("ok.wav", "--out", "r.wav", "--tick-ms", "70"), "multiple of 50"),
        (("ok.wav", "--out", "r.wav", "--checkpoint", "no"), "not a checkpoint"),
        (("ok.wav", "--out", "r.wav", "--checkpoint", "no", "--preset", "x"), "not both"),
        (("ok.wav", "--out", "r.wav", "--seed", "-1"), "seed"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_mistake_ends_in_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("ok.wav", np.zeros(1_600, np.float32), 16_000)
    soundfile.write("empty.wav", np.zeros(0, np.float32), 16_000)
    soundfile.write("nan.wav", np.full(99, np.nan, np.float32), 16_000, subtype="FLOAT")
    Path("events.json").write_text("[]")
    Path("late.json").write_text('[{"at_ms": 9999, "text": "a"}]')
    result = invoke("run", *arguments, "--fast")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0]
    assert not list(tmp_path.glob("r.*"))


def test_replay_refuses_a_folder_without_a_dump(tmp_path: Path) -> None:
    result = invoke("replay", tmp_path)
    assert result.exit_code == 2 and "holds no dump" in result.stderr


def test_compressed_audio_is_read_through_ffmpeg(tmp_path: Path) -> None:
    import av

    wave = (np.sin(np.arange(48_000) * 2 * np.pi * 440 / 48_000) * 0.5).astype(np.float32)
    path = tmp_path / "tone.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate = 48_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    heard = read_recording(path)
    assert heard.rate == 48_000 and abs(heard.seconds - 1.0) < 0.1
    spectrum = np.abs(np.fft.rfft(heard.samples[4_800:43_200]))
    assert abs(int(spectrum.argmax()) * 48_000 / 38_400 - 440) < 2


def test_a_stereo_recording_becomes_the_mean_of_its_channels(tmp_path: Path) -> None:
    both = np.stack([np.full(50, 0.5), np.full(50, -0.25)], axis=1).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", both, 8_000, subtype="FLOAT")
    assert np.array_equal(read_recording(tmp_path / "x.wav").samples, np.full(50, 0.125))


def test_a_meter_is_empty_in_silence_and_full_at_full_scale() -> None:
    assert level(np.zeros(10, np.float32)) == level(np.zeros(0, np.float32)) == 0.0
    assert level(np.ones(10, np.float32)) == 1.0
    assert level(np.full(10, 10**-1.5, np.float32)) == pytest.approx(0.5)


def records(*slack: float, pieces: str = "") -> list[TickRecord]:
    """A tick for each slack; pieces, split at "|", are said 10 ms apart in the first."""
    events = tuple((10.0 * k, k, piece) for k, piece in enumerate(pieces.split("|")))
    return [
        TickRecord(k, 100 * k, 100 * k + 100, "", events if k == 0 else (), value, 5.0, 0, ())
        for k, value in enumerate(slack)
    ]


def test_pieces_join_to_words_at_the_time_of_their_first_piece() -> None:
    said = words(records(1.0, pieces="| he|llo|,| wor|ld"))
    assert [(word.ms, word.text) for word in said] == [(10.0, "hello,"), (40.0, "world")]


def test_a_skipped_grid_point_counts_as_a_miss() -> None:
    run = records(50.0, -1.0, 20.0)
    assert summarise(run)["misses"] == 1
    gap = [run[0], run[1], TickRecord(**{**vars(run[2]), "tick": 4})]
    assert (summarise(gap)["misses"], summarise(gap)["skipped_ticks"]) == (3, 2)


def test_packed_labels_never_overlap_and_use_the_first_free_row() -> None:
    rng = random.Random(1)
    spans = sorted((rng.uniform(0, 10), rng.uniform(0.1, 1)) for _ in range(200))
    placed = picture.pack(spans, rows=4, gap=0.05)
    assert None in placed and placed[0] == 0
    for row in range(4):
        here = [span for span, at in zip(spans, placed, strict=True) if at == row]
        assert all(a[0] + a[1] + 0.05 <= b[0] for a, b in pairwise(here))


def test_the_envelope_keeps_every_peak() -> None:
    samples = np.zeros(10_007, np.float32)
    samples[[3, 5_000, 10_006]] = 0.9, -0.8, 0.7
    low, high = picture.envelope(samples, 100)
    assert len(low) == 100 and high[0] == np.float32(0.9) and high[-1] == np.float32(0.7)
    assert low.min() == np.float32(-0.8)


def test_the_view_is_a_few_plain_lines_without_a_terminal_and_a_panel_on_one() -> None:
    console = Console(record=True, width=80, force_terminal=False)
    view = PlainView(console)
    status = Status("clip", 100, untrained=True, total_ms=20_000.0)
    for k in range(200):
        status.at_ms = 100.0 * k
        view.show(status)
    assert len(console.export_text().splitlines()) == 5
    wide = Console(record=True, width=100)
    status.text, status.slack_ms, status.misses = " hello there", -12.5, 3
    wide.print(panel(status))
    shown = wide.export_text()
    assert all(text in shown for text in ("untrained", "hello there", "-12.5 ms", "3 misses"))


def test_the_panel_is_not_redrawn_more_often_than_a_person_can_see() -> None:
    drawn: list[object] = []
    view = PanelView(SimpleNamespace(update=lambda shown, refresh: drawn.append(shown)))  # type: ignore[arg-type]
    for _ in range(50):
        view.show(Status("x", 100, untrained=False))
    assert len(drawn) == 1


def test_a_ring_is_first_in_first_out_under_any_cut_and_drops_only_what_does_not_fit() -> None:
    rng = random.Random(0)
    ring, source, given, taken = Ring(37), np.arange(4_000, dtype=np.float32), 0, []
    kept: list[float] = []
    while given < len(source):
        piece = source[given : given + rng.randrange(30)]
        dropped = ring.write(piece)
        kept += piece[: len(piece) - dropped].tolist()
        assert dropped == max(0, len(kept) + dropped - len(taken) - 37)
        given += len(piece)
        taken += ring.read(rng.randrange(30)).tolist()
    taken += ring.read(100).tolist()
    assert taken == kept and len(kept) < len(source) and len(ring) == 0


def test_the_device_gets_silence_until_a_tick_is_ahead_and_counts_running_dry() -> None:
    duplex = talk.Duplex(Ring(100), Ring(100), lead=20)
    out = np.full((10, 1), np.nan, np.float32)

    def call(sample: float = 0.0) -> list[float]:
        duplex.callback(np.full((10, 1), sample, np.float32), out, 10, None, None)
        return out[:, 0].tolist()

    duplex.said.write(np.ones(15, np.float32))
    assert call() == [0.0] * 10 and duplex.underruns == 0
    duplex.said.write(np.ones(10, np.float32))
    assert call() == call() == [1.0] * 10
    assert call() == [1.0] * 5 + [0.0] * 5 and duplex.underruns == 1
    duplex.said.write(np.ones(15, np.float32))
    assert call() == [0.0] * 10 and duplex.underruns == 1
    for _ in range(10):
        call(0.5)
    assert duplex.lost_samples == 50 and np.array_equal(duplex.heard.read(99)[-5:], [0.5] * 5)


class FakeDevice:
    """A sound card: a thread that calls back every 10 ms, hears a tone and keeps what it plays."""

    def __init__(self) -> None:
        self.played: list[Any] = []
        self._stop = threading.Event()

    def open(self, rate: int, callback: Callable[..., None]) -> FakeDevice:
        self._rate, self._callback = rate, callback
        return self

    def _run(self) -> None:
        frames, due = self._rate // 100, time.monotonic()
        while not self._stop.is_set():
            heard = np.full((frames, 1), 0.25, np.float32)
            out = np.full((frames, 1), np.nan, np.float32)
            self._callback(heard, out, frames, None, None)
            self.played.append(out[:, 0])
            due += 0.01
            time.sleep(max(0.0, due - time.monotonic()))

    def __enter__(self) -> FakeDevice:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.realtime
def test_talk_carries_the_microphone_in_and_the_reply_out_in_order(
    make_runtime: Callable[..., Any], make_family: Any
) -> None:
    family, device = make_family(), FakeDevice()
    runtime = make_runtime(family, RealClock(), start=False)
    family.fed.clear()  # of what warming up fed it
    session = runtime.open(seed=3)
    said: list[Any] = []

    class Watched:
        def show(self, status: Status) -> None:
            pass

    class Tapped:
        """The session, with what it said kept."""

        def __getattr__(self, name: str) -> Any:
            return getattr(session, name)

        def poll(self) -> Any:
            output = session.poll()
            if output is not None:
                said.append(output.audio)
            return output

    status = Status("fake", 100, untrained=True)
    runtime.start()
    end = time.monotonic() + 1.0
    duplex = talk.talk(
        Tapped(),  # type: ignore[arg-type]
        device,
        status,
        Watched(),
        rate=24_000,
        stop=lambda: time.monotonic() > end,
    )
    runtime.close()
    played = np.concatenate(device.played)
    voice = np.concatenate(said)
    sound = played[np.flatnonzero(played)[0] :][:4_800]
    first = int(np.flatnonzero(voice)[0])
    assert status.ticks >= 6 and duplex.lost_samples == 0
    assert np.array_equal(sound, voice[first : first + 4_800])
    heard = np.concatenate([lines[0].audio.numpy() for lines in family.fed])
    assert np.median(heard) == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        (ModuleNotFoundError("sounddevice"), "pip install 'microturn[talk]'"),
        (OSError("PortAudio library not found"), "apt install libportaudio2"),
    ],
)
def test_talk_without_its_libraries_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, missing: Exception, says: str
) -> None:
    def fail(name: str) -> None:
        raise missing

    monkeypatch.setattr(talk, "importlib", SimpleNamespace(import_module=fail))
    result = invoke("talk")
    assert result.exit_code == 2 and says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_talk_help_advises_headphones_and_says_why() -> None:
    text = " ".join(invoke("talk", "--help").output.split())
    assert "headphones" in text and "its own voice" in text


def test_models_counts_every_preset() -> None:
    from microturn.model.interaction import PRESETS, num_parameters

    table = invoke("models").output
    rows = json.loads(invoke("models", "--json").output)
    assert [row["name"] for row in rows] == list(PRESETS)
    assert all(name in table for name in PRESETS) and "untrained" in table
    assert rows[0]["parameters"] == num_parameters(PRESETS["interaction-tiny"]())


def test_doctor_looks_at_everything_and_a_broken_part_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = invoke("doctor", "--json")
    found = {check["name"]: check for check in json.loads(result.output)["checks"]}
    assert set(found) >= {"python", "torch", "cores", "gpu", "memory", "audio", "timing", "tick"}
    assert found["tick"]["state"] != "fail" and "of its 100 ms tick" in found["tick"]["says"]
    assert result.exit_code == int(any(c["state"] == "fail" for c in found.values()))

    def broken() -> doctor.Check:
        raise ImportError("libtorch_cpu.so is damaged")

    healthy = doctor.Check("x", "warn", "fine")
    for name in ("timing", "tick", "gpu", "sound"):
        monkeypatch.setattr(doctor, name, lambda: healthy)
    monkeypatch.setattr(doctor, "torch_build", broken)
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "fail" in result.output and "libtorch_cpu.so is damaged" in result.output
    assert "cannot run here" in result.output


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("NVIDIA H200", "NVIDIA_H200"),
        ("AMD EPYC 2 cores", "AMD_EPYC_2_cores"),
        ("Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz 14 cores", "Intel_Xeon_E5-2690_v4_14_cores"),
    ],
)
def test_a_device_name_becomes_a_folder_name(name: str, folder: str) -> None:
    assert machine.slug(name) == folder


def test_lateness_of_a_clock_is_never_negative() -> None:
    late = doctor.wake_lateness_ms(period_s=0.002, ticks=5)
    assert len(late) == 5 and min(late) >= 0
