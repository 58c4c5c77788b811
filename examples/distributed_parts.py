"""Parts of rtpd_distributed.py: the game, the networks, and for each kind of teacher its numbers, losses and replay."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.data import (
    Categorical,
    LazyTensorStorage,
    MultiStep,
    RayReplayBuffer,
    SamplerWithoutReplacement,
    TensorDictReplayBuffer,
)
from torchrl.envs import EnvBase, GymEnv, RewardSum, SerialEnv
from torchrl.modules import MLP, EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss
from torchrl.objectives.common import LossModule

from torchrl_rtpd import PQNLoss, RealTimeDistillTrainer, StudentDQNLoss, StudentPQNLoss

SLOTS = 4  # games side by side in each worker


@dataclass(frozen=True)
class Recipe:
    """Numbers of a kind of teacher."""

    steps: int  # agent steps of training
    updates: int  # per batch and worker; of PQN in each epoch
    epochs: int  # passes over a rollout; 1 where a replay is drawn from
    annealed: float  # share of the training after which few actions are random


RECIPES = {
    "dqn": Recipe(49_152, 16, 1, annealed=0.25),
    "pqn": Recipe(65_536, 2, 4, annealed=0.5),
}
STEPS_PER_WORKER = 128  # agent steps that each worker adds to a batch
BATCH_SIZE = 64  # of a minibatch, of all learners together
LEARNING_RATE = 5e-4  # of teacher and student
GAMMA, LAMBDA = 0.99, 0.9
EPSILON = 0.05  # share of random actions at the end
TAU = 0.01  # of DQN's target network


def make_env(slots: int = SLOTS) -> EnvBase:
    """CartPole, ``slots`` games side by side; a game ends after 500 steps at the latest, each worth 1."""
    games = SerialEnv(slots, partial(GymEnv, "CartPole-v1", categorical_action_encoding=True))
    return games.append_transform(RewardSum())


def make_actor(kind: str, units: int, actor: type[QValueActor] = QValueActor) -> QValueActor:
    """Two hidden layers; PQN, which has no target network, wants them normalised."""
    norm = {"norm_class": nn.LayerNorm, "norm_kwargs": [{"normalized_shape": units}] * 2} if kind == "pqn" else {}
    network = MLP(in_features=4, out_features=2, num_cells=[units, units], activation_class=nn.ReLU, **norm)
    return actor(network, in_keys=["observation"], spec=Categorical(2))


def teacher_loss(kind: str, teacher: QValueActor) -> LossModule:
    """Double DQN, or PQN's regression to the returns that ``LambdaTargets`` writes."""
    if kind == "pqn":
        return PQNLoss(teacher)
    loss = DQNLoss(teacher, action_space="categorical", loss_function="smooth_l1", delay_value=True, double_dqn=True)
    loss.make_value_estimator(gamma=GAMMA)
    return loss


def make_optimizer(kind: str, loss: LossModule) -> torch.optim.Optimizer:
    """The teacher's: Adam, and RAdam for PQN as in its paper."""
    optimizer = torch.optim.RAdam if kind == "pqn" else torch.optim.Adam
    return optimizer(loss.parameters(), lr=LEARNING_RATE)


def make_exploration(kind: str, steps: int) -> EGreedyModule:
    """Random actions, fewer and fewer, for a policy whose exploration this process lowers and sends."""
    return EGreedyModule(Categorical(2), eps_end=EPSILON, annealing_num_steps=int(RECIPES[kind].annealed * steps))


def n_steps(kind: str) -> MultiStep | None:
    """Returns of ten steps for DQN; PQN's are of whole rollouts."""
    if kind == "pqn":
        return None
    ten_steps = MultiStep(gamma=GAMMA, n_steps=10)
    ten_steps.done_keys = ("done",)  # move "terminated" as well, lest games that end within the ten steps look endless
    return ten_steps


def student_hook(kind: str, student: QValueActor) -> RealTimeDistillTrainer:
    """The paper's loss for one student."""
    loss = StudentPQNLoss(student) if kind == "pqn" else StudentDQNLoss(student)
    return RealTimeDistillTrainer(loss, optimizer=partial(torch.optim.Adam, lr=LEARNING_RATE))


def replay_parts(kind: str, steps: int, workers: int) -> dict[str, Any]:
    """Arguments of a replay: all steps of a training, or one rollout that is read in passes."""
    size = STEPS_PER_WORKER * workers if kind == "pqn" else steps
    sampler = {"sampler": SamplerWithoutReplacement} if kind == "pqn" else {}
    return {"storage": partial(LazyTensorStorage, size), "batch_size": BATCH_SIZE, **sampler}


def local_replay(kind: str, steps: int, workers: int) -> TensorDictReplayBuffer:
    """A replay in this process."""
    parts = replay_parts(kind, steps, workers)
    return TensorDictReplayBuffer(**{name: make() if callable(make) else make for name, make in parts.items()})


def remote_replay(kind: str, steps: int, workers: int, ray_init_config: dict[str, Any] | None) -> RayReplayBuffer:
    """A replay in a Ray actor of its own; it starts Ray, or joins the cluster that is there."""
    return RayReplayBuffer(
        replay_buffer_cls=TensorDictReplayBuffer,
        ray_init_config=ray_init_config,
        remote_config={"num_cpus": 0},
        **replay_parts(kind, steps, workers),
    )


class ExploringActor(QValueActor):
    """Takes a random action in a share of its steps; it is told the share, since learners send weights alone."""

    epsilon = 1.0

    def explore(self, epsilon: float) -> None:
        """Set the share of random actions from now on."""
        self.epsilon = epsilon

    def forward(self, tensordict: TensorDictBase, **kwargs: Any) -> TensorDictBase:
        """Choose an action for every slot."""
        tensordict = super().forward(tensordict, **kwargs)
        action = tensordict["action"]
        explores = torch.rand(action.shape) < self.epsilon
        return tensordict.set("action", torch.where(explores, torch.randint_like(action, 2), action))


class LearnerState:
    """Takes the learners' part of a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: there is nothing to save."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state as it is."""
        self.state = state_dict
