"""Train variants of one tiny student on one teacher, in the same run, to find the settings that keep it alive.

    python -m docs.pages.train_students --seed 0                    docs/results/students/seed0.json
    python -m docs.pages.train_students --study students_norm ...   with LayerNorm and without, in a folder of its own
    python -m docs.pages                                            and their blocks in the pages

The run is the quick preset of ``examples/rtpd_atari.py`` on Road Runner with one hook a variant. Hooks do not disturb
each other or the teacher, so every variant of a seed follows the same teacher through the same minibatches and differs
in one setting only. All networks are played at the end, on the same games.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torchrl.modules import QValueActor

from docs.pages.students import GAMES
from torchrl_rtpd import (
    AtariVecEnv,
    DistillationLoss,
    DormancyCheck,
    Evaluator,
    RealTimeDistillTrainer,
    RecyclingCheck,
    StudentDQNLoss,
    make_actor,
)
from torchrl_rtpd.evaluation.scores import agreement_with_teacher
from torchrl_rtpd.functional.scores import normalised_score
from torchrl_rtpd.networks.recycling import UnitRecycler
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json
from torchrl_rtpd.schedules import KLGate

ROOT = Path(__file__).resolve().parents[2]
ALONE = ["method=teacher_only", "game=road_runner"]
sys.path.insert(0, str(ROOT / "examples"))
import rtpd_atari  # noqa: E402

MEASURES = ("dormant", "agreement", "kl_to_teacher")


@dataclass
class Variant:
    """One student and its differences from the main example's."""

    tower: str = "net17"
    norm: Literal["layer"] | None = None
    loss: dict[str, Any] = field(default_factory=dict)
    td: bool = True
    learning_rate: float = 5e-4
    eps: float = 1e-5
    he_init: bool = True
    hook: Callable[[int, int], dict[str, Any]] = lambda updates, actions: {}  # from the run's updates and actions


def recycled(**options: Any) -> Callable[[int, int], dict[str, Any]]:
    """ReDo until the learning rate settles."""

    def checks(updates: int, actions: int) -> dict[str, Any]:
        recycler = UnitRecycler(until_updates=int(0.75 * updates), **options)
        return {"checks": [DormancyCheck(), RecyclingCheck(recycler)]}

    return checks


VARIANTS = {
    "as in the example": Variant(),
    "PyTorch's initialisation, Adam eps 1e-8": Variant(he_init=False, eps=1e-8),
    "no TD": Variant(td=False),
    "no TD, PyTorch's initialisation, Adam eps 1e-8": Variant(td=False, he_init=False, eps=1e-8),
    "no TD, temperatures 0.01 and 1": Variant(td=False, loss={"teacher_temperature": 0.01, "student_temperature": 1.0}),
    "no TD, ReDo": Variant(td=False, hook=recycled()),
    "ReDo": Variant(hook=recycled()),
    "ReDo, Adam's count begun again": Variant(hook=recycled(reset_step=True)),
    "gradient clipped to norm 1": Variant(hook=lambda updates, actions: {"clip_norm": 1.0}),
    "KL gate, floor 0.1": Variant(
        hook=lambda updates, actions: {"schedules": {"distill_coeff": KLGate(actions, floor=0.1)}}
    ),
    "temperatures 0.3": Variant(loss={"teacher_temperature": 0.3}),
    "temperature auto": Variant(loss={"teacher_temperature": "auto"}),
    "learning rate 1e-3": Variant(learning_rate=1e-3),
    "two updates a minibatch": Variant(hook=lambda updates, actions: {"updates_per_step": 2}),
}

NORM_VARIANTS = {
    "net17, plain": Variant(),
    "net17, LayerNorm": Variant(norm="layer"),
    "net17, ReDo": Variant(hook=recycled(reset_step=True)),
    "net17, PyTorch's initialisation": Variant(he_init=False),
    "net17, PyTorch's initialisation, LayerNorm": Variant(he_init=False, norm="layer"),
    "net5, plain": Variant(tower="net5"),
    "net5, LayerNorm": Variant(tower="net5", norm="layer"),
}

STUDIES = {"students": VARIANTS, "students_norm": NORM_VARIANTS}
"""Variants by the name of the folder that holds their results."""


def student_network(variant: Variant, env: AtariVecEnv, seed: int) -> QValueActor:
    """The student, with the same first weights in every variant of a seed."""
    network = make_actor(variant.tower, env.action_spec, seed=1_000 * seed + 1, norm=variant.norm)
    if not variant.he_init:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1_000 * seed + 1)
            for layer in network.modules():
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    layer.reset_parameters()
    return network


