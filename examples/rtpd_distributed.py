"""The same training with the environments elsewhere: in worker processes or Ray actors.

    python examples/rtpd_distributed.py                                  two worker processes, out of step
    python examples/rtpd_distributed.py --backend ray --workers 2 --sync
    python examples/rtpd_distributed.py --acting 0.3                     the student acts in 30 % of the steps
    python examples/rtpd_distributed.py --backend ray --learners 1       the updates are remote as well: with
                                                                 two workers on a machine of three cores or more

TorchRL distributes: the collector is its own, made by one constructor for every engine. The trainer sends the teacher's
weights to the workers after each batch, the hook the student's, where it acts. With remote learners the hook goes there
inside a stepper, the teacher alone acts, and the student comes back in a checkpoint. CartPole, about a minute.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scoreboard import begin, compare, report
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.checkpoint import Checkpoint
from torchrl.collectors.distributed import RayCollector
from torchrl.data import Categorical, LazyTensorStorage, RayReplayBuffer, TensorDictReplayBuffer
from torchrl.envs import EnvBase, GymEnv, RewardSum, SerialEnv
from torchrl.modules import MLP, EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, SoftUpdate
from torchrl.trainers import Trainer
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import DualNetworkCollector, RealTimeDistillStepper, RealTimeDistillTrainer, StudentDQNLoss

GAMMA = 0.98


def make_env(slots: int = 4) -> EnvBase:
    """CartPole, ``slots`` games side by side; a game ends after 500 steps at the latest, each worth 1."""
    games = SerialEnv(slots, partial(GymEnv, "CartPole-v1", categorical_action_encoding=True))
    return games.append_transform(RewardSum())


def make_actor(units: int) -> QValueActor:
    """Two hidden layers."""
    network = MLP(in_features=4, out_features=2, num_cells=[units, units], activation_class=torch.nn.ReLU)
    return QValueActor(network, in_keys=["observation"], spec=Categorical(2))


def teacher_loss(teacher: QValueActor) -> DQNLoss:
    """The teacher's loss: double DQN."""
    loss = DQNLoss(teacher, action_space="categorical", loss_function="smooth_l1", delay_value=True, double_dqn=True)
    loss.make_value_estimator(gamma=GAMMA)
    return loss


def student_hook(student: QValueActor) -> RealTimeDistillTrainer:
    """The paper's loss for one student."""
    loss = StudentDQNLoss(student)
    loss.make_value_estimator(gamma=GAMMA)
    return RealTimeDistillTrainer(loss, optimizer=partial(torch.optim.Adam, lr=2e-3))


def train(
    steps: int, *, seed: int, backend: str, workers: int, sync: bool, acting: float, backend_options: dict | None = None
) -> dict[str, TensorDictModule]:
    """Train both here, collect elsewhere; returns the networks."""
    torch.manual_seed(seed)
    teacher, student = make_actor(128), make_actor(16)
    exploration = EGreedyModule(Categorical(2), eps_end=0.05, annealing_num_steps=steps // 2)
    collector = DualNetworkCollector(
        make_env,
        teacher,
        student,
        acting=acting,
        acting_seed=seed,
        exploration=exploration,
        frames_per_batch=64 * workers,
        total_frames=steps,
        backend=backend,
        backend_options=backend_options,
        num_collectors=workers,
        sync=sync,
    )
    loss = teacher_loss(teacher)
    trainer = DQNTrainer(
        collector=collector,
        total_frames=steps,
        frame_skip=1,
        optim_steps_per_batch=8 * workers if sync else 8,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=1e-3),
        clip_norm=10.0,
        replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(steps), batch_size=128),
        target_net_updater=SoftUpdate(loss, tau=0.02),
        greedy_module=exploration,
        episode_reward_key="episode_reward",
        progress_bar=False,
    )
    student_hook(student).register(trainer)
    try:
        trainer.train()
    finally:
        collector.shutdown()
    return {"teacher": teacher, "student": student}


class ExploringActor(QValueActor):
    """Takes a random action in a tenth of its steps; its weights are the teacher's, as learners send them."""

    def forward(self, tensordict: TensorDictBase, **kwargs: Any) -> TensorDictBase:
        """Choose an action for every slot."""
        tensordict = super().forward(tensordict, **kwargs)
        action = tensordict["action"]
        explores = torch.rand(action.shape) < 0.1
        return tensordict.set("action", torch.where(explores, torch.randint_like(action, 2), action))


