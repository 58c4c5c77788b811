"""On games: a pull saves steps, a rate that follows the KL falls under it, a student that learns on keeps its level."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from hook_parts import TwoSteps, actor
from kickstart_parts import balancing
from on_policy_parts import make_env, policy
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torch.optim import Adam
from torchrl.collectors import Collector
from torchrl.data import Categorical as TensorCategorical
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs import RewardSum, TransformedEnv
from torchrl.modules import EGreedyModule, ProbabilisticActor, QValueActor, ValueOperator
from torchrl.objectives import ClipPPOLoss, DQNLoss, HardUpdate, KLAdaptiveLR
from torchrl.trainers.algorithms.dqn import DQNTrainer
from torchrl.trainers.algorithms.ppo import PPOTrainer

from torchrl_rtpd import DistillationLoss, DualNetworkCollector, Evaluator, Kickstarting, LinearSchedule, learn_on
from torchrl_rtpd.trainers.student import Student

ROLLOUT = 512  # 32 updates
LEVEL, RATE = 100.0, 3e-3


def trainer_of(learner: Any, rollouts: int, *, seed: int, rate: float = RATE) -> tuple[PPOTrainer, list[float]]:
    """PPO on CartPole, and the mean return of the games that end in each rollout, to be filled."""
    torch.manual_seed(seed)
    env = make_env(8)
    env.set_seed(seed)
    critic = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    loss = ClipPPOLoss(learner, ValueOperator(critic, in_keys=["observation"]))
    trainer = PPOTrainer(
        collector=Collector(
            env,
            learner,
            frames_per_batch=ROLLOUT,
            total_frames=ROLLOUT * rollouts,
            auto_register_policy_transforms=False,
        ),
        total_frames=ROLLOUT * rollouts,
        frame_skip=1,
        num_epochs=4,
        optim_steps_per_batch=None,
        loss_module=loss,
        optimizer=Adam(loss.parameters(), lr=rate),
        clip_norm=0.5,
        progress_bar=False,
        replay_buffer=TensorDictReplayBuffer(
            storage=LazyTensorStorage(ROLLOUT), sampler=SamplerWithoutReplacement(), batch_size=64
        ),
        log_actions=False,
        log_rewards=False,
    )
    returns: list[float] = []

    def keep(batch):
        returns.append(batch["next", "episode_reward"][batch["next", "done"]].mean().nan_to_num(500.0).item())

    trainer.register_op("pre_steps_log", keep)
    return trainer, returns


def pulled(trainer: PPOTrainer, coefficient: Any) -> None:
    pull = DistillationLoss(trainer.loss_module.actor_network, balancing(), teacher_temperature=1.0)
    Kickstarting(pull, distill_coeff=coefficient).register(trainer)


def rollouts_to(level: float, returns: list[float]) -> int:
    return next((number for number, value in enumerate(returns) if value >= level), len(returns))


def score(learner: TensorDictModule, episodes: int = 20) -> float:
    """Mean return of a policy without exploration."""
    evaluator = Evaluator(lambda: make_env(episodes), episodes=episodes, epsilon=0.0)
    found = evaluator(learner, seed=10_000_000).mean
    evaluator.close()
    return found


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are slower in several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_teacher_balances():
    """It holds the pole through whole games of 500 steps."""
    player = ProbabilisticActor(balancing(), in_keys=["logits"], distribution_class=Categorical)
    assert score(player) == 500.0


@pytest.mark.parametrize("seed", range(3))
def test_a_pull_saves_steps(seed):
    """With a pull that falls to 0 in 8 of 10 rollouts games last 100 steps two rollouts earlier, or more."""
    found = {}
    for name in ("alone", "kickstarted"):
        trainer, returns = trainer_of(policy(16, 7 + seed), 10, seed=seed)
        if name == "kickstarted":
            pulled(trainer, LinearSchedule(10.0, 0.0, end_updates=256))
        trainer.train()
        found[name] = rollouts_to(LEVEL, returns)
    assert found["kickstarted"] + 2 <= found["alone"] and found["kickstarted"] < 10


def test_a_rate_that_follows_the_kl_lowers_itself_under_a_pull():
    """Alone it never falls below its first value, and with the pull to less than half: the teacher stays twice as far.

    The rate is stepped by the KL of each rollout, with TorchRL's own factor.
    """
    lowest, divergences = {}, {}
    for name in ("alone", "pulled", "pulled at a fixed rate"):
        trainer, _ = trainer_of(policy(16, 7), 10, seed=0)
        rate, rates = KLAdaptiveLR(trainer.optimizer, target_kl=0.01), [RATE]
        if name != "alone":
            pulled(trainer, 10.0)

        def step(_, losses, rate=rate, rates=rates):
            rate.step(losses["kl_approx"])
            rates.append(rate.get_last_lr()[0])

        if "fixed" not in name:
            trainer.register_op("post_optim_complete_log", step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of this very combination
            trainer.train()
        lowest[name] = min(rates)
        divergences[name] = trainer._log_dict["kl_to_teacher"][-1] if name != "alone" else None
    assert lowest["alone"] == RATE and lowest["pulled"] < RATE / 2
    assert divergences["pulled"] > 2 * divergences["pulled at a fixed rate"]


def distilled(updates: int, seed: int) -> Student:
    """A policy that is taught to balance, on states that the teacher meets while every fifth action is random."""
    torch.manual_seed(seed)
    player = ProbabilisticActor(balancing(0.1), in_keys=["logits"], distribution_class=Categorical)
    env = make_env(8)
    env.set_seed(seed)
    states = env.rollout(250, player, break_when_any_done=False).reshape(-1).select("observation")
    learner = policy(16, 7 + seed)
    loss = DistillationLoss(learner, balancing(), teacher_temperature=1.0)
    student = Student("small", loss, partial(Adam, lr=1e-2))
    for _ in range(updates):
        student.learn(states[torch.randint(len(states), (128,))])
    return student


def test_a_distilled_policy_learns_on_by_ppo():
    """It plays whole games of 500 steps before, all along and after, where one from scratch is still far below."""
    student = distilled(600, seed=0)
    learner = student.loss.student_network
    assert score(learner) == 500.0
    trainer, returns = trainer_of(learner, 8, seed=0, rate=1e-3)
    weights = [parameter.clone() for parameter in learner.parameters()]
    learn_on(student, trainer, critic_warmup_updates=64)
    trainer.train()
    assert not any(torch.equal(*pair) for pair in zip(weights, learner.parameters(), strict=True))
    fresh, theirs = trainer_of(policy(16, 7), 8, seed=0, rate=1e-3)
    fresh.train()
    assert score(learner) >= 475.0
    assert min(returns) > 2 * max(theirs)


def two_steps_trainer(learner: QValueActor, batches: int) -> DQNTrainer:
    """DQN on the game of two steps, with random actions now and then."""
    torch.manual_seed(0)
    env = TransformedEnv(TwoSteps(8), RewardSum(in_keys=["reward"], out_keys=["reward_sum"]))
    exploration = EGreedyModule(TensorCategorical(2), eps_init=0.3, eps_end=0.3)
    frames = {"frames_per_batch": 32, "total_frames": 32 * batches}
    loss = DQNLoss(learner, action_space="categorical", delay_value=True)
    loss.make_value_estimator(gamma=0.9)
    return DQNTrainer(
        collector=DualNetworkCollector(env, learner, exploration=exploration, **frames),
        total_frames=32 * batches,
        frame_skip=1,
        optim_steps_per_batch=4,
        loss_module=loss,
        optimizer=Adam(loss.parameters(), lr=5e-3),
        replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(1_000), batch_size=32),
        target_net_updater=HardUpdate(loss, value_network_update_interval=20),
        greedy_module=exploration,
        progress_bar=False,
    )


def test_a_distilled_network_learns_on_by_dqn():
    """With discount 0.9 values are 0.9 and 0.45, 1 and 0, 0.2 and 0.5: as they were taught, so they stay throughout."""
    expected = torch.tensor([[0.9, 0.45], [1.0, 0.0], [0.2, 0.5]])
    states = TensorDict({"observation": torch.eye(3), ("teacher", "action_value"): expected}, [3])
    student = Student("small", DistillationLoss(actor(8, seed=1, features=3), divergence="mse"), partial(Adam, lr=2e-2))
    for _ in range(300):
        student.learn(states)
    learner = actor(8, seed=2, features=3)
    assert learner(states.clone())["action"].tolist() != [0, 0, 1]
    trainer = two_steps_trainer(learner, 20)
    learn_on(student, trainer)
    errors = []

    def check() -> None:
        values = learner(states.clone())["action_value"].detach()
        assert values.argmax(-1).tolist() == [0, 0, 1]
        errors.append((values - expected).abs().max().item())

    trainer.register_op("post_optim", check)
    trainer.train()
    assert len(errors) == 80 and max(errors) < 0.15
