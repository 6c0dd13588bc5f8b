"""What a run or a talk is shown: frames by time, pictures, cameras, and their mistakes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from PIL import Image
from typer.testing import CliRunner, Result

from microturn.runtime import FastClock
from microturn.runtime.cli import camera, picture, talk
from microturn.runtime.cli.app import app
from microturn.runtime.cli.audio import Recording
from microturn.runtime.cli.camera import Camera, v4l2
from microturn.runtime.cli.converse import Player, play_fast, script
from microturn.runtime.cli.errors import UsageError
from microturn.runtime.cli.video import FRAME_PATCHES, TimedFrame, Video, at_most, read_video
from microturn.runtime.image_input import num_patches, to_patches

pytestmark = pytest.mark.usefixtures("untrained")

FPS, SECONDS = 15, 1.2


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """640 x 480 pixels at 15 frames a second; frame k is grey, 10 * k bright."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for k in range(round(SECONDS * FPS)):
            grey = np.full((480, 640, 3), 10 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def reply(clip: Path) -> SimpleNamespace:
    """One fast run of the real tiny model that sees the clip and hears nothing."""
    folder = clip.parent
    result = invoke(
        *("run", "--video", clip, "--fps", 5, "--out", folder / "reply.wav", "--fast"),
        *("--tail-ms", 0, "--dump", folder / "dump"),
    )
    assert result.exit_code == 0, result.output
    return SimpleNamespace(folder=folder, wav=folder / "reply.wav", output=result.output)


def test_a_video_is_thinned_to_the_asked_pace_at_its_own_times_and_made_small(clip: Path) -> None:
    video = read_video(clip, 5)
    assert video.seconds == pytest.approx(SECONDS, abs=0.01)
    assert [frame.at_ms for frame in video.frames] == pytest.approx([200 * k for k in range(6)])
    for k, frame in enumerate(video.frames):
        assert frame.pixels.shape == (149, 199, 3)
        assert abs(float(frame.pixels.mean()) - 30 * k) < 6
    assert len(read_video(clip, 1_000).frames) == round(SECONDS * FPS), "never more than there are"
    assert len(read_video(clip, 0.5).frames) == 1


def test_frames_are_the_first_of_their_span() -> None:
    times = [0.0, 0.1, 0.49, 0.5, 0.9, 2.2, 2.4, 2.5]
    kept = [seconds for seconds, _ in at_most(2.0, iter((t, None) for t in times))]
    assert kept == [0.0, 0.5, 2.2, 2.5]


def test_a_folder_is_its_pictures_by_name(tmp_path: Path) -> None:
    for name, size in (("b.png", (50, 30)), ("a.jpg", (1_000, 20)), ("c.PNG", (20, 1_500))):
        Image.new("RGB", size, (9, 9, 9)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    video = read_video(tmp_path, 4.0)
    assert [frame.at_ms for frame in video.frames] == [0.0, 250.0, 500.0]
    assert video.seconds == 0.75
    sizes = [frame.pixels.shape[:2] for frame in video.frames]
    assert sizes[1] == (30, 50), "never larger"
    assert all(num_patches(*size) <= FRAME_PATCHES for size in sizes)
    assert sizes[0][1] > 10 * sizes[0][0] and sizes[2][0] > 10 * sizes[2][1]


def test_every_frame_reaches_the_tick_of_its_time_beside_the_one_before(
    make_runtime: Callable[..., Any], make_family: Any
) -> None:
    family = make_family(sees=True)
    runtime = make_runtime(family, FastClock(), start=False)
    session = runtime.open(instructions="word " * 40)
    shown = [(0.0, 1), (230.0, 2), (250.0, 3), (299.9, 4), (300.0, 5)]
    frames = [TimedFrame(at, np.full((30, 70, 3), value, np.uint8)) for at, value in shown]
    heard = Recording(np.zeros(1_600, np.float32), 16_000)
    play = script(heard, (), rate=16_000, tick_ms=100, tail_ms=100, video=Video(tuple(frames), 0.4))
    assert play.num_ticks == 5
    outputs: list[Any] = []
    play_fast(runtime, [Player(session, play, outputs.append)])
    live = [lines[0] for lines in family.fed if len(lines[0].audio)][-5:]
    seen = [None if line.patches is None else line.patches.numpy() for line in live]
    assert [None if p is None else (len(p), p[0, 0].max(), p[0, 1].max()) for p in seen] == [
        (2, 1, 1),
        None,
        (2, 3, 4),
        (2, 4, 5),
        None,
    ]
    assert session.stats.replaced_images == 2
    third = to_patches(frames[3].pixels, 100, frames[2].pixels)
    assert seen[2] is not None and np.array_equal(seen[2], third)


def test_the_json_says_what_was_seen(reply: SimpleNamespace) -> None:
    document = json.loads(reply.wav.with_suffix(".json").read_text())
    summary, seen = document["summary"], document["seen"]
    assert len(document["ticks"]) == summary["ticks"] == 12
    assert (summary["video"], summary["fps"], summary["input"]) == ("clip.mp4", 5.0, "clip.mp4")
    assert (summary["frames"], summary["frames_replaced"], summary["frame_rows_max"]) == (6, 0, 20)
    assert [frame["at_ms"] for frame in seen] == pytest.approx([200 * k for k in range(6)])
    assert all((f["width"], f["height"], f["rows"]) == (199, 149, 20) for f in seen)
    assert all(tick["pending"] == 0 for tick in document["ticks"])
    assert "6 frames" in reply.output


def test_the_picture_shows_the_frames_on_the_axis_of_time(reply: SimpleNamespace) -> None:
    with Image.open(reply.wav.with_suffix(".png")) as image:
        assert image.size == (2080, 1200)
        pixels = np.asarray(image.convert("RGB"))
    for color in (picture.SEEN, picture.SAID):
        assert (pixels == tuple(bytes.fromhex(color[1:]))).all(-1).any(), color
    strip = pixels[200, 160:2020].astype(int)
    plain = (strip.max(-1) - strip.min(-1)) < 12
    levels = [int(np.median(strip[a:b])) for a, b in ((5, 15), (660, 670), (1_280, 1_290))]
    assert plain.all() and levels[0] < 20 < levels[1] < levels[2] < 160


def test_what_is_seen_is_dumped_and_changes_the_reply(
    reply: SimpleNamespace, tmp_path: Path
) -> None:
    result = invoke("replay", reply.folder / "dump")
    assert result.exit_code == 0 and "12 ticks, bit-identical" in result.output
    soundfile.write(tmp_path / "silence.wav", np.zeros(19_200, np.float32), 16_000)
    arguments = ("run", tmp_path / "silence.wav", "--out", tmp_path / "r.wav", "--fast")
    assert invoke(*arguments, "--tail-ms", 0).exit_code == 0
    blind, seeing = soundfile.read(tmp_path / "r.wav")[0], soundfile.read(reply.wav)[0]
    assert len(blind) == len(seeing) and not np.array_equal(blind, seeing)
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["seen"] == [] and "video" not in document["summary"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give a recording to hear, --video to see, or both"),
        (("--video", "no.mp4"), "no.mp4: no such file"),
        (("--video", "text.mp4"), "text.mp4 is not video"),
        (("--video", "sound.wav"), "sound.wav has no video track"),
        (("--video", "empty"), "empty holds no pictures"),
        (("--video", "broken"), "a.png cannot be decoded"),
        (("--video", "broken", "--fps", "0"), "--fps must be above 0, got 0"),
        (("--video", "broken", "--fps", "nan"), "--fps must be above 0, got nan"),
    ],
    ids=str,
)
def test_a_mistake_ends_in_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.mp4").write_text("no video")
    soundfile.write("sound.wav", np.zeros(1_600, np.float32), 16_000)
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    result = invoke("run", "--out", "r.wav", "--fast", *arguments)
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0]


