"""What the tests of the discrete losses share: networks, batches, numbers by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Categorical as Distribution
from torch.distributions import kl_divergence
from torchrl.data import (
    Categorical,
)
from torchrl.modules import QValueActor
from torchrl.objectives import SoftUpdate

from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss

LN2, LN3 = math.log(2.0), math.log(3.0)

# Two states and two actions. At temperature 1 the teacher plays (3/4, 1/4) and (1/5, 4/5), the student (1/4, 3/4) and
# (2/5, 3/5): they disagree on the first state and agree on the second.
TEACHER_VALUES = [[LN3, 0.0], [0.0, math.log(4.0)]]
STUDENT_VALUES = [[0.0, LN3], [0.0, math.log(1.5)]]
PER_STATE = {
    "forward_kl": [0.549306, 0.091516],  # 1/2 ln 3; 1/5 ln 1/2 + 4/5 ln 4/3
    "reverse_kl": [0.549306, 0.104650],  # 1/2 ln 3; 2/5 ln 2 + 3/5 ln 3/4
    "jensen_shannon": [0.130812, 0.024157],  # 3/4 ln 3/2 + 1/4 ln 1/2; likewise with a middle of (3/10, 7/10)
    "mse": [2.413898, 0.962026],  # 2 (ln 3)^2; (ln 8/3)^2
    "huber": [1.197225, 0.481013],  # 2 (ln 3 - 1/2); (ln 8/3)^2 / 2
    "nll": [1.386294, 0.510826],  # ln 4; ln 5/3
}
FORWARD_KL = 0.320411  # the mean of 0.549306 and 0.091516


def actor(num_actions: int = 3, num_features: int = 4, **kwargs: Any) -> QValueActor:
    kwargs.setdefault("spec", Categorical(num_actions))
    return QValueActor(nn.Linear(num_features, num_actions), in_keys=["observation"], **kwargs)


def table_actor(values: list[list[float]], **kwargs: Any) -> QValueActor:
    """Action values ``[S, A]`` of ``S`` states, which are observed as one-hot rows."""
    network = nn.Linear(len(values), len(values[0]), bias=False)
    network.weight.data.copy_(torch.tensor(values).T)
    return QValueActor(network, in_keys=["observation"], spec=Categorical(len(values[0])), **kwargs)


def two_states(**kwargs: Any) -> TensorDict:
    """The two states of the table above with their teacher values, one after the other."""
    batch = TensorDict({"observation": torch.eye(2), ("teacher", "action_value"): torch.tensor(TEACHER_VALUES)}, [2])
    return batch.update(TensorDict(kwargs, [2]))


def transitions(size: int = 5, num_actions: int = 3, seed: int = 0) -> TensorDict:
    """Random transitions, every third of which ends an episode, without teacher values."""
    generator = torch.Generator().manual_seed(seed)
    terminated = (torch.arange(size) % 3 == 2).unsqueeze(-1)
    return TensorDict(
        {
            "observation": torch.randn(size, 4, generator=generator),
            "action": torch.randint(num_actions, (size,), generator=generator),
            "next": {
                "observation": torch.randn(size, 4, generator=generator),
                "reward": torch.randn(size, 1, generator=generator),
                "done": terminated.clone(),
                "terminated": terminated,
            },
        },
        [size],
    )


def with_teacher_values(batch: TensorDict, num_actions: int = 3) -> TensorDict:
    """The batch with teacher values drawn at random for both states of each transition."""
    generator = torch.Generator().manual_seed(9)
    for prefix in ((), ("next",)):
        values = torch.randn(*batch.batch_size, num_actions, generator=generator)
        batch.set((*prefix, "teacher", "action_value"), values)
    return batch


def make(loss_class: type[DistillationLoss], *args: Any, **kwargs: Any) -> DistillationLoss:
    """A loss, with a target updater if it has targets."""
    loss = loss_class(*args, **kwargs)
    if loss_class is StudentDQNLoss:
        SoftUpdate(loss, tau=0.1)
    return loss


def total(losses: TensorDict) -> Tensor:
    return sum(value for key, value in losses.items() if key.startswith("loss"))


def gradients(loss: DistillationLoss) -> list[Tensor]:
    found = [parameter.grad.clone() for parameter in loss.parameters()]
    for parameter in loss.parameters():
        parameter.grad = None
    return found


def independent_forward_kl(teacher: Tensor, student: Tensor, temperatures: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """KL(teacher || student) ``[*B]`` by torch.distributions."""
    return kl_divergence(Distribution(logits=teacher / temperatures[0]), Distribution(logits=student / temperatures[1]))


class Noisy(nn.Module):
    """A network whose training mode is random (Dropout) and changes its state (BatchNorm)."""

    def __init__(self, num_features: int = 4, num_actions: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(num_features, 16)
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(16, num_actions)

    def forward(self, observation: Tensor) -> Tensor:
        return self.last(self.dropout(self.norm(self.first(observation)).relu()))


def noisy_actor() -> QValueActor:
    return QValueActor(Noisy(), in_keys=["observation"], spec=Categorical(3))
