"""Real-time policy distillation by hand: the whole method on one page of plain PyTorch, without this package.

    python examples/by_hand.py                                  ten minutes on two CPU cores; prints as it learns
    python examples/by_hand.py --game pong --steps 40000 --td 0

A DQN teacher plays. It and one student, of 1.8 % of its size, learn from the same minibatches (Sun & Fazli 2019,
https://arxiv.org/abs/1912.12630). Left out is what a run of days needs: checkpoints, several students, evaluations on a
schedule, guards. The settings are those of the quick preset of ``rtpd_atari.py``, but for fewer steps and one update of
the student; n-step returns, falling learning rates and recycling are left out. Shapes: ``B`` samples, ``A`` actions,
``N`` games side by side.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

GAMMA = 0.98
TEMPERATURE = 0.1  # of both networks, in units of action values
TARGET_EVERY = 200  # updates between two copies into the target networks
NUMBERS = {"steps": 14_400, "start": 1_600, "envs": 8, "batch": 16, "every": 2, "threads": 2, "seed": 0}
NUMBERS |= {"games": 8, "longest": 2_000}  # at the end, and steps after which a game there is cut


# --- Networks -------------------------------------------------------------------------------------------------------


def tower(filters: tuple[int, int, int], units: int, num_actions: int) -> nn.Sequential:
    """Nature-DQN layout: pixels ``[B, 4, 84, 84]``, scaled to 0..1, to action values ``[B, A]``."""
    first, second, third = filters
    layers = nn.Sequential(
        *(nn.Conv2d(4, first, 8, stride=4), nn.ReLU()),
        *(nn.Conv2d(first, second, 4, stride=2), nn.ReLU()),
        *(nn.Conv2d(second, third, 3, stride=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(49 * third, units), nn.ReLU(), nn.Linear(units, num_actions)),
    )
    for parameter in layers.parameters():  # for ReLU: with PyTorch's own first weights the smallest student dies
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        else:
            nn.init.zeros_(parameter)
    layers[-1].weight.data.mul_(0.1)  # values begin near zero
    return layers.to(memory_format=torch.channels_last)


def scaled(pixels: Tensor) -> Tensor:
    """Bytes 0..255 to numbers 0..1, in the memory layout that convolutions like."""
    return pixels.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)


class Learner:
    """A network, its target network (an older copy, never trained) and its optimiser."""

    def __init__(self, network: nn.Module, *, lr: float, eps: float) -> None:
        self.network = network
        self.target = copy.deepcopy(network).requires_grad_(False)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=lr, eps=eps, fused=True)

    def step(self, loss: Tensor, clip_norm: float | None = None) -> None:
        """One gradient step."""
        self.optimizer.zero_grad()
        loss.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), clip_norm)
        self.optimizer.step()


# --- Replay: one frame a step, stacks of four rebuilt when sampled ----------------------------------------------------


@dataclass
class Batch:
    """A minibatch: stacks ``[B, 4, 84, 84]`` scaled to 0..1, all others ``[B]``."""

    pixels: Tensor
    action: Tensor
    reward: Tensor
    over: Tensor  # 1 where nothing follows: a life or the game was lost
    next_pixels: Tensor


class Replay:
    """The newest steps of every game, oldest overwritten: arrays ``[rows, N, ...]``."""

    def __init__(self, rows: int, games: int) -> None:
        self.rows, self.games, self.written = rows, games, 0
        self.frame = torch.zeros(rows, games, 84, 84, dtype=torch.uint8)
        self.age = torch.zeros(rows, games, dtype=torch.int64)  # steps since the game began
        self.action = torch.zeros(rows, games, dtype=torch.int64)
        self.reward = torch.zeros(rows, games)
        self.over = torch.zeros(rows, games)

    def write(self, frame: Tensor, age: Tensor, action: Tensor, reward: Tensor, over: Tensor) -> None:
        """Store a step of every game."""
        row = self.written % self.rows
        self.frame[row], self.age[row], self.action[row] = frame, age, action
        self.reward[row], self.over[row] = reward, over
        self.written += 1

    def stacks(self, row: Tensor, game: Tensor) -> Tensor:
        """Four frames ``[B, 4, 84, 84]``, oldest first; black where the game had not begun yet."""
        back = torch.arange(3, -1, -1)
        frames = self.frame[(row[:, None] - back) % self.rows, game[:, None]]
        return frames * (back <= self.age[row % self.rows, game][:, None])[..., None, None]

    def sample(self, size: int) -> Batch:
        """Transitions, uniformly."""
        oldest = max(self.written - self.rows, 0) + 3
        row, game = torch.randint(oldest, self.written - 1, (size,)), torch.randint(self.games, (size,))
        held = row % self.rows, game
        now, then = scaled(self.stacks(row, game)), scaled(self.stacks(row + 1, game))
        return Batch(now, self.action[held], self.reward[held], self.over[held], then)


# --- The two losses ---------------------------------------------------------------------------------------------------


def td_error(values: Tensor, next_values: Tensor, next_action: Tensor, batch: Batch) -> Tensor:
    """``|r + gamma Q(s', a') - Q(s, a)|``, squared near zero; the next action is whoever's choice it is."""
    following = next_values.gather(1, next_action[:, None]).squeeze(1)
    wanted = batch.reward + GAMMA * (1 - batch.over) * following
    return F.smooth_l1_loss(values.gather(1, batch.action[:, None]).squeeze(1), wanted)


