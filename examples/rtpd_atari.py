"""Real-time policy distillation on an Atari game: one run trains a teacher and distils students from it.

    python examples/rtpd_atari.py                                   the quick run, ten minutes on two CPU cores
    python examples/rtpd_atari.py game=pong students=[net1,net5] seed=3
    python examples/rtpd_atari.py preset=paper game=breakout device=cuda
    python examples/rtpd_atari.py resume=outputs/...                a run that was interrupted, from its last checkpoint

Everything a run leaves lies in ``output_dir``: results.json, table.md, metrics.csv, curves.png, front.png, config.yaml,
weights/, checkpoints/ and TensorBoard events. The keys are explained in config/rtpd_atari.yaml. Method: Sun & Fazli
2019, https://arxiv.org/abs/1912.12630.
"""

from __future__ import annotations

import re
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
from omegaconf import MISSING, OmegaConf
from tensordict.nn import TensorDictModule
from torchrl.modules import EGreedyModule
from torchrl.objectives import DQNLoss, HardUpdate
from torchrl.record.loggers import Logger, TensorboardLogger
from torchrl.trainers import LRSchedulerHook
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import (
    AtariVecEnv,
    BoundedHistory,
    CudaGraphStepper,
    DistillationLoss,
    DualNetworkCollector,
    Evaluator,
    FrameStackStorage,
    KeepWarmupData,
    RealTimeDistillTrainer,
    SampleToDevice,
    StudentDQNLoss,
    make_actor,
    make_replay_buffer,
)
from torchrl_rtpd.evaluation import agreement_with_teacher, latency_ms, normalised_score
from torchrl_rtpd.memory import keep_freed_memory
from torchrl_rtpd.monitor import RunMonitor
from torchrl_rtpd.networks import num_parameters
from torchrl_rtpd.objectives import DIVERGENCES
from torchrl_rtpd.pretrained import load_pretrained
from torchrl_rtpd.ranges import check_choices, check_ranges
from torchrl_rtpd.recycling import UnitRecycler
from torchrl_rtpd.report import (
    pareto_front,
    plot_curves,
    plot_front,
    read_metrics,
    results_table,
    run_environment,
    write_json,
)
from torchrl_rtpd.resume import resumed_config, resumed_steps
from torchrl_rtpd.trainers import DivergenceGuard, SaveCheckpoints, StopOnSignal, StopWhenCaughtUp
from torchrl_rtpd.trainers.guards import POLICIES

# What a resumed run takes from the command line.
FREE = (
    "threads",
    "tensorboard",
    "progress_bar",
    "checkpoint_every_steps",
    "checkpoint_keep",
    "checkpoint_replay",
    "on_divergence",
)

# Where the numbers of a configuration must lie, None aside.
RANGES = {
    "[1, 1e12]": "threads total_steps num_envs rollout_steps batch_size steps_per_update n_step replay_capacity "
    "target_every_updates epsilon_steps evaluation_episodes final_episodes max_episode_steps checkpoint_every_steps "
    "checkpoint_keep recycle_every_updates stop_after_evaluations",
    "[0, 1e12]": "warmup_steps td_coeff evaluate_every_steps evaluate_from_steps",
    "[0, 1e6]": "seed",
    "(0, 1e12]": "evaluation_seconds",
    "(0, 1]": "teacher_learning_rate student_learning_rate",
    "[0, 1]": "gamma epsilon_end evaluation_epsilon",
}
METHODS = ("rtpd", "teacher_only")


@dataclass
class TeacherSource:
    """Where the teacher's first weights come from."""

    checkpoint: str | None = None


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
    imitation: bool = True
    td_coeff: float = 1.0
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
    if config.method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}: got {config.method!r}.")
    check_ranges(config, RANGES)
    if config.warmup_steps >= config.total_steps:
        raise ValueError(
            f"nothing is learned in the warm-up: got warmup_steps={config.warmup_steps} of total_steps="
            f"{config.total_steps}; make it shorter."
        )
    if config.method == "rtpd" and not config.students:
        raise ValueError("method=rtpd needs students: got []; name some, or use method=teacher_only.")
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
    check_choices(config, divergence=DIVERGENCES, loss_function=("smooth_l1", "l2", "l1"), on_divergence=POLICIES)
    if config.temperature != "auto":
        check_ranges(config, {"(0, inf)": "temperature"})
    if not re.fullmatch(r"cpu|cuda(:\d+)?", config.device):
        raise ValueError(f"device must be cpu, cuda or cuda:<number>: got {config.device!r}.")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={config.device} needs a GPU that torch can see: there is none; use device=cpu.")
    if config.cudagraph and not config.device.startswith("cuda"):
        raise ValueError(f"cudagraph=true needs device=cuda: got device={config.device}; use compile=true on a CPU.")
    if config.final_episodes % config.evaluation_episodes:
        raise ValueError(
            "final_episodes must be a multiple of evaluation_episodes: got "
            f"{config.final_episodes} and {config.evaluation_episodes}."
        )


