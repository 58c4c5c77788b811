"""Sums over several steps: they stop at a game's end, a lost life, a cut and the newest step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_parts import Stream, assert_same, filled, run, streams
from tensordict import TensorDictBase

from torchrl_rtpd.replay.n_step import n_step_windows
from torchrl_rtpd.replay.storage import FrameStackStorage

quick = settings(max_examples=25, deadline=None)


def n_step_oracle(
    truth: TensorDictBase, step: int, slot: int, newest: int, n_step: int, gamma: float, cut_after: set[int]
) -> tuple[float, int]:
    """The discounted sum from this step on and its length, one step after the other."""
    total, length = 0.0, 0
    while True:
        after = truth[slot, step + length]["next"]
        total += gamma**length * after["reward"].item()
        length += 1
        stops = after["done"].item() or after["end_of_life"].item() or step + length - 1 in cut_after
        if stops or length == n_step or step + length > newest:
            return total, length


@quick
@given(streams())
def test_n_step_sums_equal_a_slow_loop(sizes: dict) -> None:
    """They stop at a game's end, a lost life, a cut and the newest step; the other next entries are the last step's."""
    seen: list[TensorDictBase] = []
    n_step = sizes["n_step"]
    for buffer, whole, stream, cut_after in run(sizes, n_step=n_step):
        newest_write = whole[:]
        newest_write = newest_write[newest_write["step"] >= stream.step - sizes["steps"]]
        seen.append(newest_write[newest_write["slot"].sort(stable=True).indices].reshape(sizes["num_envs"], -1))
        truth = torch.cat(seen, 1)
        found = buffer[:]
        assert torch.equal(found["pixels"], whole[:]["pixels"])
        assert torch.equal(found["step"], whole[:]["step"])
        if n_step == 1:
            assert "steps_to_next_obs" not in found.keys()
            continue
        for item in found:
            step, slot = item["step"].item(), item["slot"].item()
            total, length = n_step_oracle(truth, step, slot, stream.step - 1, n_step, 0.5, cut_after)
            assert item["steps_to_next_obs"].tolist() == [length]
            assert item["steps_to_next_obs"].dtype == torch.int64
            last = truth[slot, step + length - 1]["next"].clone()
            last["reward"] = torch.tensor([total])
            assert_same(item["next"], last)


def test_n_step_literals() -> None:
    """Rewards 1, 2, 3, 4, 5, 1 with gamma 0.5, three steps, a life lost at step 1, the game over at step 3."""
    buffer, _ = filled(Stream(1, ends=[(3, 0)], deaths=[(1, 0)]), 8, 6, n_step=3, gamma=0.5)
    found = buffer[:]
    assert found["next", "reward"].flatten().tolist() == [1 + 1, 2, 3 + 2, 4, 5 + 0.5, 1]
    assert found["steps_to_next_obs"].flatten().tolist() == [2, 1, 2, 1, 2, 1]
    assert found["next", "done"].flatten().tolist() == [False, False, True, True, False, False]
    assert found["next", "end_of_life"].flatten().tolist() == [True, True, True, True, False, False]


def test_sums_at_the_newest_step_grow_with_the_next_write() -> None:
    """Reward 2 alone, then 2 + 0.9 * 3."""
    stream = Stream(1)
    buffer, _ = filled(stream, 8, 2, n_step=2, gamma=0.9)
    assert buffer[1]["next", "reward"].item() == 2
    buffer.extend(stream.play(1).reshape(-1))
    assert buffer[1]["next", "reward"].item() == pytest.approx(2 + 0.9 * 3)


def test_n_step_sums_need_rewards() -> None:
    storage = FrameStackStorage(4, num_envs=2, n_step=2)
    with pytest.raises(
        ValueError, match=r"n-step sums need \('next', 'reward'\): got .*action.*; store it or set n_step=1"
    ):
        storage.set(range(2), Stream(2).play(1).reshape(-1).exclude(("next", "reward")))


@settings(max_examples=100, deadline=None)
@given(
    num_envs=st.integers(1, 4),
    steps=st.integers(1, 6),
    extra=st.integers(0, 20),
    n_step=st.integers(1, 6),
    gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    seed=st.integers(0, 99),
)
def test_windows_equal_a_loop_in_numpy(
    num_envs: int, steps: int, extra: int, n_step: int, gamma: float, seed: int
) -> None:
    """For every transition that is held, before and after the ring has turned."""
    random = np.random.default_rng(seed)
    capacity = num_envs * steps
    num_written = num_envs * (1 + extra)
    rewards, stop = random.normal(size=capacity).astype(np.float32), random.random(capacity) < 0.3
    first = np.arange(max(0, num_written - capacity), num_written)
    last, total, length = n_step_windows(
        torch.from_numpy(first),
        torch.from_numpy(rewards)[:, None],
        torch.from_numpy(stop),
        n_step=n_step,
        gamma=gamma,
        num_envs=num_envs,
        num_written=num_written,
    )
    assert (total.shape, length.shape, length.dtype) == ((len(first), 1), (len(first), 1), torch.int64)
    for row, number in enumerate(first.tolist()):
        wanted, count = 0.0, 0
        while True:
            place = (number + count * num_envs) % capacity
            wanted += gamma**count * rewards[place]
            count += 1
            if stop[place] or count == n_step or number + count * num_envs >= num_written:
                break
        assert total[row].item() == pytest.approx(wanted, abs=1e-5)
        assert length[row].item() == count
        assert last[row].item() == number + (count - 1) * num_envs
