"""Real-time policy distillation on an Atari game: one run trains a teacher and distils students from it.

    python examples/rtpd_atari.py                                   the quick run, ten minutes on two CPU cores
    python examples/rtpd_atari.py game=pong students=[net1,net5] seed=3
    python examples/rtpd_atari.py preset=paper game=breakout device=cuda cudagraph=true
    python examples/rtpd_atari.py method=two_stage                  the teacher first, then the students; see methods.py
    python examples/rtpd_atari.py resume=outputs/...                a run that was interrupted, from its last checkpoint

Everything a run leaves lies in ``output_dir``: results.json, table.md, metrics.csv, curves.png, front.png, config.yaml,
weights/, checkpoints/ and TensorBoard events. The keys are explained in config/rtpd_atari.yaml. Method: Sun & Fazli
2019, https://arxiv.org/abs/1912.12630.
"""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from methods import TEACHERS, FrozenTeacher, RecycleUnits, Task, check_method, load_teacher, num_steps
from omegaconf import MISSING, OmegaConf
from safeguards import FREE, TeacherSource, check_values, protect
from scoreboard import during_training, final_scores
from tensordict.nn import TensorDictModule
from torchrl.data import ReplayBuffer
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import HardUpdate
from torchrl.record.loggers import Logger, TensorboardLogger
from torchrl.trainers import LRSchedulerHook
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import (
    AtariVecEnv,
    BoundedHistory,
    CudaGraphStepper,
    DistillationLoss,
    DormancyCheck,
    DualNetworkCollector,
    Evaluator,
    FrameStackStorage,
    KeepWarmupData,
    RealTimeDistillTrainer,
    RecyclingCheck,
    SampleToDevice,
    StudentDQNLoss,
    TeacherDQNLoss,
    make_actor,
    make_replay_buffer,
)
from torchrl_rtpd.evaluation.scores import latency_ms
from torchrl_rtpd.files.pretrained import load_pretrained
from torchrl_rtpd.networks.recycling import UnitRecycler
from torchrl_rtpd.networks.towers import num_parameters
from torchrl_rtpd.runs.config import resumed_config, resumed_steps
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.figures import plot_curves, plot_front
from torchrl_rtpd.runs.metrics import read_metrics, write_json
from torchrl_rtpd.runs.monitor import RunMonitor
from torchrl_rtpd.runs.process import keep_freed_memory
from torchrl_rtpd.runs.report import pareto_front, results_table


@dataclass
class Config:
    """Keys and types of config/rtpd_atari.yaml and config/preset/, where each is explained."""

    method: str = "rtpd"
    game: str = MISSING
    students: list[str] = field(default_factory=list)
    seed: int = 0
    device: str = "cpu"
    threads: int = 2
    amp: bool = False
    compile: bool = False
    cudagraph: bool = False
    overlap: bool = False
    single_frames: bool = False
    output_dir: str = MISSING
    tensorboard: bool = True
    progress_bar: bool = True
    divergence: str = "forward_kl"
    temperature: Any = 0.1  # a number or "auto"
    student_temperature: float | None = None
    imitation: bool = True
    td_coeff: float = 1.0
    distill_coeff: float = 1.0
    learn_from: str = "latest"
    acting: Any = "teacher"  # a name or a probability
    teacher_from: str | None = None
    two_stage_epsilon: float = 0.05
    total_steps: int = MISSING
    warmup_steps: int = MISSING
    num_envs: int = MISSING
    rollout_steps: int = MISSING
    batch_size: int = MISSING
    steps_per_update: int = MISSING
    n_step: int = MISSING
    gamma: float = MISSING
    replay_capacity: int = MISSING
    teacher_optimizer: str = MISSING
    teacher_learning_rate: float = MISSING
    student_learning_rate: float = MISSING
    teacher_settles: list[float] | None = MISSING
    student_settles: list[float] | None = MISSING
    recycle_every_updates: int | None = MISSING
    target_every_updates: int = MISSING
    epsilon_end: float = MISSING
    epsilon_steps: int = MISSING
    loss_function: str = MISSING
    evaluate_every_steps: int | None = MISSING
    evaluate_from_steps: int = MISSING
    evaluation_episodes: int = MISSING
    final_episodes: int = MISSING
    evaluation_epsilon: float = MISSING
    max_episode_steps: int = MISSING
    evaluation_seconds: float | None = 3_600.0
    teacher: TeacherSource = field(default_factory=TeacherSource)
    resume: str | None = None
    checkpoint_every_steps: int = MISSING
    checkpoint_keep: int = 2
    checkpoint_replay: bool = False
    on_divergence: str = "stop"
    stop_after_evaluations: int | None = None


