"""Parts of the tests of collectors: an environment whose data tell where they come from, and actors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import Categorical, Composite, LazyTensorStorage, OneHot, TensorDictReplayBuffer, Unbounded
from torchrl.envs import Compose, DoubleToFloat, EnvBase, GymEnv, RewardSum, SerialEnv, TransformedEnv
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, HardUpdate
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd.collectors.collector import DualNetworkCollector
from torchrl_rtpd.envs import AtariVecEnv

ENVIRONMENT_KEYS = [
    "action",
    ("collector", "traj_ids"),
    "done",
    ("next", "done"),
    ("next", "observation"),
    ("next", "reward"),
    ("next", "terminated"),
    ("next", "truncated"),
    "observation",
    "terminated",
    "truncated",
]


class Tape(EnvBase):
    """Two slots; an observation reads 100 * slot + 10 * game + step. Games have 3 steps in slot 0, 5 in slot 1."""

    lengths = torch.tensor([[3], [5]])

    def __init__(self, one_hot: bool = False) -> None:
        super().__init__(batch_size=[2])
        self.observation_spec = Composite(observation=Unbounded((2, 1)), shape=[2])
        self.action_spec = OneHot(2, shape=(2, 2)) if one_hot else Categorical(2, shape=(2,))
        self.reward_spec = Unbounded((2, 1))
        self.game = torch.full((2, 1), -1)
        self.step_count = torch.zeros(2, 1, dtype=torch.long)

    def _set_seed(self, seed: int | None) -> None:
        pass

    def _observation(self) -> Tensor:
        return (100 * torch.tensor([[0], [1]]) + 10 * self.game + self.step_count).float()

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        mask = torch.ones(2, 1, dtype=torch.bool) if mask is None else mask
        self.game = self.game + mask
        self.step_count = torch.where(mask, 0, self.step_count)
        return TensorDict({"observation": self._observation()}, [2])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.step_count = self.step_count + 1
        done = self.step_count >= self.lengths
        reward = torch.ones(2, 1)
        return TensorDict({"observation": self._observation(), "reward": reward, "done": done, "terminated": done}, [2])


def actor(features: int = 4, num_actions: int = 2, *, seed: int = 0, hidden: int = 8) -> QValueActor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, num_actions))
    return QValueActor(network, in_keys=["observation"], spec=Categorical(num_actions))


def always(action: int, *, num_actions: int = 2, one_hot: bool = False) -> QValueActor:
    """A policy that takes one action whatever it sees."""
    network = nn.Linear(1, num_actions)
    nn.init.zeros_(network.weight)
    with torch.no_grad():
        network.bias.copy_(nn.functional.one_hot(torch.tensor(action), num_actions))
    return QValueActor(network, in_keys=["observation"], spec=(OneHot if one_hot else Categorical)(num_actions))


def observations(slots: int = 8, features: int = 1) -> TensorDict:
    return TensorDict({"observation": torch.randn(slots, features)}, [slots])


def cartpole(seed: int = 0) -> EnvBase:
    env = SerialEnv(2, lambda: GymEnv("CartPole-v1", categorical_action_encoding=True))
    env = TransformedEnv(env, Compose(DoubleToFloat(), RewardSum(in_keys=["reward"], out_keys=["reward_sum"])))
    env.set_seed(seed)
    return env


def collected(collector: Collector) -> Iterator[TensorDictBase]:
    """Copies of a collector's batches, since its buffers are reused."""
    for batch in collector:
        yield batch.clone()
    collector.shutdown()


def trainer_of(
    collector: Collector,
    teacher: QValueActor,
    exploration: EGreedyModule | None,
    frames: int = 40,
    *,
    replay_buffer: TensorDictReplayBuffer | None = None,
    async_collection: bool = False,
) -> DQNTrainer:
    """A stock trainer."""
    if replay_buffer is None:
        replay_buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(frames), batch_size=10)
    loss = DQNLoss(teacher, action_space="categorical", delay_value=True)
    return DQNTrainer(
        collector=collector,
        total_frames=frames,
        frame_skip=1,
        optim_steps_per_batch=1,
        loss_module=loss,
        optimizer=torch.optim.SGD(loss.parameters(), lr=0.1),
        target_net_updater=HardUpdate(loss, value_network_update_interval=10),
        replay_buffer=replay_buffer,
        greedy_module=exploration,
        progress_bar=False,
        async_collection=async_collection,
        enable_logging=not async_collection,
    )


class _Counted(nn.Module):
    """Values whose best action is the weight."""

    def __init__(self, num_actions: int = 6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.num_actions = num_actions

    def forward(self, pixels: Tensor) -> Tensor:
        values = (torch.arange(self.num_actions) == self.weight).float()
        return values.expand(*pixels.shape[:-3], self.num_actions)


def _counting_run(overlap: bool, rollout_steps: int, **kwargs: object) -> list[TensorDictBase]:
    """Batches of a teacher whose action is the number of batches the caller has learned from."""
    env = AtariVecEnv("pong", 2, seed=0)
    teacher = QValueActor(_Counted(), in_keys=["pixels"], spec=Categorical(6))
    batches = []
    frames = 2 * rollout_steps
    collector = DualNetworkCollector(
        env, teacher, frames_per_batch=frames, total_frames=4 * frames, overlap=overlap, **kwargs
    )
    for number, batch in enumerate(collector):
        batches.append(batch.clone())
        nn.init.constant_(teacher.module[0].module.weight, number + 1)
        collector.update_policy_weights_()
    collector.shutdown()
    return batches
