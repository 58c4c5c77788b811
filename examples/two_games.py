"""One small student of two live teachers, each of which learns an Atari game of its own, in one run.

    python examples/two_games.py
    python examples/two_games.py --games pong breakout --steps 2000 --seed 1 --out results/two_games

Both games are played side by side and fill one replay. Each transition says whose it is (``teacher_id``), by which the
network of both teachers runs the right one. The student, net17, sees the frames alone. Games differ in their actions:
both offer all 18, of which an ``action_mask`` allows those that do something. Several teachers of one student:
Parisotto et al. 2016, https://arxiv.org/abs/1511.06342.

A minute and a half of a CPU core. That is too short for good scores, and young teachers may lose to a random player:
what shows is that the student follows both. With seeds 0 and 1 it agrees with the teacher of Demon Attack in 72 % and
50 % of the states, where the teacher's one favourite action would in 60 % and 32 %; with that of Crazy Climber in 87 %
and 75 %, instead of 65 % and 68 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scoreboard import begin, compare, report
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer, TensorSpec
from torchrl.envs import EnvBase, SerialEnv, UnaryTransform
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, HardUpdate
from torchrl.trainers import LRSchedulerHook
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import (
    AtariVecEnv,
    DistillationLoss,
    DualNetworkCollector,
    Evaluator,
    RealTimeDistillTrainer,
    TeacherByKey,
    make_actor,
)
from torchrl_rtpd.evaluation import agreement_with_teacher, favourite_action_share, regret_of_students

GAMES = ("demon_attack", "crazy_climber")  # in which a young teacher has preferences within minutes
SLOTS = 4  # games of each kind, side by side
STEPS_PER_BATCH = 80  # agent steps, of all games together
UPDATES_PER_BATCH = 20
GAMMA = 0.99
TEMPERATURE = 0.003  # of the teachers


def make_game(games: Sequence[str], number: int, slots: int, *, seed: int | None = None, **options: Any) -> EnvBase:
    """One of the games with all 18 actions, a mask of its own ones, and its number."""
    env = AtariVecEnv(games[number], slots, full_action_space=True, num_threads=1, seed=seed, **options)
    own = AtariVecEnv(games[number], 1, num_threads=1)
    legal = torch.tensor([name in own.action_meanings for name in env.action_meanings])
    own.close()

    def mask(flag: Tensor) -> Tensor:
        return legal.expand(*flag.shape[:-1], len(legal)).clone()

    def teacher(flag: Tensor) -> Tensor:
        return torch.full_like(flag, number, dtype=torch.long)

    # Observations, so that the next state has them as well.
    env = env.append_transform(UnaryTransform(["end_of_life"], ["action_mask"], fn=mask))
    return env.append_transform(UnaryTransform(["end_of_life"], ["teacher_id"], fn=teacher))


def masked(network: TensorDictModule, spec: TensorSpec) -> QValueActor:
    """An actor that takes the best action of those that the game has."""
    return QValueActor(network, spec=spec, action_mask_key="action_mask")


def build(games: Sequence[str], steps: int, *, tower: str, seed: int) -> tuple[DQNTrainer, dict[str, QValueActor]]:
    """A trainer of both teachers and of their student, and what plays: each teacher by its game, and the student."""
    torch.manual_seed(seed)
    makers = [partial(make_game, games, number, SLOTS, seed=100 * seed + number) for number in range(len(games))]
    env = SerialEnv(len(games), makers)
    spec = env.action_spec_unbatched
    teachers = {game: make_actor(tower, spec, seed=10 * seed + number) for number, game in enumerate(games)}
    student = make_actor("net17", spec, seed=10 * seed + 9)
    trainer = trainer_of(env, masked(TeacherByKey(teachers), spec), steps)
    # Sharp targets, since the values of young teachers hardly differ between actions.
    losses = {"net17": DistillationLoss(student, teacher_temperature=TEMPERATURE)}
    hook = RealTimeDistillTrainer(losses, optimizer=partial(torch.optim.Adam, lr=1e-3, eps=1e-5), updates_per_step=2)
    hook.register(trainer)
    # Teachers have settled after two thirds of the run, so that the student follows policies that stay.
    for name, optimizer, share in (("teachers", trainer.optimizer, 2 / 3), ("net17", hook.optimizers["net17"], 1.0)):
        fall = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(falling, batches=share * steps / STEPS_PER_BATCH))
        LRSchedulerHook(fall).register(trainer, name=f"lr_scheduler.{name}")
    return trainer, {name: masked(actor[0], spec) for name, actor in {**teachers, "net17": student}.items()}


def falling(batch: int, batches: float) -> float:
    """Factor of a learning rate, which falls from 1 to 0."""
    return max(0.0, 1 - batch / batches)


def trainer_of(env: EnvBase, policy: QValueActor, steps: int) -> DQNTrainer:
    """TorchRL's DQN trainer; both teachers are one network to it, which plays and learns."""
    exploration = EGreedyModule(
        env.action_spec_unbatched, eps_end=0.1, annealing_num_steps=steps // 2, action_mask_key="action_mask"
    )
    loss = DQNLoss(policy, action_space="categorical", loss_function="smooth_l1", delay_value=True)
    loss.set_keys(terminated="end_of_life")
    loss.make_value_estimator(gamma=GAMMA)
    return DQNTrainer(
        collector=DualNetworkCollector(
            env, policy, exploration=exploration, frames_per_batch=STEPS_PER_BATCH, total_frames=steps
        ),
        total_frames=steps,
        frame_skip=1,
        optim_steps_per_batch=UPDATES_PER_BATCH,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=5e-4, eps=1.5e-4),
        clip_norm=10.0,
        replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(min(steps, 8_192)), batch_size=32),
        target_net_updater=HardUpdate(loss, value_network_update_interval=100),
        greedy_module=exploration,
        episode_reward_key="episode_reward",
        progress_bar=False,
    )