ConfigStore.instance().store(name="rtpd_atari_schema", node=Config)


def check(config: Config) -> None:
    """Refuse, before anything is built, what could only fail later."""
    check_method(config)
    check_values(config)
    if len(set(config.students)) != len(config.students):
        raise ValueError(f"students must differ: got {list(config.students)}.")
    batch_steps = config.num_envs * config.rollout_steps
    if batch_steps % config.steps_per_update:
        raise ValueError(
            f"num_envs * rollout_steps must be a multiple of steps_per_update: got {config.num_envs} * "
            f"{config.rollout_steps} and {config.steps_per_update}; change rollout_steps."
        )
    for share in (config.teacher_settles, config.student_settles):
        if share is not None and (len(share) != 2 or not 0 <= share[0] < share[1] <= 1):
            raise ValueError(
                f"a learning rate settles between two shares of the run, such as [0.6, 0.9]: got {list(share)}."
            )
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={config.device} needs a GPU that torch can see: there is none; use device=cpu.")
    if config.cudagraph and not config.device.startswith("cuda"):
        raise ValueError(f"cudagraph=true needs device=cuda: got device={config.device}; use compile=true on a CPU.")
    if config.cudagraph and config.method == "two_stage":
        raise ValueError("cudagraph=true captures the teacher's update: got method=two_stage, whose teacher is frozen.")
    if config.final_episodes % config.evaluation_episodes:
        raise ValueError(
            "final_episodes must be a multiple of evaluation_episodes: got "
            f"{config.final_episodes} and {config.evaluation_episodes}."
        )


def make_env(config: Config, slots: int, *, seed: int | None = None, evaluation: bool = False) -> AtariVecEnv:
    """Games side by side; those of evaluation are bounded."""
    if evaluation:
        return AtariVecEnv(config.game, slots, num_threads=config.threads, max_frames=4 * config.max_episode_steps)
    frame_stack = 1 if config.single_frames else 4
    return AtariVecEnv(config.game, slots, num_threads=config.threads, seed=seed, frame_stack=frame_stack)


def make_tower(config: Config, name: str, env: AtariVecEnv, seed: int) -> QValueActor:
    """One of the paper's networks."""
    dtype = torch.bfloat16 if config.amp else None
    return make_actor(name, env.action_spec, seed=seed, autocast_dtype=dtype, device=config.device)


def make_replay(config: Config) -> ReplayBuffer:
    """Single frames, restacked when sampled."""
    storage = FrameStackStorage(
        config.replay_capacity - config.replay_capacity % (config.num_envs * config.rollout_steps),
        num_envs=config.num_envs,
        steps_per_write=config.rollout_steps,
        n_step=config.n_step,
        gamma=config.gamma,
        device=config.device,
    )
    print(f"Replay: {storage.max_size:,} transitions, {storage.estimated_bytes / 1e9:.2f} GB when full.")
    together = updates_per_batch(config) if config.device.startswith("cuda") else min(4, updates_per_batch(config))
    return make_replay_buffer(storage, batch_size=config.batch_size, minibatches_at_once=together)


ATARI = Task(make_env, make_tower, make_replay, make_postproc=lambda config: None, terminated="end_of_life")


def build_networks(config: Config, env: AtariVecEnv, task: Task = ATARI) -> dict[str, TensorDictModule]:
    """The network that acts and those that learn from it; each draws its weights from a generator of its own."""
    names = ["teacher", *(() if config.method == "teacher_only" else config.students)]
    networks = {
        name: task.make_actor(config, name, env, 1_000 * config.seed + index)
        for index, name in enumerate(names)
        if config.method != "scratch" or name != "teacher"
    }
    if config.teacher.checkpoint is not None and config.resume is None:
        print(f"Teacher: {load_pretrained(networks['teacher'], config.teacher.checkpoint)}.")
    if config.compile:
        torch._dynamo.config.recompile_limit = 100  # networks, batch sizes and modes share one cache
        for network in networks.values():
            network.module[0].module.compile()
    return networks


