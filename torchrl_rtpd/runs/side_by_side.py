"""Frames of a video: recorded games beside each other, each with name, score and agreement above it.

A frame is a uint8 array ``[H, W, 3]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

from torchrl_rtpd.evaluation.recording import RecordedGame

__all__ = ["SideBySide"]

_WIDTH = 320  # pixels of a game, or a little less: small pictures grow by whole numbers, which keeps edges sharp
_GAP, _MARGIN = 8, 8
_LINES = (6, 32)  # top of name and of score
_HEADER = 60
_SIZES = (22, 18)
_NAME_WIDTH = 205  # pixels; "game over" stands beside it
_BACKGROUND, _TEXT = (24, 24, 24), (240, 240, 240)
_TEACHER, _STUDENT = (230, 159, 0), (86, 180, 233)  # of Okabe and Ito, whom the colour-blind can tell apart
_SHADES = 4  # of a letter's edge: frames have few colours, as games have


class SideBySide(Sequence):
    """Frames of games that were recorded together, made when they are asked for.

    A game that is over before the others keeps its last picture, which says so. The first game is the teacher's, in
    another colour than its students'.

    Args:
        games: of :func:`~torchrl_rtpd.evaluation.record_games`.

    Attributes:
        frames_per_second: at the speed of a person.

    Raises:
        ValueError: no game, or one without a picture.
        ImportError: Pillow is not installed.

    Examples:
        >>> from torchrl_rtpd.evaluation import RecordedGame
        >>> black = np.zeros((210, 160, 3), np.uint8)
        >>> game = RecordedGame("teacher", 15.0, (black,), (0.0,), None, over=False, score=0.0)
        >>> frames = SideBySide([game])
        >>> len(frames), frames[0].shape, frames.frames_per_second
        (1, (480, 320, 3), 15.0)
    """

    def __init__(self, games: Sequence[RecordedGame]) -> None:
        empty = [game.name for game in games if not game.pictures]
        if not games or empty:
            raise ValueError(
                f"there must be something to see: got {len(games)} games, {empty or 'none'} of no picture."
            )
        self._games = tuple(games)
        self._fonts = _fonts()
        self.frames_per_second = games[0].pictures_per_second

    def __len__(self) -> int:
        return max(len(game.pictures) for game in self._games)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        """Return a frame, or a list of several."""
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        panels = [self._panel(game, number, first=game is self._games[0]) for game in self._games]
        height = max(panel.shape[0] for panel in panels)
        columns = [piece for panel in panels for piece in (_gap(height), _filled(panel, height))]
        return np.concatenate(columns[1:], axis=1)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[number] for number in range(len(self)))

    def _panel(self, game: RecordedGame, number: int, *, first: bool) -> np.ndarray:
        """One game at a time of the video."""
        last = len(game.pictures) - 1
        at = min(number, last)
        picture = game.pictures[at]
        times = max(1, _WIDTH // picture.shape[1])
        grown = picture.repeat(times, 0).repeat(times, 1)
        header = np.full((_HEADER, max(_WIDTH, grown.shape[1]), 3), _BACKGROUND, np.uint8)
        right = header.shape[1] - _MARGIN
        score = game.score if at == last else game.scores[at]
        self._write(header, _short(game.name, self._fonts[0]), (_MARGIN, _LINES[0]), 0, _TEACHER if first else _STUDENT)
        self._write(header, f"score {_number(score)}", (_MARGIN, _LINES[1]), 1, _TEXT)
        if game.over and at == last:
            self._write(header, "game over", (right, _LINES[0]), 1, _TEXT, anchor="ra")
        if game.agreements is not None:
            self._write(header, f"agrees {100 * game.agreements[at]:.0f} %", (right, _LINES[1]), 1, _TEXT, anchor="ra")
        return np.concatenate([header, _centred(grown, header.shape[1])])

    def _write(
        self,
        header: np.ndarray,
        text: str,
        where: tuple[int, int],
        font: int,
        colour: Sequence[int],
        anchor: str = "la",
    ) -> None:
        """Write into a header, with a few shades where a letter ends."""
        from PIL import Image, ImageDraw

        mask = Image.new("L", (header.shape[1], header.shape[0]))
        ImageDraw.Draw(mask).text(where, text, fill=255, font=self._fonts[font], anchor=anchor)
        share = (np.asarray(mask, np.float32) / 255 * (_SHADES - 1)).round()[..., None] / (_SHADES - 1)
        header[:] = (header * (1 - share) + np.asarray(colour, np.float32) * share).round().astype(np.uint8)


def _fonts() -> list[Any]:
    try:
        from PIL import ImageFont
    except ImportError as error:
        raise ImportError("a video is drawn by Pillow: pip install 'torchrl_rtpd[video]'.") from error
    return [ImageFont.load_default(size) for size in _SIZES]


def _short(name: str, font: Any) -> str:
    """As much of a name as leaves room beside it."""
    if font.getlength(name) <= _NAME_WIDTH:
        return name
    while name and font.getlength(f"{name}..") > _NAME_WIDTH:
        name = name[:-1]
    return f"{name}.."


def _number(score: float) -> str:
    return f"{score:,.0f}" if float(score).is_integer() else f"{score:,.1f}"


def _gap(height: int) -> np.ndarray:
    return np.full((height, _GAP, 3), _BACKGROUND, np.uint8)


def _filled(panel: np.ndarray, height: int) -> np.ndarray:
    """A panel as high as the others."""
    below = np.full((height - panel.shape[0], panel.shape[1], 3), _BACKGROUND, np.uint8)
    return np.concatenate([panel, below])


def _centred(picture: np.ndarray, width: int) -> np.ndarray:
    """A picture in the middle of a panel."""
    left = (width - picture.shape[1]) // 2
    sides = [
        np.full((picture.shape[0], size, 3), _BACKGROUND, np.uint8) for size in (left, width - picture.shape[1] - left)
    ]
    return np.concatenate([sides[0], picture, sides[1]], axis=1)
