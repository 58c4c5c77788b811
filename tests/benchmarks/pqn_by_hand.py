"""A replay-free teacher and one student by hand: the plain loop that ``bench_pqn.py`` times ours against.

    python tests/benchmarks/pqn_by_hand.py --steps 10240

PQN (Gallici et al. 2024, https://arxiv.org/abs/2407.04811) in plain PyTorch on ALE's vector environment, without this
package: rollouts of ``N`` games and ``T`` steps, returns of each rollout, epochs of shuffled minibatches ``B`` from
which the teacher learns by its returns and the student by the divergence to the teacher's values. Prints
``{"steps_per_second": ...}``, agent steps a second without the first rollout, in which memory is taken.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

GAMMA, LAMBDA = 0.99, 0.65
TEMPERATURE = 0.1
NUMBERS = {"envs": 8, "rollout": 128, "batch": 256, "epochs": 4, "steps": 4_096, "threads": 2, "seed": 0}


class ChannelsNorm(nn.Module):
    """LayerNorm over the channels of each pixel, ``[B, C, H, W]``, or over units ``[B, C]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Normalise."""
        last = features.movedim(1, -1)
        return F.layer_norm(last, self.weight.shape, self.weight, self.bias, 1e-6).movedim(-1, 1)


def tower(filters: tuple[int, int, int], units: int, num_actions: int) -> nn.Sequential:
    """Nature-DQN layout with a norm before each ReLU: pixels ``[B, 4, 84, 84]`` in 0..1 to action values ``[B, A]``."""
    first, second, third = filters
    layers = nn.Sequential(
        *(nn.Conv2d(4, first, 8, stride=4), ChannelsNorm(first), nn.ReLU()),
        *(nn.Conv2d(first, second, 4, stride=2), ChannelsNorm(second), nn.ReLU()),
        *(nn.Conv2d(second, third, 3), ChannelsNorm(third), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(49 * third, units), ChannelsNorm(units), nn.ReLU()),
        nn.Linear(units, num_actions),
    )
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    layers[-1].weight.data.mul_(0.1)
    return layers.to(memory_format=torch.channels_last)


def scaled(pixels: Tensor) -> Tensor:
    """Bytes 0..255 to numbers 0..1, in the memory layout that convolutions like."""
    return pixels.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)


class Rollout:
    """What ``T`` steps of ``N`` games leave, a row a step; stacks are kept whole."""

    def __init__(self, steps: int, games: int) -> None:
        self.pixels = torch.empty(steps, games, 4, 84, 84, dtype=torch.uint8)
        self.action = torch.empty(steps, games, dtype=torch.int64)
        self.reward, self.over, self.worth = torch.empty(3, steps, games).unbind()

    def returns(self, last_worth: Tensor) -> Tensor:
        """Targets ``[T, N]``: lambda-returns that bootstrap with the greedy value, and end where a life is lost.

        Args:
            last_worth: greedy value of the state after the rollout, ``[N]``.
        """
        found = torch.empty_like(self.reward)
        for step in reversed(range(len(found))):
            ahead = last_worth
            if step + 1 < len(found):
                ahead = (1 - LAMBDA) * self.worth[step + 1] + LAMBDA * found[step + 1]
            found[step] = self.reward[step] + GAMMA * (1 - self.over[step]) * ahead
        return found


class Learner:
    """A network and its optimiser."""

    def __init__(self, network: nn.Module, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        self.network, self.optimizer = network, optimizer(network.parameters())

    def step(self, loss: Tensor, clip_norm: float | None = None) -> None:
        """One gradient step."""
        self.optimizer.zero_grad()
        loss.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), clip_norm)
        self.optimizer.step()


def make_learners(num_actions: int) -> tuple[Learner, Learner]:
    """Teacher and student, of the paper's sizes."""
    teacher = Learner(tower((32, 64, 64), 512, num_actions), lambda values: torch.optim.RAdam(values, lr=2.5e-4))
    student = tower((8, 8, 8), 64, num_actions)
    return teacher, Learner(student, lambda values: torch.optim.Adam(values, lr=1e-3, eps=1e-5, fused=True))