def build_networks(config: Config, env: AtariVecEnv) -> dict[str, TensorDictModule]:
    """The teacher and the students by name; each draws its weights from a generator of its own."""
    names = ["teacher", *(config.students if config.method == "rtpd" else [])]
    networks = {
        name: make_actor(
            "teacher" if name == "teacher" else name,
            env.action_spec,
            seed=1_000 * config.seed + index,
            autocast_dtype=torch.bfloat16 if config.amp else None,
            device=config.device,
        )
        for index, name in enumerate(names)
    }
    if config.teacher.checkpoint is not None and config.resume is None:
        print(f"Teacher: {load_pretrained(networks['teacher'], config.teacher.checkpoint)}.")
    if config.compile:
        torch._dynamo.config.recompile_limit = 100  # networks, batch sizes and modes share one cache
        for network in networks.values():
            network.module[0].module.compile()
    return networks


def build_trainer(
    config: Config, env: AtariVecEnv, networks: dict[str, TensorDictModule], logger: Logger | None
) -> tuple[DQNTrainer, RealTimeDistillTrainer | None]:
    """TorchRL's DQN trainer for the teacher and our hook for the students."""
    teacher = networks["teacher"]
    exploration = EGreedyModule(
        spec=env.action_spec_unbatched,
        eps_init=1.0,
        eps_end=config.epsilon_end,
        annealing_num_steps=config.epsilon_steps,
        device=config.device,
    )
    collector = DualNetworkCollector(
        env,
        teacher,
        exploration=exploration,
        frames_per_batch=config.num_envs * config.rollout_steps,
        total_frames=config.total_steps,
        init_random_frames=config.warmup_steps,
        overlap=config.overlap,
        frame_stack=4 if config.single_frames else None,
        policy_device=config.device,
        env_device="cpu",
        storing_device=config.device,
    )
    storage = FrameStackStorage(
        config.replay_capacity - config.replay_capacity % (config.num_envs * config.rollout_steps),
        num_envs=config.num_envs,
        steps_per_write=config.rollout_steps,
        n_step=config.n_step,
        gamma=config.gamma,
        device=config.device,
    )
    print(f"Replay: {storage.max_size:,} transitions, {storage.estimated_bytes / 1e9:.2f} GB when full.")
    updates_per_batch = config.num_envs * config.rollout_steps // config.steps_per_update
    replay_buffer = make_replay_buffer(
        storage,
        batch_size=config.batch_size,
        minibatches_at_once=updates_per_batch if config.device.startswith("cuda") else 1,
    )
    loss = DQNLoss(teacher, loss_function=config.loss_function, action_space="categorical", delay_value=True)
    loss.set_keys(terminated="end_of_life")
    loss.make_value_estimator(gamma=config.gamma)
    optimizer = teacher_optimizer(config)(loss.parameters())
    trainer = DQNTrainer(
        collector=collector,
        total_frames=config.total_steps,
        frame_skip=1,  # we count steps
        optim_steps_per_batch=updates_per_batch,
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
    settle(config, trainer, "teacher", optimizer, config.teacher_settles)
    if len(networks) == 1:
        if config.cudagraph:
            CudaGraphStepper().register(trainer)
        return trainer, None
    students = {name: student_loss(config, network) for name, network in networks.items() if name != "teacher"}
    hook = RealTimeDistillTrainer(
        students,
        optimizer=partial(torch.optim.Adam, lr=config.student_learning_rate, eps=1e-5, fused=True),
        recycler=recycler(config),
    )
    if config.cudagraph:
        CudaGraphStepper(hook).register(trainer)
    else:
        hook.register(trainer)
    for name, optimizer in hook.optimizers.items():
        settle(config, trainer, name, optimizer, config.student_settles)
    return trainer, hook


def teacher_optimizer(config: Config) -> Any:
    """The teacher's optimiser, without parameters yet."""
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


def student_loss(config: Config, student: TensorDictModule) -> DistillationLoss:
    """The paper's loss, or its divergence alone; the hook puts the teacher's values into each minibatch."""
    distillation = {
        "divergence": config.divergence,
        "teacher_temperature": config.temperature,
        "student_temperature": None,  # the teacher's
    }
    if config.td_coeff == 0:
        return DistillationLoss(student, **distillation)
    loss = StudentDQNLoss(
        student,
        imitation=config.imitation,
        td_coeff=config.td_coeff,
        loss_function=config.loss_function,
        **distillation,
    )
    loss.set_keys(terminated="end_of_life")
    loss.make_value_estimator(gamma=config.gamma)
    return loss


def final_scores(config: Config, monitor: RunMonitor) -> dict[str, Any]:
    """Play the kept networks on games that chose none of them, and compare them with the kept teacher."""
    evaluator, networks = monitor.evaluator, monitor.best
    evaluator.quota = config.final_episodes // config.evaluation_episodes
    seed = 10_000_000 + config.seed  # not a seed of an evaluation during the run
    scores = {
        name: evaluator(network, seed=seed, keep_observations=512 if name == "teacher" else 0)
        for name, network in networks.items()
    }
    random_score = evaluator(networks["teacher"], seed=seed, epsilon=1.0)
    teacher_mean, states = scores["teacher"].mean, scores["teacher"].observations
    agreements = agreement_with_teacher(networks["teacher"], networks, states)
    rows = {
        name: {
            "score_mean": score.mean,
            "score_std": score.std,
            "score_standard_error": score.standard_error,
            "episodes": score.episodes,
            "cut_episodes": score.cut,
            "percent_of_teacher": 100 * score.mean / teacher_mean if teacher_mean else None,
            "normalised": normalised_score(score.mean, random_score.mean, teacher_mean),
            "agreement": agreements[name],
            "kept_score": monitor.best_scores[name].mean if name in monitor.best_scores else None,
            "last_score": monitor.last_scores[name].mean if name in monitor.last_scores else None,
        }
        for name, score in scores.items()
    }
    return {
        "random_score": random_score.mean,
        "random_standard_error": random_score.standard_error,
        "rows": rows,
    }


def final_results(config: Config, monitor: RunMonitor, start: float) -> dict[str, Any]:
    """The content of results.json; without scores where the run was to play no games."""
    played = {"rows": {}} if config.evaluate_every_steps is None else final_scores(config, monitor)
    rows = played.pop("rows")
    teacher = monitor.best["teacher"]
    pixels = monitor.evaluator.env.reset()["pixels"][:1]
    networks = [
        {
            "name": name,
            "role": "teacher" if name == "teacher" else "student",
            "parameters": num_parameters(network),
            "parameter_ratio": num_parameters(network) / num_parameters(teacher),
            "latency_ms": latency_ms(network, pixels),
            **rows.get(name, {}),
        }
        for name, network in monitor.best.items()
    ]
    return {
        "game": config.game,
        "method": config.method,
        "seed": config.seed,
        "steps": monitor.steps,
        "updates": monitor.updates,
        "seconds": round(time.perf_counter() - start + monitor.seconds_before, 1),
        "steps_per_second": monitor.steps_per_second,
        "evaluation_seconds": round(monitor.evaluation_seconds, 1),
        **played,
        "networks": networks,
        "environment": run_environment(config.device),
    }


def protect(
    config: Config, trainer: DQNTrainer, hook: RealTimeDistillTrainer | None, monitor: RunMonitor
) -> tuple[StopOnSignal, SaveCheckpoints]:
    """Checkpoints, guards and ways to stop; a run that is resumed is put where it was."""
    stopper = StopOnSignal()
    stopper.register(trainer)
    if config.stop_after_evaluations is not None:
        StopWhenCaughtUp(monitor, evaluations=config.stop_after_evaluations).register(trainer)
    saver = SaveCheckpoints(
        Path(config.output_dir) / "checkpoints",
        every_steps=config.checkpoint_every_steps,
        keep_last=config.checkpoint_keep,
        replay=config.checkpoint_replay,
        metadata={"config": OmegaConf.to_container(OmegaConf.create(config), resolve=True)},
        monitor=monitor,
    )
    DivergenceGuard(hook, policy=config.on_divergence, monitor=monitor, saver=saver).register(trainer)
    saver.register(trainer)
    if config.resume is not None:
        saver.restore(config.resume)
    return stopper, saver


def run(config: Config) -> dict[str, Any]:
    """Train, distil, evaluate, report; returns the content of results.json."""
    check(config)
    start = time.perf_counter()
    keep_freed_memory()
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, output_dir / "config.yaml", resolve=True)
    make_env = partial(AtariVecEnv, config.game, num_threads=config.threads)

    seed = 1_000 * config.seed + resumed_steps(config.resume)
    env = make_env(config.num_envs, seed=seed, frame_stack=1 if config.single_frames else 4)
    networks = build_networks(config, env)
    logger = TensorboardLogger("tensorboard", log_dir=str(output_dir)) if config.tensorboard else None
    trainer, hook = build_trainer(config, env, networks, logger)
    evaluator = Evaluator(
        partial(make_env, config.evaluation_episodes, max_frames=4 * config.max_episode_steps),
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


@hydra.main(config_path="config", config_name="rtpd_atari", version_base="1.3")
def main(config: Config) -> None:
    """Run with the resolved configuration."""
    # TorchRL says that DQNTrainer is experimental and that its own optimiser hook will be replaced; neither helps here.
    warnings.filterwarnings("ignore", message="DQNTrainer is an experimental", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torchrl")
    if config.resume is not None:
        config = resumed_config(config, HydraConfig.get().overrides.task, free=FREE)
    run(config)


if __name__ == "__main__":
    main()
