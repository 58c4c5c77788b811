"""Videos are as small as asked, last as long as the game, and show its colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchrl_rtpd.runs import write_video


def moving(count: int, size: int = 64) -> list[np.ndarray]:
    """A white square that moves over stripes, which no frame has in the same place."""
    frames = []
    for number in range(count):
        frame = np.zeros((size, size, 3), np.uint8)
        frame[:, :, 2] = 8 * (np.arange(size) % 8)
        frame[number % size : number % size + 8, (7 * number) % (size - 8) : (7 * number) % (size - 8) + 8] = 255
        frames.append(frame)
    return frames


def noise(count: int, size: int = 64) -> list[np.ndarray]:
    """Frames that no format makes small."""
    return list(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def read(path: Path) -> tuple[list[np.ndarray], list[int]]:
    """Frames of a GIF and how long each is shown, in milliseconds."""
    frames, waits = [], []
    with Image.open(path) as file:
        for number in range(file.n_frames):
            file.seek(number)
            frames.append(np.asarray(file.convert("RGB")))
            waits.append(int(file.info["duration"]))
    return frames, waits


def test_a_gif_has_the_colours_of_its_frames_to_the_last_pixel(tmp_path: Path) -> None:
    given = moving(20)
    video = write_video(given, tmp_path / "game.gif", frames_per_second=15)
    found, _ = read(video.path)
    assert len(found) == video.num_frames == 20 and video.whole
    assert all(np.array_equal(one, other) for one, other in zip(given, found, strict=True))
    assert video.num_bytes == video.path.stat().st_size


def test_a_gif_runs_at_the_games_speed_and_stops_at_its_end(tmp_path: Path) -> None:
    """15 frames a second are 66.7 ms each, in whole hundredths: 70, 60, 70; the last one stays 1.5 s longer."""
    video = write_video(moving(45), tmp_path / "game.gif", frames_per_second=15)
    _, waits = read(video.path)
    assert waits[:3] == [70, 60, 70] and sum(waits) == 3_000 + 1_500 and video.seconds == 3.0


def test_more_colours_than_a_gif_has_are_brought_near(tmp_path: Path) -> None:
    """A ramp of 4,096 colours: none is further away than one of 256 need be."""
    shade = np.arange(64, dtype=np.uint8) * 4
    frame = np.stack([*np.meshgrid(shade, shade), np.zeros((64, 64), np.uint8)], -1)
    video = write_video([frame, frame[::-1]], tmp_path / "ramp.gif", frames_per_second=5)
    found, _ = read(video.path)
    assert np.abs(found[0].astype(int) - frame).max() <= 24 and np.abs(found[1].astype(int) - frame[::-1]).max() <= 24


@pytest.mark.parametrize(
    ("max_bytes", "frames", "side"), [(10**6, 60, 64), (300_000, 30, 64), (80_000, 30, 32), (60_000, 20, 32)]
)
def test_a_gif_that_is_too_large_loses_frames_and_then_size(
    tmp_path: Path, max_bytes: int, frames: int, side: int
) -> None:
    """It still lasts 6 s in all, at the game's speed."""
    video = write_video(noise(60), tmp_path / "noise.gif", frames_per_second=10, max_bytes=max_bytes)
    found, waits = read(video.path)
    assert video.num_bytes <= max_bytes and video.whole
    assert len(found) == frames and found[0].shape == (side, side, 3)
    assert sum(waits) == 6_000 + 1_500


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_what_is_still_too_large_is_cut_and_says_so(tmp_path: Path, suffix: str) -> None:
    if suffix == "mp4":
        pytest.importorskip("av", reason="needs the video extra")
    video = write_video(noise(60), tmp_path / f"noise.{suffix}", frames_per_second=10, max_bytes=20_000)
    assert video.path.stat().st_size == video.num_bytes <= 20_000
    assert not video.whole and 0 < video.seconds < 6


def test_an_mp4_is_one_that_browsers_play(tmp_path: Path) -> None:
    """H.264 in halved colours, even sides, its index first; as many frames and as long as the game."""
    av = pytest.importorskip("av", reason="needs the video extra")
    video = write_video(moving(30, size=65), tmp_path / "game.mp4", frames_per_second=15)
    with av.open(str(video.path)) as file:
        stream = file.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == 15 and float(stream.duration * stream.time_base) == 2.0
    assert len(frames) == video.num_frames == 30 and frames[0].shape == (66, 66, 3)
    assert np.abs(frames[9][:65, :65].astype(int) - moving(30, size=65)[9]).mean() < 10
    content = video.path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """One that fails leaves the earlier file as it was, and nothing beside it."""
    path = tmp_path / "new" / "game.gif"
    write_video(moving(3), path, frames_per_second=15)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"max_bytes must hold at least one frame: got 100, and one takes \d+"):
        write_video(moving(3), path, frames_per_second=15, max_bytes=100)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        ([], {}, "a video has frames: got none"),
        ([np.zeros((2, 2, 3))], {}, r"frames are uint8 \[H, W, 3\] of one shape: got float64 \[2, 2, 3\]"),
        ([np.zeros((2, 2), np.uint8)], {}, r"got uint8 \[2, 2\]"),
        (
            [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)],
            {},
            r"got uint8 \[2, 3, 3\] beside \[2, 2, 3\]",
        ),
        (moving(1), {"frames_per_second": 0}, "frames_per_second must be above 0: got 0"),
    ],
)
def test_frames_of_another_form_are_refused(
    tmp_path: Path, frames: list[np.ndarray], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(frames, tmp_path / "game.gif", **{"frames_per_second": 15, **options})


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a video is written as \.gif or \.mp4: got game\.avi"):
        write_video(moving(1), tmp_path / "game.avi", frames_per_second=15)


@pytest.mark.parametrize(("suffix", "library"), [("gif", "PIL"), ("mp4", "av")])
def test_a_missing_library_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, library: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(ImportError, match=r"pip install 'torchrl_rtpd\[video\]'"):
        write_video(moving(1), tmp_path / f"game.{suffix}", frames_per_second=15)