def train_remotely(
    steps: int, *, seed: int, workers: int, learners: int, backend_options: dict | None = None
) -> dict[str, TensorDictModule]:
    """Collect and train in Ray actors; returns the networks."""
    torch.manual_seed(seed)
    teacher, student = make_actor(128), make_actor(16)
    loss = teacher_loss(teacher)
    hook = student_hook(student)
    replay_buffer, collector = remote_parts(steps, teacher, workers, backend_options or {})
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            collector=collector,
            total_frames=steps,
            frame_skip=1,
            optim_steps_per_batch=8 * workers,
            loss_module=loss,
            optimizer=torch.optim.Adam(loss.parameters(), lr=1e-3),
            optimization_stepper=RealTimeDistillStepper(hook),
            clip_norm=10.0,
            replay_buffer=replay_buffer,
            target_net_updater=SoftUpdate(loss, tau=0.02),
            learner_backend="ray",
            learner_backend_options={"world_size": learners},
            checkpoint=Checkpoint(),
            save_trainer_file=Path(folder) / "checkpoint",
            save_trainer_interval=steps,
            progress_bar=False,
        )
        try:
            trainer.train()
            learned = LearnerState()
            Checkpoint(learner_execution=learned).load(Path(folder) / "checkpoint")
        finally:
            replay_buffer.shutdown()
    first_learner = learned.state["backend"]["ranks"][0]
    loss.load_state_dict(first_learner["loss_module"])
    hook.load_state_dict(first_learner["optimization_stepper"]["hook"])
    return {"teacher": teacher, "student": student}


def remote_parts(
    steps: int, teacher: QValueActor, workers: int, options: dict[str, Any]
) -> tuple[RayReplayBuffer, RayCollector]:
    """Replay buffer and collector as Ray actors, in this order, since the first one starts Ray."""
    replay_buffer = RayReplayBuffer(
        replay_buffer_cls=TensorDictReplayBuffer,
        storage=partial(LazyTensorStorage, steps),
        batch_size=128,
        ray_init_config=options.get("ray_init_config"),
        remote_config={"num_cpus": 0},
    )
    collector = RayCollector(
        [make_env] * workers,
        policy=ExploringActor(teacher.module[0].module, in_keys=["observation"], spec=Categorical(2)),
        frames_per_batch=64 * workers,
        total_frames=steps,
        sync=True,
        **options,
    )
    return replay_buffer, collector


class LearnerState:
    """Takes the learners' part of a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: there is nothing to save."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state as it is."""
        self.state = state_dict


def run(
    *,
    steps: int = 16_384,
    seed: int = 0,
    backend: str = "process",
    workers: int = 2,
    sync: bool = False,
    acting: float = 0.0,
    learners: int = 0,
    backend_options: dict[str, Any] | None = None,
    episodes: int = 50,
    out: Path | None = None,
) -> dict[str, Any]:
    """Train, score the last networks, report; returns the content of results.json."""
    where = {"seed": seed, "workers": workers, "backend_options": backend_options}
    if learners:
        networks = train_remotely(steps, learners=learners, **where)
    else:
        networks = train(steps, backend=backend, sync=sync, acting=acting, **where)
    scores = compare(make_env, networks, episodes=episodes, seed=seed)
    return report({"game": "CartPole-v1", "seed": seed, "steps": steps, **scores}, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=["process", "ray"], default="process")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sync", action="store_true", help="every batch holds a part from each worker")
    parser.add_argument("--acting", type=float, default=0.0, help="probability that the student acts")
    parser.add_argument("--learners", type=int, default=0, help="Ray actors that learn; 0 learns here")
    parser.add_argument("--steps", type=int, default=16_384, help="agent steps of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=50, help="games each network plays at the end")
    parser.add_argument("--out", type=Path, help="folder for results.json")
    options = vars(parser.parse_args())
    if options["learners"] and (options["backend"] != "ray" or options["acting"]):
        parser.error("--learners needs --backend ray, and the teacher acts.")
    begin()
    run(**options)


if __name__ == "__main__":
    main()
