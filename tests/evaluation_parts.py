"""Parts of the tests of evaluations: environments with games of known length, and policies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.data import Categorical, Composite, OneHot, Unbounded
from torchrl.envs import Compose, DoubleToFloat, EnvBase, GymEnv, RewardSum, SerialEnv, TransformedEnv
from torchrl.modules import QValueActor

from torchrl_rtpd.evaluation.evaluator import Evaluator
from torchrl_rtpd.evaluation.scores import Scores


class FixedLengths(EnvBase):
    """Slot ``i`` plays games of ``lengths[i]`` steps worth ``i + 1`` points each; it sees [slot, steps so far]."""

    def __init__(self, lengths: Sequence[int], *, num_actions: int = 2, one_hot: bool = False) -> None:
        slots = len(lengths)
        super().__init__(batch_size=[slots])
        self.lengths = torch.tensor(lengths)[:, None]
        self.actions: list[Tensor] = []
        flag = (slots, 1)
        self.observation_spec = Composite(
            observation=Unbounded((slots, 2)), episode_reward=Unbounded(flag), shape=[slots]
        )
        self.action_spec = (OneHot if one_hot else Categorical)(
            num_actions, shape=(slots, num_actions) if one_hot else (slots,)
        )
        self.reward_spec = Unbounded(flag)
        self.count = torch.zeros(flag, dtype=torch.long)
        self.points = torch.arange(1.0, slots + 1)[:, None]

    def _set_seed(self, seed: int | None) -> None:
        pass

    def _seen(self) -> dict[str, Tensor]:
        slot = torch.arange(len(self.count))[:, None]
        return {
            "observation": torch.cat([slot, self.count], -1).float(),
            "episode_reward": self.points * self.count,
        }

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        self.count = torch.zeros_like(self.count) if mask is None else torch.where(mask, 0, self.count)
        return TensorDict(self._seen(), [len(self.count)])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.actions.append(tensordict.get("action").clone())
        self.count = self.count + 1
        done = self.count >= self.lengths
        return TensorDict({**self._seen(), "reward": self.points, "done": done, "terminated": done}, [len(done)])


class PixelHash(nn.Module):
    """Action values that depend on every pixel and on nothing else."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.num_actions = num_actions

    def forward(self, pixels: Tensor) -> Tensor:
        total = pixels.flatten(1).sum(1, dtype=torch.int64)
        return nn.functional.one_hot((total // 7) % self.num_actions, self.num_actions).float()


class Refuses(nn.Module):
    """A network that must not be run."""

    def forward(self, observation: Tensor) -> Tensor:
        raise RuntimeError("this network was run")


class Remembers(nn.Module):
    """A network that remembers in which mode it ran, and fails when asked to."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.inner = nn.Dropout(0.5)
        self.modes: set[bool] = set()
        self.fails = fails

    def forward(self, observation: Tensor) -> Tensor:
        self.modes |= {self.training, self.inner.training}
        if self.fails:
            raise RuntimeError("no values today")
        return observation[..., :2]


def always(action: int, *, num_actions: int = 2, one_hot: bool = False) -> QValueActor:
    """A policy that takes one action whatever it sees."""
    network = nn.Linear(2, num_actions)
    nn.init.zeros_(network.weight)
    with torch.no_grad():
        network.bias.copy_(nn.functional.one_hot(torch.tensor(action), num_actions))
    return QValueActor(network, in_keys=["observation"], spec=(OneHot if one_hot else Categorical)(num_actions))


def cartpole() -> EnvBase:
    return TransformedEnv(
        SerialEnv(2, lambda: GymEnv("CartPole-v1", categorical_action_encoding=True)),
        Compose(DoubleToFloat(), RewardSum(in_keys=["reward"], out_keys=["episode_reward"])),
    )


def played(lengths: Sequence[int], episodes: int, max_steps: int = 1_000_000) -> Scores:
    return Evaluator(lambda: FixedLengths(lengths), episodes=episodes, max_steps=max_steps)(always(0))