def followed(
    games: Sequence[str], number: int, networks: dict[str, QValueActor], *, episodes: int, max_frames: int, seed: int
) -> dict[str, float]:
    """Agreement and regret over the actions that a game has, on states that half of the time a random player chose.

    ``favourite`` is the agreement of a student that knows nothing but the action which the teacher takes most often.
    """
    make_env = partial(make_game, games, number, episodes, max_frames=max_frames)
    evaluator = Evaluator(make_env, episodes=episodes, epsilon=0.5)
    teacher, student = networks[games[number]], {"net17": networks["net17"]}
    states = evaluator(teacher, seed=20_000_000 + seed, keep_observations=1_024).observations
    evaluator.close()
    return {
        "agreement": agreement_with_teacher(teacher, student, states)["net17"],
        "favourite": favourite_action_share(teacher, states),
        "regret": regret_of_students(teacher, student, states)["net17"],
    }


def run(
    *,
    games: Sequence[str] = GAMES,
    steps: int = 8_000,
    tower: str = "net2",
    seed: int = 0,
    episodes: int = 4,
    max_frames: int = 4_000,
    out: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Train, score the last networks game by game, report; returns the contents of results.json by game."""
    trainer, networks = build(games, steps, tower=tower, seed=seed)
    trainer.train()
    results = {}
    for number, game in enumerate(games):
        played: dict[str, Any] = {"episodes": episodes, "seed": seed}
        rivals = {"teacher": networks[game], "net17": networks["net17"]}
        compared = compare(partial(make_game, games, number, max_frames=max_frames), rivals, **played)
        follows = followed(games, number, networks, max_frames=max_frames, **played)
        print(f"\n{game}:")
        about = {"game": game, "games": list(games), "seed": seed, "steps": steps, "follows": follows}
        results[game] = report({**about, **compared}, None if out is None else out / game)
        print(
            "The student follows this teacher: " + ", ".join(f"{name} {value:.2f}" for name, value in follows.items())
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--games", nargs=2, default=GAMES, help="ALE's names of the games")
    parser.add_argument("--steps", type=int, default=8_000, help="agent steps of training, of both games together")
    parser.add_argument("--tower", default="net2", help="size of each teacher: teacher, net1, net2, ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=4, help="games each network plays at the end")
    parser.add_argument("--max-frames", type=int, default=4_000, help="emulator frames after which such a game is cut")
    parser.add_argument("--out", type=Path, help="folder for results.json of each game")
    options = vars(parser.parse_args())
    begin()
    run(**options)


if __name__ == "__main__":
    main()
