"""The main example's work in plain PyTorch over ALE's own vector environment: what a careful user writes by hand.

    python tests/benchmarks/plain_rtpd.py --game road_runner --steps 4000 --start 1000

A DQN teacher and, from the same minibatch and the same forward pass, one student by its forward KL. No TensorDict, no
trainer, no metrics. Prints ``{"steps_per_second": ...}``, agent steps a second from the first update on.
"""

from __future__ import annotations

import argparse
import copy
import json
import time

import numpy as np
import torch
import torch.nn.functional as F
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from torchrl_rtpd.networks.towers import TOWERS
from torchrl_rtpd.runs.process import keep_freed_memory

GAMMA, TEMPERATURE, TARGET_EVERY = 0.99, 0.1, 200


def tower(name: str, num_actions: int) -> nn.Module:
    """One of the paper's networks on scaled pixels, in channels-last memory."""
    (first, second, third), units = TOWERS[name]
    layers = [
        *(nn.Conv2d(4, first, 8, 4), nn.ReLU()),
        *(nn.Conv2d(first, second, 4, 2), nn.ReLU()),
        *(nn.Conv2d(second, third, 3, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(49 * third, units), nn.ReLU(), nn.Linear(units, num_actions)),
    ]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def scaled(pixels: Tensor) -> Tensor:
    """Frames ``[B, 4, 84, 84]`` as the networks want them."""
    return pixels.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)


class Frames:
    """The last steps of every slot, one frame each: ``[rows, slots, ...]``."""

    def __init__(self, rows: int, slots: int) -> None:
        self.rows, self.slots, self.written = rows, slots, 0
        self.frame = torch.zeros(rows, slots, 84, 84, dtype=torch.uint8)
        self.depth = torch.zeros(rows, slots, dtype=torch.int64)  # older frames of the same game
        self.action = torch.zeros(rows, slots, dtype=torch.int64)
        self.reward = torch.zeros(rows, slots)
        self.over = torch.zeros(rows, slots)

    def write(self, frame: Tensor, depth: Tensor, action: Tensor, reward: Tensor, over: Tensor) -> None:
        """Store a step of every slot."""
        row = self.written % self.rows
        self.frame[row], self.depth[row], self.action[row] = frame, depth, action
        self.reward[row], self.over[row] = reward, over
        self.written += 1

    def stacks(self, row: Tensor, slot: Tensor) -> Tensor:
        """``[B, 4, 84, 84]``, older frames of another game repeated from this one."""
        behind = torch.minimum(torch.arange(3, -1, -1), self.depth[row % self.rows, slot][:, None])
        return self.frame[(row[:, None] - behind) % self.rows, slot[:, None]]

    def sample(self, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Stacks, actions, rewards, ends and the stacks that follow."""
        oldest = max(self.written - self.rows, 0) + 3
        row = torch.randint(oldest, self.written - 1, (batch,))
        slot = torch.randint(self.slots, (batch,))
        place = row % self.rows
        then = self.stacks(row + 1, slot)
        return self.stacks(row, slot), self.action[place, slot], self.reward[place, slot], self.over[place, slot], then


def main() -> None:
    """Play, learn, print the speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="road_runner")
    parser.add_argument("--keep", action="store_true", help="keep freed memory, as the main example does")
    numbers = {"steps": 4_000, "start": 1_000, "envs": 8, "batch": 32, "every": 4, "threads": 2, "seed": 0}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.keep:
        keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    env = AtariVectorEnv(
        options.game,
        options.envs,
        num_threads=options.threads,
        episodic_life=True,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    num_actions = int(env.single_action_space.n)
    teacher, student = tower("teacher", num_actions), tower("net17", num_actions)
    target = copy.deepcopy(teacher).requires_grad_(False)
    teacher_optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-4, eps=1.5e-4, fused=True)
    student_optimizer = torch.optim.Adam(student.parameters(), lr=5e-4, eps=1e-5, fused=True)
    replay = Frames(options.steps // options.envs, options.envs)
    pixels = env.reset(seed=options.seed)[0]
    depth = torch.zeros(options.envs, dtype=torch.int64)
    updates, begin = 0, 0.0
    for step in range(options.envs, options.steps + 1, options.envs):
        with torch.no_grad():
            greedy = teacher(scaled(torch.from_numpy(pixels))).argmax(1)
        explore = torch.rand(options.envs) < max(0.01, 1 - step / options.steps)
        action = torch.where(explore, torch.randint(num_actions, (options.envs,)), greedy)
        frame = torch.from_numpy(pixels[:, -1].copy())
        pixels, reward, terminated, truncated, _ = env.step(action.numpy())
        over = torch.from_numpy(terminated.astype(np.float32))
        replay.write(frame, depth, action, torch.from_numpy(reward.astype(np.float32)), over)
        depth = torch.where(torch.from_numpy(terminated | truncated), 0, depth + 1)
        if step <= options.start:
            begin = time.perf_counter()
            continue
        for _ in range(options.envs // options.every):
            now, taken, gained, ended, then = replay.sample(options.batch)
            now, then = scaled(now), scaled(then)
            with torch.no_grad():
                wanted = gained + GAMMA * (1 - ended) * target(then).max(1).values
            values = teacher(now)
            F.smooth_l1_loss(values.gather(1, taken[:, None]).squeeze(1), wanted).backward()
            teacher_optimizer.step()
            teacher_optimizer.zero_grad()
            soft = F.log_softmax(values.detach() / TEMPERATURE, 1)
            found = F.log_softmax(student(now) / TEMPERATURE, 1)
            F.kl_div(found, soft, log_target=True, reduction="batchmean").backward()
            student_optimizer.step()
            student_optimizer.zero_grad()
            updates += 1
            if updates % TARGET_EVERY == 0:
                target.load_state_dict(teacher.state_dict())
    seconds = time.perf_counter() - begin
    print(json.dumps({"steps_per_second": (options.steps - options.start) / seconds, "updates": updates}))


if __name__ == "__main__":
    main()
