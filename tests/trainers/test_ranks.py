"""Several learners, each with a share of the minibatch, in processes that torch.distributed joins."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor
from torchrl.trainers._distributed import _connect_tcp_store, _create_tcp_store, _DDPProcessGroup
from torchrl.trainers._execution import _Learner

from torchrl_rtpd import DistillationLoss, PQNLoss, RealTimeDistillStepper, RealTimeDistillTrainer, StudentPQNLoss

UPDATES, ROWS = 3, 16


def actor(seed: int) -> QValueActor:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    return QValueActor(network, in_keys=["observation"], spec=Categorical(3))


def minibatch(update: int) -> TensorDict:
    generator = torch.Generator().manual_seed(update)
    entries = {
        "observation": torch.randn(ROWS, 4, generator=generator),
        "action": torch.randint(3, (ROWS,), generator=generator),
        "value_target": torch.randn(ROWS, 1, generator=generator),
    }
    return TensorDict(entries, [ROWS])


def learned(group: _DDPProcessGroup | None, rows: slice) -> dict[str, Any]:
    """Networks after three updates, by TorchRL's own learner, with some rows of each minibatch."""
    loss = PQNLoss(actor(0))
    students = {"own": StudentPQNLoss(actor(1)), "pure": DistillationLoss(actor(2))}
    hook = RealTimeDistillTrainer(students, optimizer=partial(torch.optim.SGD, lr=0.1))
    learner = _Learner(
        loss_module=loss,
        replay_buffer=None,
        local_batch_size=1,
        optimizer=torch.optim.SGD(loss.parameters(), lr=0.1),
        optimization_stepper=RealTimeDistillStepper(hook),
        target_net_updater=None,
        process_group=group,
    ).initialize()
    for update in range(UPDATES):
        learner.optimization_stepper.step(learner, minibatch(update)[rows])
    state = {"teacher": loss.state_dict(), **{name: student.state_dict() for name, student in students.items()}}
    learner.close()
    return copy.deepcopy(state)


def rank(number: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = _connect_tcp_store(("127.0.0.1", port), timeout=60)
    group = _DDPProcessGroup.create(rank=number, local_rank=0, world_size=2, store=store, timeout=60)
    half = ROWS // 2
    torch.save(learned(group, slice(number * half, (number + 1) * half)), Path(folder) / f"{number}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two learners holds in the end."""
    folder = tmp_path_factory.mktemp("ranks")
    store, (_, port) = _create_tcp_store(host="127.0.0.1", timeout=60)
    multiprocessing.spawn(rank, args=(port, str(folder)), nprocs=2)
    del store
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


def test_learners_of_half_a_minibatch_each_hold_the_same_students(ranks: list[dict[str, Any]]) -> None:
    """To the last bit, although their halves differ."""
    first, second = ranks
    for network, state in first.items():
        assert all(torch.equal(value, second[network][name]) for name, value in state.items()), network


def test_two_learners_teach_what_one_learner_of_the_whole_minibatch_teaches(ranks: list[dict[str, Any]]) -> None:
    """The mean over rows is the mean of the halves' means; sums in another order differ in the last digits."""
    alone = learned(None, slice(None))
    half = learned(None, slice(ROWS // 2))
    for network, state in alone.items():
        torch.testing.assert_close(ranks[0][network], state, rtol=1e-5, atol=1e-6)
        moved = any(not torch.allclose(value, half[network][name], atol=1e-4) for name, value in state.items())
        assert moved, f"{network}: half a minibatch teaches the same, so that this test could not fail"
