"""The method by hand: one page that runs, and learns from a minibatch what the package learns from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import by_hand
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Categorical
from torchrl.objectives import SoftUpdate

from torchrl_rtpd import StudentDQNLoss, TeacherDQNLoss, make_actor
from torchrl_rtpd.networks.towers import TOWERS

SCRIPT = Path(by_hand.__file__)
ACTIONS = 6


def test_the_method_fits_on_one_page_without_the_package() -> None:
    """At most 250 lines, and nothing of ours or of TorchRL's is imported."""
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 250
    assert not any(f"{word} {name}" in text for word in ("import", "from") for name in ("torchrl", "tensordict"))


@pytest.mark.parametrize("td", ["0", "1"])
def test_a_short_run_counts_its_updates_and_ends_with_json(td: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An update every 2 of the 80 steps after the start; the beginning of two games of each network at the end."""
    numbers = {"steps": 240, "start": 160, "envs": 4, "batch": 4, "games": 2, "longest": 20, "td": td}
    arguments = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
    returned = by_hand.main(arguments)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == returned
    assert printed["updates"] == 40 and printed["steps_per_second"] > 0
    assert {"teacher", "student"} < printed.keys()


def test_its_networks_are_the_papers() -> None:
    """As many values as the package's teacher and smallest student, in layers of the same shapes."""
    for name in ("teacher", "net17"):
        filters, units = TOWERS[name]
        shapes = [value.shape for value in by_hand.tower(filters, units, ACTIONS).parameters()]
        assert shapes == [value.shape for value in _actor(name).parameters()]


def test_stacks_end_at_the_beginning_of_a_game_and_rows_are_reused() -> None:
    """Six steps in five rows; the game that began at step 3 has black frames before it."""
    replay = by_hand.Replay(rows=5, games=1)
    for step, age in enumerate((0, 1, 2, 0, 1, 2)):
        value = torch.full((1,), step + 1)
        replay.write(value.to(torch.uint8)[:, None, None].expand(1, 84, 84), torch.tensor([age]), value, value, value)
    stacks = replay.stacks(torch.tensor([3, 5]), torch.tensor([0, 0]))
    assert stacks[:, :, 0, 0].tolist() == [[0, 0, 0, 4], [0, 4, 5, 6]]
    assert replay.sample(2).action.tolist() == [5, 5]  # step 4 alone has three steps before it and one after


def _actor(name: str) -> torch.nn.Module:
    return make_actor(name, Categorical(ACTIONS), seed=0)


def _learner(name: str, lr: float, eps: float) -> by_hand.Learner:
    """A network by hand with the weights of ``_actor(name)``, and a target with others."""
    filters, units = TOWERS[name]
    learner = by_hand.Learner(by_hand.tower(filters, units, ACTIONS), lr=lr, eps=eps)
    values = [value.data for value in _actor(name).parameters()]
    for network, factor in ((learner.network, 1.0), (learner.target, 0.9)):
        for parameter, value in zip(network.parameters(), values, strict=True):
            parameter.data.copy_(factor * value)
    return learner


def _package_update(loss: torch.nn.Module, batch: TensorDict, adam: Callable, clip_norm: float | None) -> list[Tensor]:
    """Weights after one update by the package, its targets nine tenths of the network."""
    loss.make_value_estimator(gamma=by_hand.GAMMA)
    SoftUpdate(loss, tau=0.1)  # TorchRL warns of targets that nobody updates
    for name, target in loss.named_children():
        if name.startswith("target_"):
            target.data.mul_(0.9)
    optimizer = adam(loss.parameters())
    out = loss(batch)
    sum(value for key, value in out.items() if key.startswith("loss")).backward()
    if clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(loss.parameters(), clip_norm)
    optimizer.step()
    return [value.detach() for value in loss.parameters()]


def test_one_update_by_hand_is_the_packages_update() -> None:
    """Teacher and student, by Eq. 2, 3 and 5, from the same weights and minibatch: the same new weights."""
    torch.manual_seed(0)
    pixels = torch.randint(256, (2, 8, 4, 84, 84), dtype=torch.uint8)
    action, reward, over = torch.randint(ACTIONS, (8,)), torch.randn(8), torch.tensor([0.0, 1.0] * 4)
    now, then = map(by_hand.scaled, pixels)
    learners = _learner("teacher", lr=5e-4, eps=1.5e-4), _learner("net17", lr=5e-4, eps=1e-5)
    actors = _actor("teacher"), _actor("net17")
    batch = TensorDict(
        {
            "pixels": pixels[0],
            "action": action,
            "next": {
                "pixels": pixels[1],
                "reward": reward[:, None],
                "terminated": over.bool()[:, None],
                "done": over.bool()[:, None],
            },
        },
        [8],
    )
    with torch.no_grad():
        values, next_values = learners[0].network(now), learners[0].target(then)
    batch["teacher", "action_value"], batch["next", "teacher", "action_value"] = values, next_values

    by_hand.learn(by_hand.Batch(now, action, reward, over, then), *learners, td=1.0)

    teacher_loss = TeacherDQNLoss(actors[0], loss_function="smooth_l1", action_space="categorical", delay_value=True)
    student_loss = StudentDQNLoss(actors[1], loss_function="smooth_l1", teacher_temperature=by_hand.TEMPERATURE)
    adam = partial(torch.optim.Adam, lr=5e-4, fused=True)
    updated = [
        _package_update(teacher_loss, batch.clone(), partial(adam, eps=1.5e-4), 10.0),
        _package_update(student_loss, batch.clone(), partial(adam, eps=1e-5), None),
    ]
    for learner, package in zip(learners, updated, strict=True):
        mine = list(learner.network.parameters())
        assert len(mine) == len(package) == 10
        for one, other in zip(mine, package, strict=True):
            torch.testing.assert_close(one.data, other, rtol=0, atol=2e-5)  # a step is up to 5e-4
