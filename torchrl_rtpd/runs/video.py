"""Videos as files that are small enough to be shown: GIF by Pillow, MP4 by PyAV.

``T`` frames, uint8 ``[H, W, 3]`` each.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Video", "write_video"]

_HOLD_MS = 1_500  # of a GIF's last frame, so that it is read before the first one comes again
_COLOURS = 256  # of a GIF
_SAMPLE = 16  # frames from which a GIF's colours are taken where they are more


class Video(NamedTuple):
    """A video that was written.

    Attributes:
        path: of the file.
        num_bytes: size of the file.
        num_frames: frames in it.
        seconds: that it lasts.
        whole: False where it had to be cut to be small enough.
    """

    path: Path
    num_bytes: int
    num_frames: int
    seconds: float
    whole: bool


def write_video(
    frames: Sequence[np.ndarray],
    path: str | os.PathLike,
    *,
    frames_per_second: float,
    max_bytes: int = 2_000_000,
) -> Video:
    """Write frames as a video that is at most so large, by measuring: the first of these that fits is kept.

    ======  ===========================================================================================
    Suffix  Tried in turn
    ======  ===========================================================================================
    .gif    all frames; every second one, at the same speed; these at half the size; every third; the
            beginning of these
    .mp4    H.264 of high quality; of two lower ones; the beginning at the last one
    ======  ===========================================================================================

    Colours of a GIF are exact up to 256 of them. The file appears at once and whole; an earlier one is replaced.

    Args:
        frames: ``T`` arrays uint8 ``[H, W, 3]`` of one shape, such as :class:`~torchrl_rtpd.runs.SideBySide`; looked
            at more than once.
        path: file to write; its folder is made.
        frames_per_second: speed at which they are shown.
        max_bytes: bound on the size of the file. Default: 2 MB, what a page should load at most for one picture.

    Raises:
        ValueError: no frame, frames of another form, another suffix, or a bound that not even one frame fits in.
        ImportError: the library that writes this format is not installed.

    Examples:
        >>> import tempfile
        >>> grey = [np.full((20, 30, 3), 25 * shade, np.uint8) for shade in range(10)]
        >>> video = write_video(grey, tempfile.mkdtemp() + "/grey.gif", frames_per_second=10)
        >>> video.path.name, video.num_frames, video.whole
        ('grey.gif', 10, True)
    """
    path = Path(path)
    write, levels = _writer(path)
    if not 0 < frames_per_second < math.inf:
        raise ValueError(f"frames_per_second must be above 0: got {frames_per_second}.")
    _check(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        shown, count = _written(write, levels, frames, partial, frames_per_second, max_bytes)
        num_bytes = partial.stat().st_size
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return Video(path, num_bytes, shown, count / frames_per_second, count == len(frames))


_Write = Callable[[Sequence[np.ndarray], int, float, Any, Path], int]


def _writer(path: Path) -> tuple[_Write, Sequence[Any]]:
    """What writes a file of this name, and the levels of quality that it is tried with."""
    if path.suffix == ".gif":
        try:
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise ImportError("a GIF is written by Pillow: pip install 'torchrl_rtpd[video]'.") from error
        return _gif, ((1, 1), (2, 1), (2, 2), (3, 2))  # one of so many frames, pixels of a side that become one
    if path.suffix == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise ImportError("an MP4 is written by PyAV: pip install 'torchrl_rtpd[video]'.") from error
        return _mp4, ("18", "26", "34")  # x264's constant rate factor
    raise ValueError(f"a video is written as .gif or .mp4: got {path.name}; name it so.")


def _check(frames: Sequence[np.ndarray]) -> None:
    if not len(frames):
        raise ValueError("a video has frames: got none.")
    first = frames[0]
    for frame in (first, frames[len(frames) - 1]):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3 or frame.shape != first.shape:
            raise ValueError(
                f"frames are uint8 [H, W, 3] of one shape: got {frame.dtype} {list(frame.shape)} beside "
                f"{list(first.shape)}; draw them in red, green and blue."
            )


def _written(
    write: _Write, levels: Sequence[Any], frames: Sequence[np.ndarray], path: Path, rate: float, max_bytes: int
) -> tuple[int, int]:
    """Write the first that is small enough; returns frames in the file, and the number of given ones it covers."""
    count = len(frames)
    for level in levels:
        shown = write(frames, count, rate, level, path)
        if path.stat().st_size <= max_bytes:
            return shown, count
    while (size := path.stat().st_size) > max_bytes:
        if count == 1:
            raise ValueError(f"max_bytes must hold at least one frame: got {max_bytes}, and one takes {size}.")
        count = max(1, min(count - 1, int(0.9 * count * max_bytes / size)))
        shown = write(frames, count, rate, levels[-1], path)
    return shown, count


def _gif(frames: Sequence[np.ndarray], count: int, rate: float, level: tuple[int, int], path: Path) -> int:
    every, side = level
    numbers = range(0, count, every)
    images = _indexed(lambda: (frames[number][::side, ::side] for number in numbers), len(numbers))
    # A GIF counts hundredths of a second: each frame ends at the one nearest to its time, so that none drifts.
    ends = [round(100 * min(number + every, count) / rate) for number in numbers]
    waits = [10 * max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
    waits[-1] += _HOLD_MS
    images[0].save(path, save_all=True, append_images=images[1:], duration=waits, loop=0, optimize=True)
    return len(numbers)


def _indexed(make_frames: Callable[[], Iterable[np.ndarray]], count: int) -> list[Any]:
    """Images of one palette: the frames' own colours where these are few enough."""
    from PIL import Image

    colours = np.zeros(0, np.uint32)
    for frame in make_frames():
        colours = np.union1d(colours, _packed(frame))
        if len(colours) > _COLOURS:
            sample = list(islice(make_frames(), 0, None, math.ceil(count / _SAMPLE)))
            palette, plain = Image.fromarray(np.concatenate(sample)).quantize(_COLOURS), Image.Dither.NONE
            return [Image.fromarray(frame).quantize(palette=palette, dither=plain) for frame in make_frames()]
    table = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], -1).astype(np.uint8).tobytes()
    images = []
    for frame in make_frames():
        image = Image.fromarray(np.searchsorted(colours, _packed(frame)).astype(np.uint8))
        image.putpalette(table)
        images.append(image)
    return images


def _packed(frame: np.ndarray) -> np.ndarray:
    """Colours as one number each ``[H, W]``."""
    red, green, blue = np.moveaxis(frame.astype(np.uint32), -1, 0)
    return red << 16 | green << 8 | blue


def _mp4(frames: Sequence[np.ndarray], count: int, rate: float, level: str, path: Path) -> int:
    import av

    height, width = frames[0].shape[:2]
    odd = ((0, height % 2), (0, width % 2), (0, 0))  # players show no odd sizes
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("libx264", rate=Fraction(rate).limit_denominator(1_000), options={"crf": level})
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        for number in range(count):
            picture = np.ascontiguousarray(np.pad(frames[number], odd, "edge"))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return count
