"""PQN learns a real game from images on one core, and a student of an eighth of its size with it."""

from __future__ import annotations

import warnings
from functools import partial

import gymnasium
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs import GymWrapper, RewardSum, TransformedEnv
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.trainers.algorithms.on_policy import OnPolicyTrainer

from torchrl_rtpd import (
    DualNetworkCollector,
    Evaluator,
    LambdaTargets,
    PQNLoss,
    RealTimeDistillTrainer,
    StudentPQNLoss,
)
from torchrl_rtpd.networks import num_parameters
from torchrl_rtpd.networks.norm import ChannelNorm

SLOTS, STEPS, BATCH = 64, 16, 128
ROLLOUT = SLOTS * STEPS


def make_env(slots: int) -> TransformedEnv:
    """MinAtar's Breakout (Young & Tian 2019): images ``[10, 10, 4]``, three actions, a point a brick."""
    minatar = pytest.importorskip("minatar.gym", reason="needs the dev extra")
    if "MinAtar/Breakout-v1" not in gymnasium.registry:
        minatar.register_envs()
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
    games = gymnasium.make_vec("MinAtar/Breakout-v1", slots, "sync", vector_kwargs=mode, use_minimal_action_set=True)
    return GymWrapper(games, categorical_action_encoding=True).append_transform(RewardSum())


class ImageNetwork(nn.Module):
    """Images ``[*B, 10, 10, C]`` to action values: a convolution, a dense layer, each with a norm over channels."""

    def __init__(self, filters: int, units: int, num_actions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(4, filters, 3), ChannelNorm(filters), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(64 * filters, units), ChannelNorm(units), nn.ReLU(), nn.Linear(units, num_actions)),
        )

    def forward(self, observation: Tensor) -> Tensor:
        images = observation.float().movedim(-1, -3)
        return self.layers(images.reshape(-1, *images.shape[-3:])).unflatten(0, images.shape[:-3])


def learned(seed: int, rollouts: int) -> tuple[QValueActor, QValueActor]:
    """A teacher and a student after that many rollouts of 1,024 steps."""
    torch.manual_seed(seed)
    env = make_env(SLOTS)
    env.set_seed(seed)
    spec = env.action_spec_unbatched
    teacher, student = (
        QValueActor(ImageNetwork(filters, units, spec.n), in_keys=["observation"], spec=spec)
        for filters, units in ((16, 128), (6, 40))
    )
    exploration = EGreedyModule(spec, 1.0, 0.02, annealing_num_steps=rollouts * ROLLOUT // 3)
    loss = PQNLoss(teacher)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = OnPolicyTrainer(
            collector=DualNetworkCollector(
                env,
                teacher,
                exploration=exploration,
                frames_per_batch=ROLLOUT,
                total_frames=rollouts * ROLLOUT,
                keep=["action_value"],
            ),
            total_frames=rollouts * ROLLOUT,
            frame_skip=1,
            optim_steps_per_batch=None,
            num_epochs=2,
            loss_module=loss,
            optimizer=torch.optim.RAdam(loss.parameters(), lr=1e-3),
            replay_buffer=TensorDictReplayBuffer(
                storage=LazyTensorStorage(ROLLOUT), sampler=SamplerWithoutReplacement(), batch_size=BATCH
            ),
            add_gae=False,
            clip_norm=10.0,
            progress_bar=False,
            episode_reward_key="episode_reward",
        )
    trainer.register_op("post_steps", lambda: exploration.step(ROLLOUT))
    LambdaTargets().register(trainer)
    RealTimeDistillTrainer(StudentPQNLoss(student), optimizer=partial(torch.optim.Adam, lr=1e-3)).register(trainer)
    trainer.train()
    return teacher, student


def scores(teacher: QValueActor, student: QValueActor) -> dict[str, float]:
    """Mean scores of 40 games: of both without exploration, and of a random player."""
    evaluator = Evaluator(partial(make_env, 40), episodes=40, epsilon=0.0, max_steps=1_000)
    means = {name: evaluator(actor).mean for name, actor in (("teacher", teacher), ("student", student))}
    return {**means, "random": evaluator(teacher, epsilon=1.0).mean}


def test_a_teacher_and_a_student_of_an_eighth_of_its_size_learn_a_real_game_of_images() -> None:
    """MinAtar's Breakout, 80,000 steps: three times the bricks of a random player, which hits one in two games."""
    teacher, student = learned(seed=0, rollouts=80)
    assert 7 * num_parameters(student) < num_parameters(teacher)
    found = scores(teacher, student)
    assert found["random"] < 0.8
    assert min(found["teacher"], found["student"]) > 3 * found["random"], found
