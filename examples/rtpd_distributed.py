"""The same training with the environments, and the updates, elsewhere: in worker processes or Ray actors.

    python examples/rtpd_distributed.py                                  two worker processes, out of step
    python examples/rtpd_distributed.py --teacher pqn --sync             a teacher without replay needs workers in step
    python examples/rtpd_distributed.py --acting 0.3                     the student acts in 30 % of the steps
    python examples/rtpd_distributed.py --backend ray --sync --learners 2 --out results/run
    python examples/rtpd_distributed.py --backend ray --sync --learners 2 --out results/run --resume

TorchRL and Ray distribute: collectors, learners and remote replay are TorchRL's. The trainer sends the teacher's
weights to the workers after each batch, the hook the student's, where it acts. With remote learners the hook goes there
in a stepper, the teacher alone acts, and the student comes back in a checkpoint. An actor that dies is named, and
--resume goes on from the newest checkpoint in --out. Ray's cluster is that of RAY_ADDRESS, or one of --cpus here.
CartPole; times and scores: docs/clusters.md.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from distributed_parts import (
    EPSILON,
    GAMMA,
    LAMBDA,
    RECIPES,
    STEPS_PER_WORKER,
    TAU,
    ExploringActor,
    LearnerState,
    local_replay,
    make_actor,
    make_env,
    make_exploration,
    make_optimizer,
    n_steps,
    remote_replay,
    student_hook,
    teacher_loss,
)
from scoreboard import begin, compare, report
from tensordict.nn import TensorDictModule
from torchrl.checkpoint import Checkpoint, CheckpointRotation
from torchrl.collectors.distributed import RayCollector
from torchrl.objectives import SoftUpdate
from torchrl.trainers import Trainer
from torchrl.trainers.algorithms.dqn import DQNTrainer
from torchrl.trainers.algorithms.on_policy import OnPolicyTrainer

from torchrl_rtpd import DualNetworkCollector, SaveCheckpoints
from torchrl_rtpd.trainers import AnnealExploration, LambdaTargets, RealTimeDistillStepper, dead_actors_named


def train(
    kind: str, steps: int, folder: Path, *, seed: int, backend: str, workers: int, sync: bool, acting: float,
    resume: bool, backend_options: dict[str, Any] | None = None,
) -> dict[str, TensorDictModule]:  # fmt: skip
    """Train both here, collect elsewhere; returns the networks."""
    torch.manual_seed(seed)
    teacher, student = make_actor(kind, 128), make_actor(kind, 16)
    collector = DualNetworkCollector(
        make_env,
        teacher,
        student,
        acting=acting,
        acting_seed=seed,
        exploration=make_exploration(kind, steps),
        frames_per_batch=STEPS_PER_WORKER * workers,
        total_frames=steps,
        postproc=n_steps(kind),
        backend=backend,
        backend_options=backend_options,
        num_collectors=workers,
        sync=sync,
    )
    trainer = local_trainer(kind, teacher, collector, steps, updates=RECIPES[kind].updates * (workers if sync else 1))
    student_hook(kind, student).register(trainer)
    saver = SaveCheckpoints(folder, every_steps=steps // 8, replay=True)
    saver.register(trainer)
    newest = saver.latest() if resume else None
    if newest is not None:
        saver.restore(newest)
    try:
        with dead_actors_named(trainer):
            trainer.train()
    finally:
        collector.shutdown()
    return {"teacher": teacher, "student": student}


def local_trainer(kind: str, teacher: TensorDictModule, collector: Any, steps: int, *, updates: int) -> Trainer:
    """TorchRL's trainer of a kind of teacher, which learns in this process."""
    loss, exploration = teacher_loss(kind, teacher), collector.dual_policy.exploration
    common = {
        "collector": collector,
        "total_frames": steps,
        "frame_skip": 1,
        "loss_module": loss,
        "optimizer": make_optimizer(kind, loss),
        "clip_norm": 10.0,
        "replay_buffer": local_replay(kind, steps, collector.num_workers),
        "episode_reward_key": "episode_reward",
        "progress_bar": False,
    }
    if kind == "dqn":
        common |= {"optim_steps_per_batch": updates, "target_net_updater": SoftUpdate(loss, tau=TAU)}
        return DQNTrainer(greedy_module=exploration, **common)
    common |= {"optim_steps_per_batch": None, "num_epochs": RECIPES[kind].epochs, "add_gae": False}
    trainer = OnPolicyTrainer(weight_update_map={"policy": "loss_module.actor_network"}, **common)
    trainer.exploration_module = exploration  # saved by this name
    AnnealExploration(exploration).register(trainer)  # as DQNTrainer does by itself
    LambdaTargets(gamma=GAMMA, lmbda=LAMBDA).register(trainer)
    return trainer


