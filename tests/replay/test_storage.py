"""The storage of stacked frames: what is read equals what the environment showed, wherever it lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_parts import (
    NumpyGames,
    Stream,
    assert_same,
    atari_rollout,
    buffer_of,
    filled,
    naive,
    run,
    situations,
    streams,
)
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode

from torchrl_rtpd.replay.storage import FrameStackStorage

quick = settings(max_examples=25, deadline=None)


# Stacks


@pytest.mark.parametrize(
    ("game", "num_envs", "steps", "options", "per_write", "max_size", "ends"),
    [
        ("breakout", 3, 280, {}, 1, 30, 4),
        ("breakout", 2, 200, {"max_frames": 642}, 4, 48, 2),
        ("pong", 2, 90, {"max_frames": 52}, 3, 24, 12),
        ("seaquest", 4, 60, {"max_frames": 10, "frame_stack": 3}, 5, 40, 80),
        ("pong", 1, 40, {"max_frames": 4}, 2, 6, 40),
    ],
)
def test_every_stored_transition_equals_what_the_environment_showed(
    game: str, num_envs: int, steps: int, options: dict, per_write: int, max_size: int, ends: int
) -> None:
    """After every write, over many turns of the ring and over lost and cut games in each slot's own time."""
    rollout = atari_rollout(game, num_envs, steps, noop_max=0, **options)
    assert rollout["next", "done"].sum().item() == ends
    frame_stack = options.get("frame_stack", 4)
    storage = FrameStackStorage(max_size, num_envs=num_envs, steps_per_write=per_write, frame_stack=frame_stack)
    buffer, whole = buffer_of(storage), naive(max_size)
    for batch in rollout.split(per_write, 1):
        buffer.extend(batch.reshape(-1))
        whole.extend(batch.reshape(-1))
        assert len(buffer) == len(whole)
        assert_same(buffer[:], whole[:], f"after step {len(buffer)}")


@quick
@given(streams())
def test_whatever_the_sizes_and_ends_stacks_are_rebuilt(sizes: dict) -> None:
    for buffer, whole, _, _ in run(sizes, n_step=1):
        assert_same(buffer[:], whole[:])


@settings(max_examples=80, deadline=None)
@given(situations(), st.integers(1, 4), st.booleans())
def test_whatever_is_stored_comes_back_at_its_index(
    tmp_path_factory: pytest.TempPathFactory, sizes: dict, n_step: int, in_file: bool
) -> None:
    """Stacks, single frames and colours, in memory and in a file, against games and sums in numpy."""
    games, steps, blocks = NumpyGames(**sizes["games"]), sizes["steps"], sizes["blocks"]
    slots, channels = games.num_envs, 3 if len(games.shape) == 3 else 1
    storage = FrameStackStorage(
        slots * steps * blocks,
        num_envs=slots,
        steps_per_write=steps,
        frame_stack=games.frame_stack,
        channels=channels,
        n_step=n_step,
        gamma=0.5,
        scratch_dir=tmp_path_factory.getbasetemp() if in_file else None,
    )
    buffer, numbers, cut_after = buffer_of(storage), {}, set()
    for write in range(sizes["writes"]):
        if write in sizes["cuts"]:
            storage.cut()
            cut_after |= set(range(len(games.ended) - slots, len(games.ended)))
            if write:
                games.restart()
        buffer.extend(written(games, steps, single=sizes["single"]))
        for index in range(slots * steps):
            number = (write * steps + index % steps) * slots + index // steps
            numbers[write % blocks * slots * steps + index] = number
    held = [numbers[index] for index in range(len(storage))]
    windows = [window(games, number, n_step, cut_after) for number in held]
    found = buffer[:]
    np.testing.assert_array_equal(found["number"].numpy(), held)
    np.testing.assert_array_equal(found["pixels"].numpy(), games.shown(held)[0])
    np.testing.assert_array_equal(found["next", "pixels"].numpy(), games.shown([last for last, _ in windows])[1])
    np.testing.assert_allclose(found["next", "reward"].flatten().numpy(), [total for _, total in windows])


