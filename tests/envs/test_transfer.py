"""Arrays on their way to a device: on a CPU they stay where they are, to a GPU they travel in few pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from device_parts import DEVICES
from env_parts import opened, random_actions

from torchrl_rtpd.envs.transfer import all_to_device, packed, to_device, to_host


def entries() -> dict[str, np.ndarray]:
    numbers = {name: np.full((3, 1), value, dtype=np.float32) for name, value in (("score", 1.5), ("reward", -2.0))}
    return {**numbers, "done": np.array([[True], [False], [True]]), "lost": np.zeros((3, 1), dtype=bool)}


@pytest.mark.parametrize("device", [None, *DEVICES])
def test_arrays_arrive_as_they_are(device: str | None) -> None:
    where = None if device is None else torch.device(device)
    moved = all_to_device(entries(), where)
    assert list(moved) == ["score", "reward", "done", "lost"]
    for name, array in entries().items():
        assert moved[name].device.type == (device or "cpu")
        assert moved[name].dtype == torch.from_numpy(array).dtype
        np.testing.assert_array_equal(to_host(moved[name]), array)


def test_arrays_travel_in_one_piece_for_each_type() -> None:
    """In the order given."""
    pieces: list[np.ndarray] = []

    def move(array: np.ndarray) -> torch.Tensor:
        pieces.append(array)
        return torch.from_numpy(array)

    given = entries()
    mixed = {name: given[name] for name in ("score", "done", "reward", "lost")}
    moved = packed(mixed, move)
    assert [piece.shape for piece in pieces] == [(2, 3, 1), (2, 3, 1)]
    assert list(moved) == list(mixed)
    assert all(np.array_equal(moved[name].numpy(), array) for name, array in mixed.items())


def test_on_a_cpu_nothing_is_copied() -> None:
    array = np.zeros(4, dtype=np.float32)
    tensor = to_device(array, torch.device("cpu"))
    array[1] = 7.0
    assert tensor.tolist() == [0.0, 7.0, 0.0, 0.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_array_may_change_once_it_was_sent() -> None:
    """While the device is still busy with what came before."""
    array = np.zeros(1_000_000, dtype=np.uint8)
    torch.cuda._sleep(100_000_000)
    sent = []
    for value in range(4):
        array[:] = value
        sent.append(to_device(array, torch.device("cuda")))
    assert [(tensor == value).all().item() for value, tensor in enumerate(sent)] == [True] * 4


def test_the_ends_that_a_step_returns_are_known_without_a_look_at_them() -> None:
    """The very tensor reaches ``maybe_reset`` through TorchRL's step, so that a GPU need not be asked."""
    actions = random_actions(1, 1, 4)[0]
    with opened("breakout", 2, seed=0) as env:
        state = env.reset()
        played = env.step(state.set("action", actions.expand(2).clone()))
        assert env._step_mdp(played)["done"] is env._done
        assert env._done is played["next", "done"]
