"""Parts of the tests of trainer hooks: small trainers, students and what of them is compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.optim import Adam
from torchrl.data import (
    Categorical,
    Composite,
    LazyTensorStorage,
    PrioritizedSampler,
    TensorDictReplayBuffer,
    Unbounded,
)
from torchrl.envs import Compose, DoubleToFloat, EnvBase, GymEnv, RewardSum, SerialEnv, TransformedEnv
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, HardUpdate
from torchrl.trainers import DefaultOptimizationStepper, ReplayBufferTrainer, TargetNetUpdaterHook, Trainer
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd.collectors.collector import DualNetworkCollector
from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.networks.towers import Tower, make_actor
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss
from torchrl_rtpd.replay.buffer import make_replay_buffer
from torchrl_rtpd.replay.storage import FrameStackStorage
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.stepper import RealTimeDistillStepper

Students = dict[str, DistillationLoss]
FAST = partial(Adam, lr=1e-2)
HARD = partial(HardUpdate, value_network_update_interval=4)
TINY = Tower((4, 4, 4), 16)


class TwoSteps(EnvBase):
    """Games of two steps; the observation is the state, one-hot.

    From state 0, action 0 leads to state 1 and action 1 to state 2, without reward. There the game ends: state 1 pays
    1 for action 0 and 0 for action 1, state 2 pays 0.2 and 0.5.
    """

    rewards = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.2, 0.5]])

    def __init__(self, slots: int) -> None:
        super().__init__(batch_size=[slots])
        self.observation_spec = Composite(observation=Unbounded((slots, 3)), shape=[slots])
        self.action_spec = Categorical(2, shape=(slots,))
        self.reward_spec = Unbounded((slots, 1))
        self.state = torch.zeros(slots, dtype=torch.long)

    def _set_seed(self, seed: int | None) -> None:
        pass

    def _observation(self) -> Tensor:
        return nn.functional.one_hot(self.state, 3).float()

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        self.state = torch.zeros_like(self.state) if mask is None else torch.where(mask.view(-1), 0, self.state)
        return TensorDict({"observation": self._observation()}, self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action, done = tensordict["action"], (self.state > 0)[:, None]
        reward = self.rewards[self.state, action][:, None]
        self.state = torch.where(self.state == 0, 1 + action, self.state)
        return TensorDict(
            {"observation": self._observation(), "reward": reward, "done": done, "terminated": done}, self.batch_size
        )


class Watching(StudentDQNLoss):
    """The student's loss, with a list of what it was given and what it returned."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches: list[TensorDictBase] = []
        self.results: list[TensorDictBase] = []

    def forward(self, tensordict: TensorDictBase, **kwargs: Any) -> TensorDictBase:
        self.batches.append(tensordict.copy())
        self.results.append(super().forward(tensordict, **kwargs))
        return self.results[-1].copy()


