"""Frames show each game below its player's name, score and agreement."""

from __future__ import annotations

import numpy as np
import pytest

from torchrl_rtpd.evaluation import RecordedGame
from torchrl_rtpd.runs import SideBySide

HEADER = 60


def game(name: str, shades: list[int], *, over: bool = False, agrees: bool = False, size=(210, 160)) -> RecordedGame:
    pictures = tuple(np.full((*size, 3), shade, np.uint8) for shade in shades)
    shares = tuple(number / 10 for number in range(len(shades))) if agrees else None
    scores = tuple(100.0 * number for number in range(len(shades)))
    return RecordedGame(name, 15.0, pictures, scores, shares, over, scores[-1])


def letters(frame: np.ndarray, left: int, right: int, top: int = 0, bottom: int = HEADER) -> int:
    """Pixels in a part of the header that are not its background."""
    return int((frame[top:bottom, left:right] != 24).any(-1).sum())


def test_games_stand_beside_each_other_at_twice_their_size() -> None:
    """Two of 160 pixels become 320 each, with 8 between them, below a header of 60."""
    frames = SideBySide([game("teacher", [50, 60]), game("net17", [70, 80], agrees=True)])
    assert frames[0].shape == (60 + 420, 320 + 8 + 320, 3) and frames[0].dtype == np.uint8
    assert (frames[1][60:, :320] == 60).all() and (frames[1][60:, 328:] == 80).all()
    assert len(frames) == 2 and frames.frames_per_second == 15.0
    assert all(np.array_equal(one, other) for one, other in zip(frames, frames[:], strict=True))


def test_pixels_stay_squares() -> None:
    """A picture of 2 pixels is 320 wide: the first 160 columns are its first pixel."""
    picture = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)
    (frame,) = SideBySide([RecordedGame("net", 15.0, (picture,), (0.0,), None, False, 0.0)])
    assert (frame[60:, :160] == [10, 20, 30]).all() and (frame[60:, 160:] == [40, 50, 60]).all()


def test_a_game_that_is_over_waits_for_the_others_and_says_so() -> None:
    frames = SideBySide([game("teacher", [50], over=True), game("net17", [70, 80, 90])])
    assert len(frames) == 3 and (frames[2][60:, :320] == 50).all() and (frames[2][60:, 328:] == 90).all()
    assert letters(frames[2], 200, 320, bottom=30) > 100  # "game over"
    assert letters(SideBySide([game("teacher", [50])])[0], 200, 320, bottom=30) == 0


def test_a_long_name_leaves_room_for_what_stands_beside_it() -> None:
    (short,), (long,) = (SideBySide([game(name, [50], over=True)]) for name in ("net", "W" * 60))
    assert np.array_equal(short[:, 235:], long[:, 235:]) and letters(long, 8, 235, bottom=30) > letters(short, 8, 235)


def test_scores_that_are_no_numbers_are_shown() -> None:
    """A sum of rewards may be one."""
    games = [
        RecordedGame("net", 15.0, (np.zeros((2, 2, 3), np.uint8),), (score,), None, False, score)
        for score in (float("nan"), 1.25)
    ]
    (frame,) = SideBySide(games)
    assert letters(frame, 0, 320, 30) > 100 and letters(frame, 328, 648, 30) > 100


def test_scores_and_agreement_run_along_with_the_game() -> None:
    """Score in the second line to the left, agreement to the right, and a teacher has none."""
    teacher, student = game("teacher", [50, 60, 70]), game("net17", [50, 60, 70], agrees=True)
    first, second, _ = SideBySide([teacher, student])
    assert (first[30:60, :160] != second[30:60, :160]).any() and (first[30:60, 528:] != second[30:60, 528:]).any()
    assert letters(first, 200, 320, 30) == 0 and letters(first, 528, 648, 30) > 100


def test_teacher_and_students_have_colours_that_the_colour_blind_tell_apart() -> None:
    """Orange and sky blue of Okabe and Ito, and no other hue in the header."""
    (frame,) = SideBySide([game("teacher", [0]), game("net17", [0])])
    left, right = ({tuple(pixel) for pixel in part[:30].reshape(-1, 3)} for part in (frame[:, :320], frame[:, 328:]))
    assert (230, 159, 0) in left and (230, 159, 0) not in right
    assert (86, 180, 233) in right and (86, 180, 233) not in left


def test_a_header_has_few_colours() -> None:
    """A GIF has 256, and the game needs most of them: three texts in four shades, of which the background is one."""
    frame = SideBySide([game("teacher", [24], over=True), game("net17", [24], agrees=True)])[0]
    assert len({tuple(pixel) for pixel in frame.reshape(-1, 3)}) == 10


def test_pictures_of_several_sizes_stand_in_one_frame() -> None:
    """The wider one keeps its 400 pixels; below the lower one there is background."""
    frames = SideBySide([game("teacher", [50], size=(100, 400)), game("net17", [70], size=(210, 160))])
    assert frames[0].shape == (480, 400 + 8 + 320, 3) and (frames[0][160:, :400] == 24).all()


def test_nothing_to_see_is_refused() -> None:
    with pytest.raises(ValueError, match="there must be something to see: got 0 games, none of no picture"):
        SideBySide([])
    with pytest.raises(ValueError, match=r"got 1 games, \['net17'\] of no picture"):
        SideBySide([RecordedGame("net17", 15.0, (), (), None, True, 0.0)])