def moving(seconds: float) -> Callable[[], Any]:
    """A source of moving pictures, 40 frames a second, as fast as they are read."""
    return lambda: av.open(f"testsrc=size=320x240:rate=40:duration={seconds}", format="lavfi")


def wait(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 5.0
    while not what() and time.monotonic() < end:
        time.sleep(0.002)
    assert what()


def test_a_camera_hands_over_small_frames_at_the_asked_pace() -> None:
    seen: list[Any] = []
    watching = Camera(moving(2.0), 4.0, seen.append)
    with watching:
        wait(lambda: not watching._thread.is_alive())
    assert watching.failure is None and watching.frames == len(seen) == 8
    assert all(frame.shape == (149, 199, 3) for frame in seen)
    assert len({frame.tobytes() for frame in seen}) == 8


def test_a_camera_stops_when_left_and_one_that_fails_harms_nobody() -> None:
    endless = Camera(moving(1e6), 40.0, lambda frame: None)
    with endless:
        wait(lambda: endless.frames > 2)
    assert not endless._thread.is_alive() and endless.failure is None

    def refuse(frame: Any) -> None:
        raise UsageError("the session has ended")

    failing = Camera(moving(1.0), 4.0, refuse)
    with failing:
        wait(lambda: failing.failure is not None)
    assert str(failing.failure) == "the session has ended" and failing.frames == 0


def test_a_missing_or_unreadable_camera_is_named_with_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera, "DEVICES", tmp_path)
    with pytest.raises(
        UsageError, match=r"--camera 7: there is no .*video7; this machine has none"
    ):
        v4l2(7)()
    (tmp_path / "video0").write_bytes(b"no camera")
    with pytest.raises(UsageError, match=r"video7; there is 0$"):
        v4l2(7)()
    with pytest.raises(UsageError, match=r"video0 cannot be opened: "):
        v4l2(0)()


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A sound card that never calls."""

    class Silent:
        def open(self, rate: int, callback: Callable[..., None]) -> Any:
            return self

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(talk, "SoundDevice", Silent)
    yield


@pytest.mark.usefixtures("quiet")
def test_talk_shows_the_model_what_the_camera_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "v4l2", lambda number: moving(1.0))
    result = invoke("talk", "--seconds", "0.6", "--camera", "0", "--fps", "3")
    assert result.exit_code == 0, result.output
    assert ", 3 frames" in result.output and "camera stopped" not in result.output


@pytest.mark.usefixtures("quiet")
def test_talk_without_that_camera_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "DEVICES", tmp_path)
    result = invoke("talk", "--camera", "3")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert "--camera 3: there is no" in result.stderr
