"""Writes that could not be rebuilt are refused before anything is stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from replay_parts import Stream, assert_same, filled
from tensordict import TensorDict
from torchrl.envs import CatFrames

from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.replay.buffer import make_replay_buffer
from torchrl_rtpd.replay.storage import FrameStackStorage


def wrong_writes() -> dict[str, tuple]:
    """Name -> what is written instead of the third batch of two slots and three steps, and the error's text."""
    continuity = r"stacks must continue those of the step before.*slot {}, step {} of this write; flatten \[N, T\]"
    order = r"in order, 2 slots x 3 steps = 6 transitions at a time: got batch size {} at index {}; call buffer\.extend"
    shuffle = torch.tensor([0, 1, 2, 4, 3, 5])

    def without(*keys: object) -> object:
        return lambda batch: batch.exclude(*keys).reshape(-1)

    def changed(key: object, change: object) -> object:
        return lambda batch: batch.reshape(-1).clone().set(key, change(batch.reshape(-1)[key]))

    pixels, next_pixels = "pixels", ("next", "pixels")
    return {
        "steps before slots": (lambda batch: batch.transpose(0, 1).reshape(-1), continuity.format(1, 0)),
        "shuffled": (lambda batch: batch.reshape(-1)[shuffle], continuity.format(1, 0)),
        "slots swapped": (lambda batch: batch.flip(0).reshape(-1), continuity.format(0, 0)),
        "one frame changed": (
            changed(pixels, lambda p: p.clone().index_fill_(0, torch.tensor(4), 9)),
            continuity.format(1, 1),
        ),
        "stacks shifted": (changed(next_pixels, lambda p: p.roll(1, 1)), continuity.format(0, 0)),
        "end not told": (changed(("next", "done"), torch.zeros_like), continuity.format(0, 2)),
        "end made up": (changed(("next", "done"), torch.ones_like), continuity.format(0, 1)),
        "not flattened": (lambda batch: batch, order.format(r"\[2, 3\]", 0)),
        "too small": (lambda batch: batch[:, :2].reshape(-1), order.format(r"\[4\]", 0)),
        "too large": (lambda batch: torch.cat([batch, batch], 1).reshape(-1), order.format(r"\[12\]", 0)),
        "without pixels": (
            without(pixels),
            r"'pixels' must be torch\.uint8 \[6, 4, 2, 3\]: got None; store the frames",
        ),
        "without next pixels": (without(next_pixels), r"\('next', 'pixels'\) must be torch\.uint8 .*: got None"),
        "without done": (without(("next", "done")), r"\('next', 'done'\) must be torch\.bool \[6, 1\]: got None"),
        "done as a number": (
            changed(("next", "done"), torch.Tensor.float),
            r"got torch\.float32 \[6, 1\]; store it as",
        ),
        "float frames": (
            changed(pixels, torch.Tensor.float),
            r"'pixels' must .* got torch\.float32 \[6, 4, 2, 3\]; store",
        ),
        "three frames": (changed(pixels, lambda p: p[:, 1:]), r"'pixels' must .* got torch\.uint8 \[6, 3, 2, 3\]"),
        "larger frames": (changed(next_pixels, lambda p: p.repeat(1, 1, 2, 1)), r"got torch\.uint8 \[6, 4, 4, 3\]"),
        "single frames": (
            changed(pixels, lambda p: p[:, -1]),
            r"got torch\.uint8 \[6, 2, 3\]; store the frames .* stacked",
        ),
        "without an entry": (
            without("action"),
            "entries of the first one: got more, fewer or others at action; give all",
        ),
        "with a new entry": (
            lambda batch: batch.reshape(-1).set("new", torch.zeros(6)),
            "fewer or others at new; give",
        ),
        "another type": (changed("action", torch.Tensor.float), "got more, fewer or others at action; give all"),
        "another shape": (
            changed(("next", "reward"), lambda r: r.expand(6, 2)),
            r"others at \('next', 'reward'\); give",
        ),
    }