def written(games: NumpyGames, steps: int, *, single: bool) -> TensorDict:
    """One write of these games, slot by slot, whose rewards are the numbers of the transitions."""
    first = len(games.ended)
    pixels, next_pixels, ended = games.play(steps)
    if single:
        pixels, next_pixels = pixels[:, :, -1:], next_pixels[:, :, -1:]
    number = torch.arange(first, len(games.ended)).view(steps, games.num_envs)
    after = {"pixels": next_pixels, "done": ended[..., None], "reward": number[..., None].float()}
    batch = TensorDict({"pixels": pixels, "number": number, "next": after}, [steps, games.num_envs])
    for key in ("pixels", ("next", "pixels")):
        if batch[key].ndim == 6:
            batch[key] = batch[key].flatten(2, 3)
    return batch.transpose(0, 1).reshape(-1)


def window(games: NumpyGames, number: int, n_step: int, cut_after: set[int]) -> tuple[int, float]:
    """The last transition of the n-step window from this one on, and its sum of rewards with a discount of 0.5."""
    last, total = number, float(number)
    for step in range(1, n_step):
        if games.ended[last] or last in cut_after or last + games.num_envs >= len(games.ended):
            break
        last += games.num_envs
        total += 0.5**step * last
    return last, total


@quick
@given(streams())
def test_an_index_is_the_place_of_a_transition_in_its_write(sizes: dict) -> None:
    """Index ``i`` lies in block ``i // (N * T)``, written last by the newest write that fits, slot by slot."""
    steps, block = sizes["steps"], sizes["num_envs"] * sizes["steps"]
    for write, (buffer, _, _, _) in enumerate(run(sizes, n_step=1)):
        found = buffer[:]
        for index, (step, slot) in enumerate(zip(found["step"].tolist(), found["slot"].tolist(), strict=True)):
            last = max(w for w in range(write + 1) if w % sizes["blocks"] == index // block)
            assert (step, slot) == (last * steps + index % steps, index % block // steps)


def test_sampled_stacks_are_shared_with_nothing() -> None:
    """Writing into a sample changes neither the storage nor the sample's other stack."""
    buffer, _ = filled(Stream(2, ends=[(2, 0)]), 12, 4)
    before = buffer[:]
    sample = buffer[:]
    sample["pixels"].zero_()
    assert torch.equal(sample["next", "pixels"], before["next", "pixels"])
    for value in sample.values(True, True):
        value.zero_()
    assert_same(buffer[:], before)


def test_stored_frames_are_shared_with_nothing() -> None:
    """Writing into a batch after it was stored changes nothing."""
    stream = Stream(2)
    buffer, _ = filled(stream, 12, 1)
    batch = stream.play(1).reshape(-1)
    kept = batch.clone()
    buffer.extend(batch)
    for value in batch.values(True, True):
        value.zero_()
    assert_same(buffer[[2, 3]], kept)


def test_pixels_may_have_another_and_nested_name() -> None:
    stream = Stream(2, ends=[(1, 1)])
    buffer = buffer_of(FrameStackStorage(8, num_envs=2, steps_per_write=2, pixels_key=("camera", "left")))
    whole = naive(8)
    for _ in range(3):
        batch = stream.play(2).rename_key_("pixels", ("camera", "left"))
        batch = batch.rename_key_(("next", "pixels"), ("next", "camera", "left")).reshape(-1)
        buffer.extend(batch)
        whole.extend(batch)
    assert_same(buffer[:], whole[:])


def test_games_without_end_of_life_are_stored_as_well() -> None:
    stream = Stream(2, ends=[(1, 1)])
    buffer, whole = buffer_of(FrameStackStorage(8, num_envs=2, n_step=2)), naive(8)
    for _ in range(3):
        batch = stream.play(1).exclude(("next", "end_of_life")).reshape(-1)
        buffer.extend(batch)
        whole.extend(batch)
    assert_same(buffer[:].select("pixels", "action"), whole[:].select("pixels", "action"))


# Indices


def test_length_grows_to_the_capacity_and_stays() -> None:
    stream = Stream(2)
    buffer = buffer_of(FrameStackStorage(12, num_envs=2, steps_per_write=2))
    lengths = [len(buffer)]
    for _ in range(5):
        buffer.extend(stream.play(2).reshape(-1))
        lengths.append(len(buffer))
    assert lengths == [0, 4, 8, 12, 12, 12]


def test_all_kinds_of_indices_select_the_same_transitions() -> None:
    buffer, _ = filled(Stream(2, ends=[(1, 0)]), 12, 4)
    whole = buffer[:]
    assert whole.batch_size == (8,)
    mask = torch.tensor([False, True, False, False, True, True, False, False])
    for index, numbers in [
        (slice(2, 5), [2, 3, 4]),
        (slice(None, None, -3), [7, 4, 1]),
        (slice(-2, None), [6, 7]),
        ([4, 1, 1], [4, 1, 1]),
        (range(3), [0, 1, 2]),
        (torch.tensor([7, 0]), [7, 0]),
        (mask, [1, 4, 5]),
    ]:
        assert_same(buffer.storage[index], whole[torch.tensor(numbers)], index)
    one = buffer.storage[3]
    assert one.batch_size == ()
    assert_same(one, whole[3])
    assert_same(buffer.storage[torch.tensor(3)], whole[3])
    assert_same(buffer.storage[torch.tensor([[0, 5], [6, 2]])], whole[torch.tensor([0, 5, 6, 2])].reshape(2, 2))
    assert buffer.storage[[]].batch_size == (0,)


def test_a_storage_contains_what_was_written() -> None:
    buffer, _ = filled(Stream(2), 12, 2)
    storage = buffer.storage
    assert [index in storage for index in (-1, 0, 3, 4, 11)] == [False, True, True, False, False]
    assert storage.contains(torch.tensor([0, 3, 4])).tolist() == [True, True, False]


@pytest.mark.parametrize("index", [4, -1, [0, 4], [-5, 3], torch.tensor([11])])
def test_an_index_that_was_not_written_is_an_error(index: int | list | torch.Tensor) -> None:
    buffer, _ = filled(Stream(2), 12, 2)
    wrong = [value for value in torch.as_tensor(index).flatten().tolist() if not 0 <= value < 4]
    with pytest.raises(RuntimeError, match=rf"index {wrong[0]} was not written yet: 4 transitions are stored"):
        buffer.storage.get(index)


def test_a_storage_says_what_it_is() -> None:
    """Alone and within a buffer, whose text holds its storage's."""
    buffer, _ = filled(Stream(2), 12, 2, n_step=3)
    text = "FrameStackStorage(max_size=12, num_envs=2, steps_per_write=1, frame_stack=4, n_step=3, device=cpu, len=4)"
    assert repr(buffer.storage) == text
    assert text in repr(buffer)
    assert buffer.storage.shape == (4,)


def test_an_empty_storage_has_nothing_to_give() -> None:
    storage = FrameStackStorage(12, num_envs=2)
    assert len(storage) == 0
    with pytest.raises(RuntimeError, match="index 0 was not written yet: 0 transitions are stored"):
        storage.get(0)
    with pytest.raises(RuntimeError, match="Cannot sample from an empty storage"):
        buffer_of(storage).sample()


def test_emptying_a_buffer_starts_it_from_scratch() -> None:
    """Also with frames of another size."""
    buffer, _ = filled(Stream(2, ends=[(0, 0), (3, 1)]), 8, 5)
    buffer.empty()
    assert len(buffer) == 0
    assert buffer.storage.bytes_per_transition == 0
    stream, whole = Stream(2, middle=True), naive(8)
    for _ in range(5):
        batch = stream.play(1).reshape(-1)
        for key in ("pixels", ("next", "pixels")):
            batch[key] = batch[key].repeat(1, 1, 2, 2)
        buffer.extend(batch)
        whole.extend(batch)
    assert_same(buffer[:], whole[:])


class SeenOperations(TorchDispatchMode):
    """Names of the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("n_step", [1, 3])
def test_reading_asks_the_host_for_nothing_but_the_bounds(n_step: int) -> None:
    """No shape depends on data, so on a CUDA device, where that check is left out, nothing waits."""
    buffer, _ = filled(Stream(2, ends=[(1, 0), (2, 1)]), 12, 8, n_step=n_step)
    index = torch.tensor([0, 5, 7, 2])
    with SeenOperations() as seen:
        buffer.storage.get(index)
    assert seen.names.count("_local_scalar_dense") == 2
    assert not {"nonzero", "masked_select", "unique", "_unique2", "equal", "is_nonzero"} & set(seen.names)


# Cutting the stream


def test_after_a_cut_all_games_begin_from_scratch() -> None:
    """The cut transitions keep their own next frames also when the ring has turned past them, and sums stop there."""
    stream = Stream(2, ends=[(3, 1)])
    buffer, before = filled(stream, 16, 4, n_step=2, gamma=1.0)
    buffer.storage.cut()
    buffer.storage.cut()
    stream.restart()
    batches = [stream.play(1) for _ in range(3)]
    for batch in batches:
        buffer.extend(batch.reshape(-1))
    found = buffer[:]
    assert torch.equal(found["pixels"][8:], torch.cat(batches, 1).transpose(0, 1).reshape(-1)["pixels"])
    assert torch.equal(found["next", "pixels"][6:8], before[:, 3]["next", "pixels"])
    assert found["steps_to_next_obs"].flatten().tolist() == [2, 2, 2, 2, 2, 2, 1, 1, 2, 2, 2, 2, 1, 1]
    assert torch.equal(found["next", "reward"][6:8], before[:, 3]["next", "reward"])
    assert not found["next", "done"][6].item()


def test_after_a_cut_going_on_with_the_old_games_is_an_error() -> None:
    stream = Stream(2)
    buffer, _ = filled(stream, 8, 4)
    buffer.storage.cut()
    with pytest.raises(
        ValueError, match=r"begin a game with zeros: got another stack in slot 0, step 0 .* call cut\(\)"
    ):
        buffer.extend(stream.play(1).reshape(-1))


def test_without_a_cut_games_begun_from_scratch_are_an_error() -> None:
    stream = Stream(2)
    buffer, _ = filled(stream, 8, 4)
    stream.restart()
    with pytest.raises(ValueError, match=r"slot 0, step 0 of this write; .* call cut\(\) when its games are reset"):
        buffer.extend(stream.play(1).reshape(-1))


def test_cutting_an_empty_storage_does_nothing() -> None:
    storage = FrameStackStorage(8, num_envs=2)
    storage.cut()
    storage.set(range(2), Stream(2, middle=True).play(1).reshape(-1))
    assert_same(storage[:], Stream(2, middle=True).play(1).reshape(-1))


# On a CUDA device


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("n_step", [1, 3])
def test_frames_can_live_on_a_cuda_device_and_reading_never_waits_for_it(n_step: int) -> None:
    options = {"num_envs": 2, "n_step": n_step}
    ours, theirs = (buffer_of(FrameStackStorage(12, **options, device=device)) for device in ("cuda", "cpu"))
    stream = Stream(2, ends=[(2, 0), (5, 0), (5, 1), (8, 1)])
    for _ in range(10):
        batch = stream.play(1).reshape(-1)
        ours.extend(batch)
        theirs.extend(batch)
    index = torch.arange(12, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = ours.storage.get(index)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.device.type == "cuda"
    assert_same(found.cpu(), theirs[:].cpu())


def test_next_stacks_are_left_out_of_samples_where_nobody_reads_them() -> None:
    """All else is as it was, and the next states can still be had."""
    buffer, _ = filled(Stream(2, ends=[(3, 1), (4, 0)]), 12, 2, steps=3)
    storage, index = buffer.storage, torch.arange(12)
    whole = storage.get(index)
    storage.next_stacks = False
    assert_same(storage.get(index), whole.exclude(("next", "pixels")))
    assert_same(storage.next_states(index), whole["next"])
    with pytest.raises(RuntimeError, match="index 12 was not written yet"):
        storage.next_states(torch.tensor([12]))
