"""The ring of frames alone: whatever is written is read again, as long as its place was not taken."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_parts import NumpyGames, situations

from torchrl_rtpd.replay import n_step, ring
from torchrl_rtpd.replay.ring import FrameRing, channels_last


def ring_of(games: NumpyGames, blocks: int, steps: int, **options: object) -> FrameRing:
    return FrameRing(games.num_envs * steps * blocks, num_envs=games.num_envs, frame_stack=games.frame_stack, **options)


def write(ring: FrameRing, games: NumpyGames, steps: int, *, single: bool = False) -> None:
    pixels, next_pixels, ended = games.play(steps)
    if single:
        pixels, next_pixels = pixels[:, :, -1:], next_pixels[:, :, -1:]
    ring.check(pixels, next_pixels, ended)
    ring.write(pixels, next_pixels, ended)


def assert_holds(ring: FrameRing, games: NumpyGames) -> None:
    """Every transition that was not overwritten, by its number."""
    numbers = np.arange(max(0, ring.num_written - ring.capacity), ring.num_written)
    before, after = games.shown(numbers)
    index = torch.from_numpy(numbers)
    both = ring.both_stacks(index)
    np.testing.assert_array_equal(ring.stacks(index).numpy(), before)
    np.testing.assert_array_equal(ring.next_stacks(index).numpy(), after)
    np.testing.assert_array_equal(both[0].numpy(), before)
    np.testing.assert_array_equal(both[1].numpy(), after)


@settings(max_examples=100, deadline=None)
@given(situations(), st.integers(0, 5))
def test_stacks_are_those_that_were_shown(sizes: dict, saved_after: int) -> None:
    """Over seams, ends, cuts, colours and single frames, and in a copy that was restored on the way."""
    games = NumpyGames(**sizes["games"])
    first = ring_of(games, sizes["blocks"], sizes["steps"])
    for number in range(sizes["writes"]):
        if number in sizes["cuts"] and first.num_written:
            first.cut()
            games.restart()
        write(first, games, sizes["steps"], single=sizes["single"])
        if number == saved_after:
            copy = ring_of(games, sizes["blocks"], sizes["steps"])
            copy.load_state(first.state())
            first = copy
        assert_holds(first, games)


def test_a_frame_is_held_once() -> None:
    """20 transitions of two slots: 20 frames, 3 older and 1 newer for each slot, and the zeros; 6 bytes each."""
    games = NumpyGames(2, 4, (2, 3), end=0.0)
    frames = ring_of(games, 10, 1)
    write(frames, games, 1)
    assert frames.num_bytes == (20 + 2 * 4 + 1) * 6 + 20 * (4 + 1)
    assert frames.frame_shape == (2, 3)


def test_literal_stacks_over_the_end_of_a_game() -> None:
    """Frames 1, 2 of one game, then 3, 4 of the next: zeros stand before the first, and 2 is not lost."""
    frames = FrameRing(4, num_envs=1, frame_stack=2)
    pixels = torch.tensor([[0, 1], [0, 3]], dtype=torch.uint8).view(2, 1, 2, 1, 1)
    next_pixels = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).view(2, 1, 2, 1, 1)
    ended = torch.tensor([[True], [False]])
    frames.check(pixels, next_pixels, ended)
    frames.write(pixels, next_pixels, ended)
    assert frames.stacks(torch.tensor([0, 1])).flatten(1).tolist() == [[0, 1], [0, 3]]
    assert frames.next_stacks(torch.tensor([0, 1])).flatten(1).tolist() == [[1, 2], [3, 4]]
    frames.empty()
    assert (frames.num_written, frames.frame_shape, frames.single) == (0, None, False)


@pytest.mark.parametrize("frame_stack", [1, 3, 4])
def test_stacks_lie_in_channels_last_memory(frame_stack: int) -> None:
    stacks = torch.randint(256, (5, frame_stack, 3, 2), dtype=torch.uint8)
    found = channels_last(stacks)
    assert torch.equal(found, stacks)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_colours_of_a_stack_lie_side_by_side() -> None:
    stacks = torch.arange(2 * 2 * 3 * 4, dtype=torch.uint8).view(2, 2, 3, 2, 2)
    assert torch.equal(channels_last(stacks), stacks.view(2, 6, 2, 2))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("_depth", torch.zeros(3, dtype=torch.uint8), r"has _depth torch\.uint8 \[8\]: got torch\.uint8 \[3\]"),
        ("_final_index", torch.zeros(8), r"has _final_index torch\.int32 \[8\]: got torch\.float32 \[8\]"),
        (
            "_frames",
            torch.zeros(4, 2, 3, dtype=torch.uint8),
            r"has _frames .* \[17, 2, 3\]: got .* \[4, 2, 3\]",
        ),
        (
            "_finals",
            torch.zeros(1, 2, 2, dtype=torch.uint8),
            r"has _finals .* \[1, 2, 3\]: got .* \[1, 2, 2\]",
        ),
        ("_final_index", torch.full((8,), 5, dtype=torch.int32), r"knows 0 final frames: got one numbered 5; the file"),
    ],
)
def test_a_state_that_is_damaged_is_refused_and_changes_nothing(name: str, value: torch.Tensor, text: str) -> None:
    games = NumpyGames(2, 4, (2, 3), end=0.0)
    frames, other = ring_of(games, 4, 1), ring_of(games, 4, 1)
    write(frames, games, 1)
    with pytest.raises(ValueError, match=text):
        other.load_state({**frames.state(), name: value})
    assert other.num_written == 0


@pytest.mark.parametrize("module", [ring, n_step])
def test_it_knows_no_torchrl(module: object) -> None:
    imported = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module if node.module.startswith("torchrl_rtpd") else node.module.partition(".")[0])
    assert "torch" in imported
    assert not imported & {"torchrl", "tensordict"}
    assert {name for name in imported if "rtpd" in name} <= {"torchrl_rtpd.replay.memory"}