def student_loss(variant: Variant, config: Any, network: QValueActor) -> DistillationLoss:
    """The student's loss."""
    options = {"teacher_temperature": config.temperature, "student_temperature": None, **variant.loss}
    if not variant.td:
        return DistillationLoss(network, **options)
    loss = StudentDQNLoss(network, imitation=True, loss_function=config.loss_function, **options)
    loss.set_keys(terminated="end_of_life")
    loss.make_value_estimator(gamma=config.gamma)
    return loss


def run(seed: int, threads: int, overrides: list[str], variants: Mapping[str, Variant]) -> dict[str, Any]:
    """Train one teacher and all variants; play them."""
    start = time.perf_counter()
    with initialize_config_dir(str(ROOT / "examples" / "config"), version_base="1.3"):
        config = compose("rtpd_atari", [*ALONE, f"seed={seed}", f"threads={threads}", *overrides])
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    env = AtariVecEnv(config.game, config.num_envs, num_threads=threads, seed=1_000 * seed)
    networks = rtpd_atari.build_networks(config, env)
    trainer, _ = rtpd_atari.build_trainer(config, env, networks, None)
    updates = (config.total_steps - config.warmup_steps) // config.steps_per_update
    curves: dict[str, dict[str, list[float]]] = {}
    for index, (name, variant) in enumerate(variants.items()):
        networks[name] = student_network(variant, env, seed)
        student = f"student_{index}"
        hook = RealTimeDistillTrainer(
            {student: student_loss(variant, config, networks[name])},
            optimizer=partial(torch.optim.Adam, lr=variant.learning_rate, eps=variant.eps, fused=True),
            **variant.hook(updates, env.action_spec.space.n),
        )
        hook.register(trainer, f"distill_{index}")
        rtpd_atari.settle(config, trainer, student, hook.optimizers[student], config.student_settles)
        curves[name] = {"steps": [], **{measure: [] for measure in MEASURES}}
        trainer.register_op("post_steps", partial(follow, trainer, hook, student, curves[name]))
    trainer.train()
    return {
        "seed": seed,
        "game": config.game,
        "steps": trainer.collected_frames,
        "updates": trainer._optim_count,
        "parameters": {name: sum(value.numel() for value in networks[name].parameters()) for name in variants},
        "curves": curves,
        **play(config, networks, threads, seed),
        "seconds": round(time.perf_counter() - start),
        "environment": run_environment(config.device),
    }


def follow(trainer: Any, hook: RealTimeDistillTrainer, student: str, curve: dict[str, list[float]]) -> None:
    """Note a student's last averages every 1,000 steps."""
    steps = trainer.collected_frames
    if hook.metrics and steps >= 1_000 * (len(curve["steps"]) + 1):
        curve["steps"].append(steps)
        for measure in MEASURES:
            curve[measure].append(hook.metrics[f"distill/{student}/{measure}"])


def play(config: Any, networks: dict[str, QValueActor], threads: int, seed: int) -> dict[str, Any]:
    """Scores of all networks as they are, and the students' agreement on states the teacher meets."""
    evaluator = Evaluator(
        partial(AtariVecEnv, config.game, GAMES, num_threads=threads, max_frames=4 * config.max_episode_steps),
        episodes=GAMES,
        epsilon=config.evaluation_epsilon,
        seed=10_000_000 + seed,
    )
    scores = {name: evaluator(network, keep_observations=512) for name, network in networks.items()}
    random_score = evaluator(networks["teacher"], epsilon=1.0).mean
    evaluator.close()
    students = {name: network for name, network in networks.items() if name != "teacher"}
    agreements = agreement_with_teacher(networks["teacher"], students, scores["teacher"].observations)
    teacher_score = scores["teacher"].mean
    return {
        "random_score": random_score,
        "teacher_score": teacher_score,
        "students": {
            name: {
                "score": scores[name].mean,
                "standard_error": scores[name].standard_error,
                "normalised": normalised_score(scores[name].mean, random_score, teacher_score),
                "agreement": agreements[name],
            }
            for name in students
        },
    }


def main() -> None:
    """Train a seed and save its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=list(STUDIES), default="students")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="of the example's configuration, such as total_steps=3200")
    options = parser.parse_args()
    folder = ROOT / "docs" / "results" / options.study
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / f"seed{options.seed}.json",
        run(options.seed, options.threads, options.overrides, STUDIES[options.study]),
    )


if __name__ == "__main__":
    main()