def divergence(teacher_values: Tensor, student_values: Tensor) -> Tensor:
    """Eq. 1: ``KL(teacher || student)`` of the policies softmax(Q / temperature); summed over actions, mean over B."""
    teacher_log_probs = F.log_softmax(teacher_values / TEMPERATURE, dim=1)
    student_log_probs = F.log_softmax(student_values / TEMPERATURE, dim=1)
    return F.kl_div(student_log_probs, teacher_log_probs, log_target=True, reduction="batchmean")


def learn(batch: Batch, teacher: Learner, student: Learner, td: float) -> tuple[Tensor, Tensor]:
    """One update of both from one minibatch; returns the KL and the share of states with the same greedy action."""
    # The teacher is a plain DQN (Eq. 2) and never knows that somebody learns from it.
    with torch.no_grad():
        next_values = teacher.target(batch.next_pixels)
        next_action = next_values.argmax(1)
    teacher_values = teacher.network(batch.pixels)
    teacher.step(td_error(teacher_values, next_values, next_action, batch), clip_norm=10.0)

    # The student learns from the values that the teacher has just computed; detached, no gradient reaches the teacher.
    teacher_values = teacher_values.detach()
    student_values = student.network(batch.pixels)
    kl = loss = divergence(teacher_values, student_values)
    if td:  # Eq. 3 and 5, self-learning by imitation: the teacher chooses the next action, the student values it
        with torch.no_grad():
            next_values = student.target(batch.next_pixels)
        loss = loss + td * td_error(student_values, next_values, next_action, batch)
    student.step(loss)
    return kl.detach(), (teacher_values.argmax(1) == student_values.argmax(1)).float().mean()


# --- The run ----------------------------------------------------------------------------------------------------------


def make_games(options: argparse.Namespace, count: int) -> AtariVectorEnv:
    """Games side by side; one that ends begins again in the same step."""
    mode = AutoresetMode.SAME_STEP
    return AtariVectorEnv(options.game, count, num_threads=options.threads, autoreset_mode=mode)


def train(options: argparse.Namespace) -> tuple[Learner, Learner, dict[str, float]]:
    """Play, learn, and time it from the first update on."""
    env = make_games(options, options.envs)
    num_actions, games = int(env.single_action_space.n), options.envs
    teacher = Learner(tower((32, 64, 64), 512, num_actions), lr=5e-4, eps=1.5e-4)
    student = Learner(tower((8, 8, 8), 64, num_actions), lr=5e-4, eps=1e-5)
    replay = Replay(options.steps // games, games)
    pixels, info = env.reset(seed=options.seed)
    age, lives = torch.zeros(games, dtype=torch.int64), info["lives"]
    updates, begin, kl, agreement = 0, time.perf_counter(), 0.0, 0.0
    for step in range(games, options.steps + 1, games):
        # 1. The teacher acts and explores; before the first update everything is random.
        action = torch.randint(num_actions, (games,))
        if step > options.start:
            with torch.no_grad():
                greedy = teacher.network(scaled(torch.from_numpy(pixels))).argmax(1)
            epsilon = max(0.02, 1 - 2 * step / options.steps)
            action = torch.where(torch.rand(games) < epsilon, action, greedy)
        # 2. The replay keeps the newest frame; the three before it are there already.
        frame = torch.from_numpy(pixels[:, -1].copy())
        pixels, reward, terminated, truncated, info = env.step(action.numpy())
        ended = terminated | truncated  # a game is cut after 108,000 frames; none gets there here
        over = torch.from_numpy((ended | (info["lives"] < lives)).astype(np.float32))
        replay.write(frame, age, action, torch.from_numpy(reward.astype(np.float32)), over)
        age, lives = torch.where(torch.from_numpy(ended), 0, age + 1), info["lives"]
        # 3. Both learn from the same minibatches; now and then the targets catch up.
        if step <= options.start:
            begin = time.perf_counter()
            continue
        for _ in range(games // options.every):
            kl, agreement = learn(replay.sample(options.batch), teacher, student, options.td)
            updates += 1
            if updates % TARGET_EVERY == 0:
                for learner in (teacher, student):
                    learner.target.load_state_dict(learner.network.state_dict())
                print(f"step {step:,}: KL {kl:.3f}, agreement {agreement:.2f}")
    speed = (options.steps - options.start) / (time.perf_counter() - begin)
    return teacher, student, {"steps_per_second": speed, "updates": updates}


@torch.no_grad()
def play(network: nn.Module, options: argparse.Namespace) -> float:
    """Mean score of one game a slot with 5 % random actions, in rewards of -1, 0 and 1."""
    env = make_games(options, options.games)
    pixels, _ = env.reset(seed=10_000_000 + options.seed)
    score, going = np.zeros(options.games), np.ones(options.games, dtype=bool)
    for _ in range(options.longest):
        action = network(scaled(torch.from_numpy(pixels))).argmax(1)
        explored = torch.randint(int(env.single_action_space.n), action.shape)
        action = torch.where(torch.rand(action.shape) < 0.05, explored, action)
        pixels, reward, terminated, truncated, _ = env.step(action.numpy())
        score += reward * going
        going &= ~(terminated | truncated)
        if not going.any():
            break
    return float(score.mean())


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train both, play both; the last line that is printed is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="road_runner")
    parser.add_argument("--td", type=float, default=1.0, help="weight of the student's own TD error; 0 leaves it out")
    for name, default in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    teacher, student, results = train(options)
    if options.games:
        results |= {name: play(who.network, options) for name, who in {"teacher": teacher, "student": student}.items()}
    print(json.dumps(results))
    return results


if __name__ == "__main__":
    main()