def learn(pixels: Tensor, action: Tensor, target: Tensor, teacher: Learner, student: Learner | None) -> None:
    """One update of both from a minibatch of states in 0..1 ``[B, 4, 84, 84]``, actions and targets ``[B]``."""
    values = teacher.network(pixels)
    teacher.step(0.5 * F.mse_loss(values.gather(1, action[:, None]).squeeze(1), target), clip_norm=10.0)
    if student is None:
        return
    wanted = F.log_softmax(values.detach() / TEMPERATURE, 1)
    own = F.log_softmax(student.network(pixels) / TEMPERATURE, 1)
    student.step(F.kl_div(own, wanted, log_target=True, reduction="batchmean"))


class Games:
    """Games side by side that go on from rollout to rollout."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.env = AtariVectorEnv(
            options.game, options.envs, num_threads=options.threads, autoreset_mode=AutoresetMode.SAME_STEP
        )
        self.num_actions = int(self.env.single_action_space.n)
        shown, info = self.env.reset(seed=options.seed)
        self.pixels, self.lives = torch.from_numpy(shown), info["lives"]

    @torch.no_grad()
    def play(self, network: nn.Module, epsilon: float, rollout: Rollout) -> Tensor:
        """Fill a rollout, and return the greedy value of the states after it, ``[N]``."""
        for step in range(len(rollout.reward)):
            rollout.worth[step], greedy = network(scaled(self.pixels)).max(1)
            explored = torch.rand(len(greedy)) < epsilon
            action = torch.where(explored, torch.randint(self.num_actions, greedy.shape), greedy)
            rollout.pixels[step], rollout.action[step] = self.pixels, action
            shown, reward, terminated, truncated, info = self.env.step(action.numpy())
            # A game is cut after 108,000 frames; none gets there here.
            rollout.over[step] = torch.from_numpy(terminated | truncated | (info["lives"] < self.lives))
            rollout.reward[step] = torch.from_numpy(reward)
            self.pixels, self.lives = torch.from_numpy(shown), info["lives"]
        return network(scaled(self.pixels)).max(1).values


def train(options: argparse.Namespace) -> dict[str, float]:
    """Play and learn, and time it from the second rollout on."""
    games = Games(options)
    teacher, student = make_learners(games.num_actions)
    student = None if options.alone else student
    rollout, size = Rollout(options.rollout, options.envs), options.rollout * options.envs
    updates, begin, begin_cpu = 0, 0.0, 0.0
    for number in range(options.steps // size):
        epsilon = max(0.01, 1 - 10 * number * size / options.steps)
        target = rollout.returns(games.play(teacher.network, epsilon, rollout)).flatten()
        pixels, action = rollout.pixels.flatten(0, 1), rollout.action.flatten()
        for _ in range(options.epochs):
            for chosen in torch.randperm(size).split(options.batch):
                learn(scaled(pixels[chosen]), action[chosen], target[chosen], teacher, student)
                updates += 1
        if not number:
            begin, begin_cpu = time.perf_counter(), time.process_time()
    steps = (options.steps // size - 1) * size
    speed, speed_cpu = steps / (time.perf_counter() - begin), steps / (time.process_time() - begin_cpu)
    return {"steps_per_second": speed, "steps_per_cpu_second": speed_cpu, "updates": updates}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, print the speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--alone", action="store_true", help="the teacher without a student")
    parser.add_argument("--keep_freed_memory", action="store_true", help="as the package's main example does")
    for name, default in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    if options.keep_freed_memory:  # the only thing here that is the package's: a setting of the C library
        from torchrl_rtpd.runs.process import keep_freed_memory

        keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    results = train(options)
    print(json.dumps(results))
    return results


if __name__ == "__main__":
    main()