def build_trainer(
    config: Config,
    env: AtariVecEnv,
    networks: dict[str, TensorDictModule],
    logger: Logger | None,
    task: Task = ATARI,
) -> tuple[DQNTrainer, RealTimeDistillTrainer | None]:
    """TorchRL's DQN trainer for the network that acts, a teacher or not, and our hook for its students."""
    (learner, teacher), *students = networks.items()
    frozen = config.method == "two_stage"
    exploration = EGreedyModule(
        spec=env.action_spec_unbatched,
        eps_init=config.two_stage_epsilon if frozen else 1.0,
        eps_end=config.two_stage_epsilon if frozen else config.epsilon_end,
        annealing_num_steps=config.epsilon_steps,
        device=config.device,
    )
    collector = DualNetworkCollector(
        env,
        teacher,
        dict(students) if config.acting != "teacher" else None,
        acting=config.acting,
        acting_seed=config.seed,
        exploration=exploration,
        frames_per_batch=config.num_envs * config.rollout_steps,
        total_frames=num_steps(config),
        init_random_frames=0 if frozen else config.warmup_steps,
        postproc=task.make_postproc(config),
        overlap=config.overlap,
        frame_stack=4 if config.single_frames else None,
        policy_device=config.device,
        env_device="cpu",
        storing_device=config.device,
    )
    replay_buffer = task.make_replay(config)
    loss = TeacherDQNLoss(teacher, loss_function=config.loss_function, action_space="categorical", delay_value=True)
    loss.set_keys(terminated=task.terminated)
    loss.make_value_estimator(gamma=config.gamma)
    optimizer = None if frozen else learner_optimizer(config, learner)(loss.parameters())
    trainer = DQNTrainer(
        collector=collector,
        total_frames=num_steps(config),
        frame_skip=1,  # we count steps
        optim_steps_per_batch=updates_per_batch(config),
        loss_module=loss,
        optimizer=optimizer,
        logger=logger,
        clip_norm=10.0,
        progress_bar=False,  # the monitor has its own
        log_interval=1_000,
        replay_buffer=replay_buffer,
        target_net_updater=HardUpdate(loss, value_network_update_interval=config.target_every_updates),
        greedy_module=exploration,
        episode_reward_key="episode_reward",
    )
    BoundedHistory().register(trainer)
    KeepWarmupData(replay_buffer).register(trainer)
    SampleToDevice(config.device).register(trainer)
    if frozen:
        trainer.optimization_stepper = FrozenTeacher(with_next=config.imitation and config.td_coeff > 0)
    else:
        share = config.teacher_settles if learner == "teacher" else config.student_settles
        settle(config, trainer, learner, optimizer, share)
    if learner != "teacher" and config.recycle_every_updates:
        RecycleUnits(recycler(config)).register(trainer)
    if not students:
        if config.cudagraph:
            CudaGraphStepper().register(trainer)
        return trainer, None
    recycling = recycler(config)
    hook = RealTimeDistillTrainer(
        {name: student_loss(config, network, task) for name, network in students},
        optimizer=student_optimizer(config),
        checks=[DormancyCheck(), *([] if recycling is None else [RecyclingCheck(recycling)])],
        teacher=TEACHERS[config.learn_from](),
    )
    if config.cudagraph:
        CudaGraphStepper(hook).register(trainer)
    else:
        hook.register(trainer)
    for name, optimizer in hook.optimizers.items():
        settle(config, trainer, name, optimizer, config.student_settles)
    return trainer, hook


def updates_per_batch(config: Config) -> int:
    """Updates between two batches."""
    return config.num_envs * config.rollout_steps // config.steps_per_update


