"""A far smaller network that learns CartPole by PPO, kickstarted by a teacher, beside one that learns alone.

    python examples/kickstart.py
    python examples/kickstart.py --seed 1 --out results/kickstart

Schmitt et al. 2018 (https://arxiv.org/abs/1803.03835): a teacher is trained, then frozen. The student plays for itself,
and its own PPO loss and the pull to the teacher share one optimiser step. The pull falls to nothing over the first
half; from then on the student learns alone. A network of the same size and the same weights learns without a teacher.

A minute on an idle CPU core. The networks scored are the last ones, on 50 games without exploration, of at most 500.
The steps to a return count games played in training, with exploration. Runs of three seeds: docs/methods.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from drop_in_ppo import make_env, make_network, make_policy
from scoreboard import begin, compare, report
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.trainers.algorithms.ppo import PPOTrainer

from torchrl_rtpd import DistillationLoss, Kickstarting, LinearSchedule

STEPS_PER_BATCH = 512  # agent steps, of all slots together
EPOCHS, MINIBATCH = 4, 64
RATE = 2e-3
PULL = 10.0  # at first; a weaker one is lost beside the policy gradient
GOOD_RETURN = 195.0  # mean over a batch's games; what counted as solved when games ended after 200 steps


def build(steps: int, policy: ProbabilisticActor, *, seed: int) -> tuple[PPOTrainer, list[list[float]]]:
    """A stock trainer of a policy, and what it will play: agent steps so far, and mean return of a batch's games."""
    torch.manual_seed(seed)
    env = make_env(8)
    env.set_seed(seed)
    critic = ValueOperator(make_network(64, 1, seed=seed + 1), in_keys=["observation"])
    loss = ClipPPOLoss(policy, critic, clip_epsilon=0.2, entropy_coeff=0.01)
    optimizer = torch.optim.Adam(loss.parameters(), lr=RATE)
    batches = steps / STEPS_PER_BATCH
    trainer = PPOTrainer(
        collector=Collector(
            env,
            policy,
            frames_per_batch=STEPS_PER_BATCH,
            total_frames=steps,
            auto_register_policy_transforms=False,
        ),
        total_frames=steps,
        frame_skip=1,
        num_epochs=EPOCHS,
        optim_steps_per_batch=None,  # as many as an epoch has minibatches
        loss_module=loss,
        optimizer=optimizer,
        # By time, to nothing at the end. A rate that follows the policy's KL would fall under the pull.
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda batch: max(0.0, 1 - batch / batches)),
        clip_norm=0.5,
        progress_bar=False,
        replay_buffer=TensorDictReplayBuffer(
            storage=LazyTensorStorage(STEPS_PER_BATCH), sampler=SamplerWithoutReplacement(), batch_size=MINIBATCH
        ),
        log_actions=False,
    )
    played: list[list[float]] = []

    def keep_returns(batch: TensorDictBase) -> None:
        returns = batch["next", "episode_reward"][batch["next", "done"]]
        if returns.numel():
            played.append([trainer.collected_frames, returns.mean().item()])

    trainer.register_op("pre_steps_log", keep_returns)
    return trainer, played


def kickstart(trainer: PPOTrainer, student: ProbabilisticActor, teacher: ProbabilisticActor, updates: int) -> None:
    """Pull the trainer's policy to a frozen teacher, less and less, until so many updates."""
    # Of policies the parts that write logits are compared, at the temperature at which they act.
    pull = DistillationLoss(student, teacher, teacher_temperature=1.0)
    Kickstarting(pull, distill_coeff=LinearSchedule(PULL, 0.0, end_updates=updates)).register(trainer)


def steps_to(played: list[list[float]], level: float = GOOD_RETURN) -> float | None:
    """Agent steps until a batch's games reached a mean return; None if none did."""
    return next((steps for steps, value in played if value >= level), None)


def train(
    steps: int, *, seed: int, teacher_steps: int
) -> tuple[dict[str, TensorDictModule], dict[str, list[list[float]]]]:
    """Train a teacher, a kickstarted student and one alone; returns the networks, and what each played."""
    networks: dict[str, TensorDictModule] = {"teacher": make_policy(128, seed=seed)}
    returns: dict[str, list[list[float]]] = {}
    trainer, returns["teacher"] = build(teacher_steps, networks["teacher"], seed=seed)
    trainer.train()
    networks["teacher"].requires_grad_(False).eval()
    for name in ("kickstarted", "alone"):
        student = networks[name] = make_policy(16, seed=seed + 1_000)
        trainer, returns[name] = build(steps, student, seed=seed + 1)
        if name == "kickstarted":
            updates = EPOCHS * steps // MINIBATCH
            kickstart(trainer, student, networks["teacher"], updates // 2)
        trainer.train()
    return networks, returns


def run(
    *,
    steps: int = 24 * STEPS_PER_BATCH,
    teacher_steps: int = 48 * STEPS_PER_BATCH,
    seed: int = 0,
    episodes: int = 50,
    out: Path | None = None,
) -> dict[str, Any]:
    """Train all three, score the last networks, report; returns the content of results.json."""
    start = time.perf_counter()
    networks, returns = train(steps, seed=seed, teacher_steps=teacher_steps)
    seconds = round(time.perf_counter() - start, 1)
    results = {"game": "CartPole-v1", "seed": seed, "steps": steps, "teacher_steps": teacher_steps, "seconds": seconds}
    reached = {name: steps_to(played) for name, played in returns.items()}
    scores = compare(make_env, networks, episodes=episodes, seed=seed)
    results |= {"good_return": GOOD_RETURN, "steps_to_good_return": reached, "returns": returns}
    results = report({**results, **scores}, out)
    for name in ("kickstarted", "alone"):
        print(f"{name}: a mean return of {GOOD_RETURN:.0f} after {reached[name] or 'more than ' + str(steps)} steps")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=24 * STEPS_PER_BATCH, help="agent steps of each student")
    parser.add_argument("--teacher-steps", type=int, default=48 * STEPS_PER_BATCH, help="agent steps of the teacher")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=50, help="games each network plays at the end")
    parser.add_argument("--out", type=Path, help="folder for results.json")
    options = vars(parser.parse_args())
    begin()
    run(**options)


if __name__ == "__main__":
    main()