def train_remotely(
    kind: str, steps: int, folder: Path, *, seed: int, workers: int, learners: int, resume: bool,
    backend_options: dict[str, Any] | None = None,
) -> dict[str, TensorDictModule]:  # fmt: skip
    """Collect and train in Ray actors; returns the networks."""
    torch.manual_seed(seed)
    recipe, teacher, student = RECIPES[kind], make_actor(kind, 128), make_actor(kind, 16)
    loss, hook, options = teacher_loss(kind, teacher), student_hook(kind, student), dict(backend_options or {})
    replay = remote_replay(kind, steps, workers, options.get("ray_init_config"))  # starts Ray
    collector = RayCollector(
        [make_env] * workers,
        policy=make_actor(kind, 128, ExploringActor),
        frames_per_batch=STEPS_PER_WORKER * workers,
        total_frames=steps,
        postproc=n_steps(kind),
        sync=True,
        **options,
    )
    rotation = CheckpointRotation(folder, keep_last=2)
    trainer = Trainer(
        collector=collector,
        total_frames=steps,
        frame_skip=1,
        optim_steps_per_batch=recipe.updates * workers,
        num_epochs=recipe.epochs,
        loss_module=loss,
        optimizer=make_optimizer(kind, loss),
        optimization_stepper=RealTimeDistillStepper(hook),
        clip_norm=10.0,
        replay_buffer=replay,
        target_net_updater=SoftUpdate(loss, tau=TAU) if kind == "dqn" else None,
        learner_backend="ray",
        learner_backend_options={"world_size": learners},
        checkpoint=Checkpoint(),
        checkpoint_rotation=rotation,
        save_trainer_interval=steps // 8,
        progress_bar=False,
    )
    if kind == "pqn":
        LambdaTargets(gamma=GAMMA, lmbda=LAMBDA).register(trainer)
    for moment in ("setup", "post_steps"):
        trainer.register_op(moment, partial(_tell_exploration, kind, trainer))
    try:
        if resume and rotation.checkpoints():
            trainer.load_from_file(rotation.checkpoints()[-1])
        with dead_actors_named(trainer):
            trainer.train()
    finally:
        collector.shutdown()
        replay.shutdown()
    learned = LearnerState()
    Checkpoint(learner_execution=learned).load(rotation.checkpoints()[-1])
    first_learner = learned.state["backend"]["ranks"][0]
    loss.load_state_dict(first_learner["loss_module"])
    hook.load_state_dict(first_learner["optimization_stepper"]["hook"])
    return {"teacher": teacher, "student": student}


def _tell_exploration(kind: str, trainer: Trainer) -> None:
    """Tell the workers their share of random actions, by the number of steps so far."""
    done = trainer.collected_frames / (RECIPES[kind].annealed * trainer.total_frames)
    epsilon = max(EPSILON, 1 - (1 - EPSILON) * done)
    trainer.collector.map_fn("policy.explore", [(epsilon,)] * trainer.collector.num_workers)


def run(
    *,
    teacher: str = "dqn",
    steps: int | None = None,
    seed: int = 0,
    backend: str = "process",
    workers: int = 2,
    sync: bool = False,
    acting: float = 0.0,
    learners: int = 0,
    resume: bool = False,
    backend_options: dict[str, Any] | None = None,
    episodes: int = 50,
    out: Path | None = None,
) -> dict[str, Any]:
    """Train, score the last networks, report; returns the content of results.json."""
    steps = RECIPES[teacher].steps if steps is None else steps
    where = {"seed": seed, "workers": workers, "resume": resume, "backend_options": backend_options}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch if out is None else out) / "checkpoints"
        if learners:
            networks = train_remotely(teacher, steps, folder, learners=learners, **where)
        else:
            networks = train(teacher, steps, folder, backend=backend, sync=sync, acting=acting, **where)
    scores = compare(make_env, networks, episodes=episodes, seed=seed)
    about = {"game": "CartPole-v1", "algorithm": teacher, "seed": seed, "steps": steps}
    return report({**about, **scores}, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", choices=list(RECIPES), default="dqn", help="algorithm; pqn needs --sync")
    parser.add_argument("--backend", choices=["process", "ray"], default="process", help="of the workers; ray: actors")
    parser.add_argument("--workers", type=int, default=2, help="collectors")
    parser.add_argument("--sync", action="store_true", help="every batch holds a part from each worker")
    parser.add_argument("--acting", type=float, default=0.0, help="probability that the student acts")
    parser.add_argument("--learners", type=int, default=0, help="Ray actors that learn; 0 learns here")
    parser.add_argument(
        "--cpus", type=int, help="logical cores of a Ray that this script starts; default: the machine's"
    )
    parser.add_argument("--steps", type=int, help="agent steps of training; default: 49,152 of DQN, 65,536 of PQN")
    parser.add_argument("--seed", type=int, default=0, help="of networks and games")
    parser.add_argument("--episodes", type=int, default=50, help="games each network plays at the end")
    parser.add_argument("--out", type=Path, help="folder for results.json and checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out, if any")
    options = vars(parser.parse_args())
    if options["learners"] and (options["backend"] != "ray" or options["acting"] or not options["sync"]):
        parser.error("--learners needs --backend ray --sync, and the teacher acts.")
    if options["teacher"] == "pqn" and not options["sync"]:
        parser.error("--teacher pqn needs --sync: its targets are those of one rollout of all workers.")
    if options["resume"] and options["out"] is None:
        parser.error("--resume needs --out, the folder to go on from.")
    if options["backend"] == "ray" and find_spec("ray") is None:
        parser.error('--backend ray needs Ray; install it by pip install -e ".[ray]".')
    cpus = options.pop("cpus")
    if options["backend"] == "ray":
        options["backend_options"] = {"ray_init_config": {"num_cpus": cpus}, "remote_configs": {"num_cpus": 1}}
    begin()
    run(**options)


if __name__ == "__main__":
    main()