def student_optimizer(config: Config) -> Any:
    """A student's optimiser, without parameters yet."""
    return partial(torch.optim.Adam, lr=config.student_learning_rate, eps=1e-5, fused=True)


def learner_optimizer(config: Config, learner: str) -> Any:
    """The optimiser of the network that acts: the teacher's, or that of a student which learns alone."""
    if learner != "teacher":
        return student_optimizer(config)
    if config.teacher_optimizer == "adam":
        return partial(torch.optim.Adam, lr=config.teacher_learning_rate, eps=1.5e-4, fused=True)
    if config.teacher_optimizer == "rmsprop":
        return partial(torch.optim.RMSprop, lr=config.teacher_learning_rate, alpha=0.95, eps=0.01, centered=True)
    raise ValueError(f"teacher_optimizer must be adam or rmsprop: got {config.teacher_optimizer!r}.")


def settle(
    config: Config, trainer: DQNTrainer, name: str, optimizer: torch.optim.Optimizer, share: list[float] | None
) -> None:
    """Lower a learning rate linearly to a hundredth, between two shares of the run; None leaves it alone."""
    if share is None:
        return
    batches = (config.total_steps - config.warmup_steps) / (config.num_envs * config.rollout_steps)
    begin, end = (fraction * batches for fraction in share)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda batch: 1 - 0.99 * min(1.0, max(0.0, (batch - begin) / (end - begin)))
    )
    LRSchedulerHook(schedule).register(trainer, name=f"lr_scheduler.{name}")


def recycler(config: Config) -> UnitRecycler | None:
    """What gives dormant units of the students a new start, until their learning rate settles."""
    if config.recycle_every_updates is None:
        return None
    share = 1.0 if config.student_settles is None else config.student_settles[0]
    updates = (config.total_steps - config.warmup_steps) // config.steps_per_update
    return UnitRecycler(
        every_updates=config.recycle_every_updates,
        until_updates=int(share * updates),
        reset_step=True,
        seed=config.seed,
    )


def student_loss(config: Config, student: TensorDictModule, task: Task = ATARI) -> DistillationLoss:
    """The paper's loss, or its divergence alone; the hook puts the teacher's values into each minibatch."""
    distillation = {
        "divergence": config.divergence,
        "teacher_temperature": config.temperature,
        "student_temperature": config.student_temperature,
    }
    if config.td_coeff == 0:
        return DistillationLoss(student, **distillation)
    loss = StudentDQNLoss(
        student,
        imitation=config.imitation,
        td_coeff=config.td_coeff,
        distill_coeff=config.distill_coeff,
        loss_function=config.loss_function,
        **distillation,
    )
    loss.set_keys(terminated=task.terminated)
    loss.make_value_estimator(gamma=config.gamma)
    return loss