@pytest.mark.parametrize("prioritized", [False, True], ids=["uniform", "prioritized"])
@pytest.mark.parametrize("name", wrong_writes())
def test_a_wrong_write_is_an_error_and_leaves_what_is_stored(name: str, prioritized: bool) -> None:
    """The storage is full, so the write would replace its oldest part; it can still be read, sampled and written."""
    write, text = wrong_writes()[name]
    stream = Stream(2, ends=[(3, 0), (7, 0), (7, 1)])
    storage = FrameStackStorage(12, num_envs=2, steps_per_write=3)
    buffer = make_replay_buffer(storage, batch_size=4, prioritized=prioritized)
    for _ in range(2):
        buffer.extend(stream.play(3).reshape(-1))
    before, length, size = buffer[:], len(buffer), storage.bytes_per_transition
    batch = stream.play(3)
    with pytest.raises(ValueError, match=text):
        buffer.extend(write(batch))
    assert_same(buffer[:], before)
    assert (len(buffer), storage.bytes_per_transition) == (length, size)
    assert buffer.sample()["step"].max() < 6
    # The storage itself still takes the right batch, at the place where it stopped.
    storage.set(range(6), batch.reshape(-1))
    assert_same(storage[:6], batch.reshape(-1))


def test_a_batch_left_out_or_written_twice_is_an_error() -> None:
    stream = Stream(2)
    buffer, batch = filled(stream, 8, 1)
    with pytest.raises(ValueError, match=r"slot 0, step 0 of this write"):
        buffer.extend(batch.reshape(-1))
    buffer, _ = filled(stream, 8, 1)
    stream.play(1)
    with pytest.raises(ValueError, match=r"slot 0, step 0 of this write"):
        buffer.extend(stream.play(1).reshape(-1))


def test_the_first_write_is_checked_as_well() -> None:
    """And leaves an empty storage empty."""
    storage = FrameStackStorage(12, num_envs=2, steps_per_write=3)
    with pytest.raises(ValueError, match="slot 0, step 1 of this write"):
        storage.set(range(6), Stream(2).play(3).transpose(0, 1).reshape(-1))
    with pytest.raises(ValueError, match=r"'pixels' must be torch\.uint8 \[6, 4, 'height', 'width'\]: got None"):
        storage.set(range(6), Stream(2).play(3).exclude("pixels").reshape(-1))
    assert len(storage) == 0
    storage.set(range(6), Stream(2).play(3).reshape(-1))
    assert_same(storage[:], Stream(2).play(3).reshape(-1))