def actor(hidden: int = 16, *, seed: int, features: int = 4, layer: Callable[[], nn.Module] = nn.ReLU) -> QValueActor:
    """A small network whose weights come from a seed of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(features, hidden), layer(), nn.Linear(hidden, 2))
    return QValueActor(network, in_keys=["observation"], spec=Categorical(2))


def student_loss(hidden: int = 8, *, seed: int = 1, **kwargs: Any) -> StudentDQNLoss:
    return StudentDQNLoss(actor(hidden, seed=seed), **kwargs)


def fleet(count: int) -> Students:
    """Students of different sizes, divergences and temperatures."""
    losses = {
        "small": student_loss(4, seed=1),
        "pure": DistillationLoss(actor(8, seed=2), divergence="mse"),
        "large": student_loss(32, seed=3, divergence="reverse_kl", teacher_temperature="auto", imitation=False),
    }
    return dict(list(losses.items())[:count])


def cartpole(slots: int = 2, seed: int = 0) -> EnvBase:
    env = SerialEnv(slots, lambda: GymEnv("CartPole-v1", categorical_action_encoding=True))
    env = TransformedEnv(env, Compose(DoubleToFloat(), RewardSum(in_keys=["reward"], out_keys=["reward_sum"])))
    env.set_seed(seed)
    return env


def cartpole_trainer(
    *,
    steps: int = 120,
    warmup_steps: int = 0,
    steps_per_batch: int = 20,
    updates_per_batch: int = 3,
    double_dqn: bool = False,
    seed: int = 0,
    updater: Callable[[DQNLoss], Any] = HARD,
    layer: Callable[[], nn.Module] = nn.ReLU,
    prioritized: bool = False,
    loss_class: type[DQNLoss] = DQNLoss,
    **kwargs: Any,
) -> DQNTrainer:
    """A stock DQN trainer on CartPole with a stock replay buffer."""
    torch.manual_seed(seed)
    teacher = actor(seed=100 + seed, layer=layer)
    exploration = EGreedyModule(Categorical(2), annealing_num_steps=200)
    collector = DualNetworkCollector(
        cartpole(seed=seed),
        teacher,
        exploration=exploration,
        frames_per_batch=steps_per_batch,
        total_frames=steps,
        init_random_frames=warmup_steps,
    )
    loss = loss_class(teacher, action_space="categorical", delay_value=True, double_dqn=double_dqn)
    loss.make_value_estimator(gamma=0.9)
    sampler = {"sampler": PrioritizedSampler(1_000, alpha=0.6, beta=0.4)} if prioritized else {}
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(1_000), batch_size=8, priority_key="td_error", **sampler)
    return DQNTrainer(
        collector=collector,
        total_frames=steps,
        frame_skip=1,
        optim_steps_per_batch=updates_per_batch,
        loss_module=loss,
        optimizer=Adam(loss.parameters(), lr=1e-2),
        replay_buffer=buffer,
        target_net_updater=updater(loss),
        greedy_module=exploration,
        progress_bar=False,
        **kwargs,
    )


def atari_trainer(
    *,
    game: str = "pong",
    steps: int = 96,
    warmup_steps: int = 0,
    updates_per_batch: int = 2,
    teacher: Tower | str = TINY,
    batch_size: int = 8,
    capacity: int = 64,
    max_frames: int = 60,
    annealing_steps: int = 100,
    loss_class: type[DQNLoss] = DQNLoss,
) -> DQNTrainer:
    """A stock DQN trainer on short Atari games with our environment and replay storage."""
    torch.manual_seed(0)
    env = AtariVecEnv(game, 2, seed=0, max_frames=max_frames)
    network = make_actor(teacher, env.action_spec, seed=100)
    exploration = EGreedyModule(env.action_spec_unbatched, eps_end=0.1, annealing_num_steps=annealing_steps)
    collector = DualNetworkCollector(
        env,
        network,
        exploration=exploration,
        frames_per_batch=16,
        total_frames=steps,
        init_random_frames=warmup_steps,
    )
    loss = loss_class(network, action_space="categorical", loss_function="smooth_l1", delay_value=True)
    loss.set_keys(terminated="end_of_life")
    loss.make_value_estimator(gamma=0.99)
    return DQNTrainer(
        collector=collector,
        total_frames=steps,
        frame_skip=1,
        optim_steps_per_batch=updates_per_batch,
        loss_module=loss,
        optimizer=Adam(loss.parameters(), lr=1e-3, eps=1.5e-4),
        replay_buffer=make_replay_buffer(
            FrameStackStorage(capacity, num_envs=2, steps_per_write=8), batch_size=batch_size
        ),
        target_net_updater=HardUpdate(loss, value_network_update_interval=4),
        greedy_module=exploration,
        episode_reward_key="episode_reward",
        progress_bar=False,
    )


def atari_students(count: int) -> Students:
    sizes = [Tower((2, 2, 2), 8), Tower((4, 8, 4), 8), Tower((8, 8, 8), 64)]
    losses = {}
    for seed, size in enumerate(sizes[:count]):
        losses[f"student{seed}"] = StudentDQNLoss(make_actor(size, Categorical(6), seed=seed))
        losses[f"student{seed}"].set_keys(terminated="end_of_life")
    return losses


def trained(trainer: Trainer, students: Students | None, **kwargs: Any) -> RealTimeDistillTrainer | None:
    """Run the trainer to its end, with these students."""
    hook = None
    if students:
        kwargs.setdefault("optimizer", FAST)
        hook = RealTimeDistillTrainer(students, **kwargs)
        hook.register(trainer)
    trainer.train()
    return hook


def content(value: Any) -> Any:
    """A state as nested plain values, so that ``==`` compares it bit for bit."""
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(value.shape), value.detach().cpu().contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return {key: content(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [content(item) for item in value]
    return value


def teacher_state(trainer: Trainer) -> dict:
    """Everything the teacher is: parameters, targets, optimiser, target counter and the random stream it leaves."""
    return content(
        {
            "loss": dict(trainer.loss_module.state_dict()),
            "network": dict(trainer.loss_module.value_network.state_dict()),
            "optimizer": trainer.optimizer.state_dict(),
            "target": trainer.target_net_updater.state_dict(),
            "random": torch.get_rng_state(),
            "updates": trainer._optim_count,
        }
    )


def student_state(hook: RealTimeDistillTrainer, name: str) -> dict:
    state = hook.state_dict()
    return content({part: dict(state[part]).get(name) for part in ("students", "optimizers", "target_updaters")})


def minibatches(trainer: Trainer, count: int) -> list[TensorDictBase]:
    """Minibatches of a trainer that has run."""
    return [trainer.replay_buffer.sample() for _ in range(count)]


def filled(trainer: Trainer) -> Trainer:
    """The trainer, with a buffer that holds random steps."""
    rollout = cartpole().rollout(20, break_when_any_done=False)
    trainer.replay_buffer.extend(rollout.reshape(-1))
    return trainer


def update(trainer: Trainer, hook: RealTimeDistillTrainer, batch: TensorDictBase) -> None:
    """One update of teacher and students by hand."""
    losses = trainer.loss_module(batch)
    losses["loss"].backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    trainer.target_net_updater.step()
    hook.step(batch)


def dead(loss: StudentDQNLoss, units: int) -> StudentDQNLoss:
    """Switch off the first units of the hidden layer."""
    with torch.no_grad():
        loss.student_network.module[0].module[0].weight[:units] = 0.0
        loss.student_network.module[0].module[0].bias[:units] = -1.0
    return loss


def base_trainer(
    students: Students, *, stepper: bool, prioritized: bool = False
) -> tuple[Trainer, RealTimeDistillTrainer]:
    """TorchRL's base trainer, with the students in a hook or in its optimisation step."""
    donor = cartpole_trainer(prioritized=prioritized)
    hook = RealTimeDistillTrainer(students, optimizer=FAST, metrics_every_updates=1)
    step = RealTimeDistillStepper(hook) if stepper else DefaultOptimizationStepper()
    trainer = Trainer(
        collector=donor.collector,
        total_frames=120,
        frame_skip=1,
        optim_steps_per_batch=3,
        loss_module=donor.loss_module,
        optimizer=donor.optimizer,
        optimization_stepper=step,
        replay_buffer=donor.replay_buffer,
        target_net_updater=donor.target_net_updater,
        progress_bar=False,
    )
    trainer.donor = donor  # whose end would close the collector
    buffer = ReplayBufferTrainer(donor.replay_buffer, batch_size=8, flatten_tensordicts=True)
    trainer.register_op("batch_process", buffer.extend)
    trainer.register_op("process_optim_batch", buffer.sample)
    trainer.register_op("post_optim", TargetNetUpdaterHook(donor.target_net_updater))
    if not stepper:
        hook.register(trainer)
    return trainer, hook