def final_results(config: Config, monitor: RunMonitor, start: float) -> dict[str, Any]:
    """The content of results.json; without scores where the run was to play no games."""
    played = {"rows": {}}
    if config.evaluate_every_steps is not None:
        seed = 10_000_000 + config.seed  # not one of an evaluation during the run
        played = final_scores(monitor, config.final_episodes // config.evaluation_episodes, seed=seed)
    rows = played.pop("rows")
    ratios = during_training(read_metrics(monitor.metrics.path), list(monitor.best), played.get("random_score"))
    first = next(iter(monitor.best.values()))
    observation = monitor.evaluator.env.reset()[first.in_keys[0]][:1]
    networks = [
        {
            "name": name,
            "role": "teacher" if name == "teacher" else "student",
            "parameters": num_parameters(network),
            "parameter_ratio": num_parameters(network) / num_parameters(first) if "teacher" in monitor.best else None,
            "latency_ms": latency_ms(network, observation),
            **rows.get(name, {}),
            **ratios.get(name, {}),
        }
        for name, network in monitor.best.items()
    ]
    return {
        "game": config.game,
        "method": config.method,
        "seed": config.seed,
        "steps": monitor.clock.steps,
        "updates": monitor.clock.updates,
        "spent_before": monitor.clock.spent_before,
        "seconds": round(time.perf_counter() - start + monitor.clock.seconds_before, 1),
        "training_seconds": round(monitor.clock.training_seconds, 2),
        "cpu_seconds": round(monitor.clock.cpu_seconds, 2),
        "steps_per_second": monitor.clock.steps_per_second,
        "evaluation_seconds": round(monitor.clock.evaluation_seconds, 1),
        **played,
        "networks": networks,
        "environment": run_environment(config.device),
    }


def run(config: Config, task: Task = ATARI) -> dict[str, Any]:
    """Train, distil, evaluate, report; returns the content of results.json."""
    check(config)
    if config.method == "two_stage" and config.teacher_from is None:
        config = copy.deepcopy(config)
        config.teacher_from = f"{config.output_dir}/teacher"
        run_teacher(config, task)
    start = time.perf_counter()
    keep_freed_memory()
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, output_dir / "config.yaml", resolve=True)

    second = config.method == "two_stage"
    seed = 1_000 * config.seed + 500 * second + resumed_steps(config.resume)  # new games in a second phase
    env = task.make_env(config, config.num_envs, seed=seed)
    networks = build_networks(config, env, task)
    spent_before = load_teacher(networks["teacher"], config.teacher_from) if second else None
    logger = TensorboardLogger("tensorboard", log_dir=str(output_dir)) if config.tensorboard else None
    trainer, hook = build_trainer(config, env, networks, logger, task)
    evaluator = Evaluator(
        partial(task.make_env, config, config.evaluation_episodes, evaluation=True),
        episodes=config.evaluation_episodes,
        epsilon=config.evaluation_epsilon,
        seed=1_000_000 * (config.seed + 1),
        max_seconds=config.evaluation_seconds,
    )
    monitor = RunMonitor(
        networks,
        evaluator,
        output_dir,
        distiller=hook,
        evaluate_every_steps=config.evaluate_every_steps,
        evaluate_from_steps=config.evaluate_from_steps,
        logger=logger,
        progress_bar=config.progress_bar,
        spent_before=spent_before,
    )
    monitor.register(trainer)
    stopper, saver = protect(config, trainer, hook, monitor)
    try:
        trainer.train()
    except Exception:
        print(saver.how_to_resume)
        raise
    finally:  # a run that fails leaves its metrics and weights, too
        stopper.give_back()
        trainer.shutdown()
        monitor.save_last()
    if stopper.received is not None:
        evaluator.close()
        print(saver.how_to_resume)
        raise SystemExit(128 + stopper.received)
    results = final_results(config, monitor, start)
    evaluator.close()
    report(config, results, output_dir)
    return results


def run_teacher(config: Config, task: Task) -> None:
    """The first phase of ``two_stage``, a run of its own."""
    first = copy.deepcopy(config)
    first.method, first.output_dir, first.teacher_from = "teacher_only", config.teacher_from, None
    run(first, task)


def report(config: Config, results: dict[str, Any], output_dir: Path) -> None:
    """Write the results, the table and the figure; print the table."""
    write_json(output_dir / "results.json", results)
    table = results_table(results)
    (output_dir / "table.md").write_text(table + "\n")
    plot_curves(
        read_metrics(output_dir / "metrics.csv"),
        [network["name"] for network in results["networks"]],
        output_dir / "curves.png",
        title=f"{config.game}, seed {config.seed}: one run of {results['seconds']:.0f} s, {results['updates']} updates",
        random_score=results.get("random_score"),
    )
    if pareto_front(results["networks"]):
        plot_front(results, output_dir / "front.png")
    print(f"\n{table}\n\nEverything lies in {output_dir}")


def start(config: Config, task: Task = ATARI) -> None:
    """What a command line asks for: a run, or one that goes on; without warnings that help nobody."""
    # TorchRL says that DQNTrainer is experimental and that its own optimiser hook will be replaced; neither helps here.
    warnings.filterwarnings("ignore", message="DQNTrainer is an experimental", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torchrl")
    if config.resume is not None:
        config = resumed_config(config, HydraConfig.get().overrides.task, free=FREE)
    run(config, task)


@hydra.main(config_path="config", config_name="rtpd_atari", version_base="1.3")
def main(config: Config) -> None:
    """Run with the resolved configuration."""
    start(config)


if __name__ == "__main__":
    main()