def test_single_transitions_are_neither_added_nor_overwritten() -> None:
    buffer, written = filled(Stream(2), 8, 2)
    one = written[0, 0]
    with pytest.raises(ValueError, match=r"written in order, 2 slots x 1 steps = 2 .*: got batch size \[\] at index 4"):
        buffer.add(one)
    with pytest.raises(ValueError, match=r"written in order, .*: got batch size \[2\] at index 0"):
        buffer.storage[torch.tensor([0, 1])] = written[:, 0]
    with pytest.raises(ValueError, match=r"written in order, .*: got batch size None at index 0"):
        buffer.storage.set(0, torch.zeros(2))


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"max_size": 7}, r"multiple of num_envs \* steps_per_write = 4: got 7; use 4"),
        ({"max_size": 3}, r"max_size must have room for one write, num_envs \* steps_per_write = 4: got 3; use 4 or"),
        ({"max_size": 8.0}, r"max_size must be an integer of at least 1: got 8\.0"),
        ({"num_envs": 0}, "num_envs must be an integer of at least 1: got 0"),
        ({"steps_per_write": 0}, "steps_per_write must be an integer of at least 1: got 0"),
        ({"frame_stack": -1}, "frame_stack must be an integer of at least 1: got -1"),
        ({"n_step": 0}, "n_step must be an integer of at least 1: got 0"),
        ({"channels": True}, "channels must be an integer of at least 1: got True"),
        ({"gamma": 99}, r"gamma is a discount factor in \[0, 1\]: got 99"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        FrameStackStorage(**{"max_size": 8, "num_envs": 2, "steps_per_write": 2, **sizes})


def test_sizes_of_numpy_are_taken_and_saved_as_plain_numbers() -> None:
    storage = FrameStackStorage(np.int64(8), num_envs=np.int64(2), steps_per_write=np.int32(2))
    assert [type(value) for value in storage.state_dict()["sizes"].values()] == [int] * 4


def padded(frame_stack: int, *, slots: int = 2, middle: bool = False) -> TensorDict:
    """The first step of games whose first frame is repeated, or of games that are under way."""
    stream = Stream(slots, frame_stack=frame_stack, middle=middle)
    batch = stream.play(1)
    if not middle:
        batch["pixels"] = batch["pixels"][:, :, -1:].expand_as(batch["pixels"]).clone()
        batch["next", "pixels"][:, :, :-1] = batch["pixels"][:, :, 1:]
    return batch.reshape(-1)


@pytest.mark.parametrize(("frame_stack", "slots"), [(2, 1), (3, 2), (4, 2)])
def test_stacks_padded_with_the_first_frame_are_refused_at_the_first_write(frame_stack: int, slots: int) -> None:
    """Long before the first end of a game, at which they could not be rebuilt."""
    storage = FrameStackStorage(8, num_envs=slots, frame_stack=frame_stack)
    with pytest.raises(
        ValueError, match=rf"must begin with zeros .*: got first stacks of one frame {frame_stack} times"
    ):
        storage.set(range(slots), padded(frame_stack, slots=slots))
    assert len(storage) == 0
    sound = Stream(slots, frame_stack=frame_stack).play(1).reshape(-1)
    storage.set(range(slots), sound)
    assert_same(storage[:], sound)


def test_torchrls_own_padding_is_refused_and_its_zeros_are_taken() -> None:
    """CatFrames over an environment of single frames, the one and the other way."""
    for padding in ("same", "constant"):
        env = AtariVecEnv("pong", 2, frame_stack=1, seed=0)
        env = env.append_transform(CatFrames(4, dim=-3, in_keys=["pixels"], padding=padding, padding_value=0))
        batch = env.rollout(2, break_when_any_done=False)
        env.close()
        buffer = make_replay_buffer(FrameStackStorage(8, num_envs=2, steps_per_write=2), batch_size=4)
        if padding == "same":
            with pytest.raises(ValueError, match=r"got first stacks of one frame 4 times over in every slot; pad"):
                buffer.extend(batch.reshape(-1))
        else:
            buffer.extend(batch.reshape(-1))
            assert torch.equal(buffer[:]["pixels"], batch.reshape(-1)["pixels"])


def test_a_picture_that_stands_still_is_no_padding() -> None:
    """In one of two slots, in none, or black in both; and stacks of one frame."""
    still = padded(4)
    moving = padded(4, middle=True)
    one = torch.stack([still[0], moving[1]])
    black = padded(4)
    black["pixels"] = torch.zeros_like(black["pixels"])
    black["next", "pixels"][:, :-1] = 0
    for batch, frame_stack in ((moving, 4), (one, 4), (black, 4), (padded(1), 1)):
        storage = FrameStackStorage(8, num_envs=2, frame_stack=frame_stack)
        storage.set(range(2), batch)
        assert_same(storage[:], batch)


def test_colours_of_another_number_are_refused() -> None:
    stream = Stream(2, frame_stack=4)
    storage = FrameStackStorage(8, num_envs=2, channels=3)
    with pytest.raises(
        ValueError, match=r"'pixels' must be torch\.uint8 \[2, 12, 2, 3\]: got torch\.uint8 \[2, 4, 2, 3\]"
    ):
        storage.set(range(2), stream.play(1).reshape(-1))


# The newest write with other values


def test_renewed_entries_are_those_of_the_newest_write_alone() -> None:
    """Three writes of two slots and three steps in a ring of two: the last is renewed, the one before it stays."""
    buffer, written = filled(Stream(2, ends=[(4, 1)]), 12, 3, steps=3)
    storage, newest = buffer.storage, written[:, -3:].reshape(-1).clone()
    before = storage.get(range(12)).clone()
    newest.set("action", newest["action"] + 10)
    storage.renew(newest)
    after = storage.get(range(12))
    assert torch.equal(after["action"][:6], newest["action"])  # the third write lies where the first one lay
    assert_same(after[6:], before[6:])
    assert_same(after.exclude("action"), before.exclude("action"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda newest: newest[:4], r"takes the whole newest write, 6 transitions: got 4"),
        (lambda newest: newest.exclude("action"), r"every write must hold the entries of the first one: .* at action"),
    ],
)
def test_wrong_renewals_are_refused(change: object, message: str) -> None:
    buffer, written = filled(Stream(2), 12, 2, steps=3)
    with pytest.raises(ValueError, match=message):
        buffer.storage.renew(change(written[:, -3:].reshape(-1)))


def test_nothing_is_renewed_before_the_first_write() -> None:
    storage = FrameStackStorage(12, num_envs=2, steps_per_write=3)
    with pytest.raises(RuntimeError, match="got a storage without one; extend first"):
        storage.renew(Stream(2).play(3).reshape(-1))
