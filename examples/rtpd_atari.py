"""Real-time policy distillation on an Atari game: one run trains a teacher and distils students from it.

    python examples/rtpd_atari.py                                   the quick run, ten minutes on two CPU cores
    python examples/rtpd_atari.py --help                            all keys, what they mean and what they may be
    python examples/rtpd_atari.py preset=paper game=breakout device=cuda cudagraph=true
    python examples/rtpd_atari.py teacher=pqn                       a teacher without replay, see algorithms.py
    python examples/rtpd_atari.py method=two_stage                  the teacher first, then the students; see methods.py
    python examples/rtpd_atari.py export=[onnx,onnx_int8]           and its students as files for devices, in deployed/
    python examples/rtpd_atari.py students=auto                     the smallest student that will do, of sixteen
    python examples/rtpd_atari.py resume=outputs/...                a run that was interrupted; total_steps=MORE: longer

What a run leaves lies in ``output_dir``: results.json, table.md, metrics.csv, two figures, play.gif, config.yaml,
weights/ and checkpoints/. Method: Sun & Fazli 2019, https://arxiv.org/abs/1912.12630.
"""

from __future__ import annotations

import copy
import sys
from functools import partial
from typing import Any

import hydra
import torch
from algorithms import ALGORITHMS
from command import claimed, count_threads, launched
from learning import attach, compile_towers, distiller, go_on, search_of, settle
from methods import METHODS
from omegaconf import OmegaConf
from settings import RENAMED, Config
from tasks import Task, batch_steps, threads_in_all
from tensordict.nn import TensorDictModule
from torchrl.data import ReplayBuffer
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.record.loggers import Logger, TensorboardLogger
from torchrl.trainers import Trainer

from torchrl_rtpd import (
    AtariVecEnv,
    BoundedHistory,
    DualNetworkCollector,
    Evaluator,
    Experiment,
    FrameStackStorage,
    Protection,
    RealTimeDistillTrainer,
    SampleToDevice,
    load_pretrained,
    make_actor,
    make_replay_buffer,
)
from torchrl_rtpd.envs import check_game
from torchrl_rtpd.networks import LADDER, tower_of
from torchrl_rtpd.runs.config import resumed_steps, saved_config
from torchrl_rtpd.runs.folder import RunFolder
from torchrl_rtpd.runs.process import keep_freed_memory


def make_env(config: Config, slots: int, *, seed: int | None = None, evaluation: bool = False) -> AtariVecEnv:
    """Games side by side, whose frames go to the device at once; those of evaluation are bounded, and stay here."""
    threads = config.env_threads or (threads_in_all(config) if config.device == "cpu" else 0)  # 0: all
    games = partial(AtariVecEnv, config.game, slots, num_threads=threads)
    if evaluation:
        return games(max_frames=4 * config.max_episode_steps)
    device = None if config.device == "cpu" else config.device
    return games(seed=seed, frame_stack=1 if config.single_frames else 4, device=device)


def make_tower(config: Config, size: str, env: AtariVecEnv, seed: int) -> QValueActor:
    """One of the paper's networks."""
    dtype = torch.bfloat16 if config.amp else None
    return make_actor(size, env.action_spec, seed=seed, norm=config.norm, autocast_dtype=dtype, device=config.device)


def make_storage(config: Config, size: int) -> FrameStackStorage:
    """Single frames, restacked when sampled."""
    shape = {"num_envs": config.num_envs, "steps_per_write": config.rollout_steps}
    storage = FrameStackStorage(size, **shape, n_step=config.n_step or 1, gamma=config.gamma, device=config.device)
    storage.next_stacks = ALGORITHMS[config.teacher].next_states
    return storage


def make_replay(config: Config, storage: FrameStackStorage) -> ReplayBuffer:
    """DQN's; several minibatches are taken from the storage at once."""
    print(f"Replay: {storage.max_size:,} transitions, {storage.estimated_bytes / 1e9:.2f} GB when full.")
    updates = ALGORITHMS["dqn"].updates(config)
    together = min(4, updates) if config.device == "cpu" else updates
    return make_replay_buffer(storage, batch_size=config.batch_size, minibatches_at_once=together)


def check_names(config: Config) -> None:
    """Refuse a game or a network that there is not."""
    check_game(config.game)
    for name in config.students:
        tower_of(name)


ATARI = Task(check_names, make_env, make_tower, make_storage, make_replay, lambda config: None, "end_of_life", LADDER)


def build_networks(config: Config, env: AtariVecEnv, task: Task = ATARI) -> dict[str, TensorDictModule]:
    """The network that acts and those that learn from it; each draws its weights from a generator of its own."""
    sizes = METHODS[config.method].sizes(config)
    first = 1_000 * config.seed + ("teacher" not in sizes)  # a student begins with the same weights in every method
    networks = {name: task.make_actor(config, size, env, first + i) for i, (name, size) in enumerate(sizes.items())}
    if config.teacher_checkpoint is not None and config.resume is None:
        print(f"Teacher: {load_pretrained(networks['teacher'], config.teacher_checkpoint)}.")
    if config.compile:
        compile_towers(networks)
    return networks


def build_trainer(
    config: Config, env: AtariVecEnv, networks: dict[str, TensorDictModule], logger: Logger | None, task: Task = ATARI
) -> tuple[Trainer, RealTimeDistillTrainer | None]:
    """TorchRL's trainer for the network that acts, a teacher or not, and our hook for its students."""
    method, algorithm, ((_, actor), *students) = METHODS[config.method], ALGORITHMS[config.teacher], networks.items()
    start, end = method.epsilon(config)
    exploration = EGreedyModule(
        env.action_spec_unbatched, start, end, annealing_num_steps=config.epsilon_steps, device=config.device
    )
    loss = algorithm.loss(config, actor, task.terminated)
    trainer = algorithm.trainer(
        config,
        task,
        exploration,
        collector=build_collector(config, env, networks, exploration, task),
        total_frames=method.num_steps(config),
        frame_skip=1,  # we count steps
        loss_module=loss,
        optimizer=method.optimizer(config, loss.parameters()),
        logger=logger,
        clip_norm=10.0,
        progress_bar=False,  # the experiment has its own
        log_interval=1_000,
        episode_reward_key="episode_reward",
    )
    BoundedHistory().register(trainer)
    SampleToDevice(config.device).register(trainer)
    method.equip(config, trainer)
    losses = {name: algorithm.student_loss(config, network, task.terminated) for name, network in students}
    hook = distiller(config, losses) if losses else None
    attach(config, trainer, hook)
    if config.search:
        search_of(config).register(trainer)
    for name, optimizer in (hook.optimizers if hook is not None else {}).items():
        settle(config, trainer, name, optimizer, config.student_settles, hook)
    return trainer, hook


def build_collector(
    config: Config, env: AtariVecEnv, networks: dict[str, TensorDictModule], exploration: EGreedyModule, task: Task
) -> DualNetworkCollector:
    """Plays the games: the first network acts, or students do now and then."""
    method, (actor, *_) = METHODS[config.method], networks.values()
    return DualNetworkCollector(
        env,
        actor,
        dict(list(networks.items())[1:]) if config.acting != "teacher" else None,
        acting=config.acting,
        acting_seed=config.seed,
        exploration=exploration,
        keep=ALGORITHMS[config.teacher].kept if config.acting == "teacher" else (),
        frames_per_batch=batch_steps(config),
        total_frames=method.num_steps(config),
        init_random_frames=method.warmup_steps(config),
        postproc=task.make_postproc(config),
        overlap=config.overlap,
        frame_stack=4 if config.single_frames else None,
        policy_device=config.device,
        env_device=env.device or "cpu",
        cudagraph_policy=config.cudagraph and config.acting == "teacher",
        storing_device=config.device,
    )


def build(config: Config, folder: RunFolder, task: Task = ATARI, *, whole: str | None = None) -> Experiment:
    """The whole run, where it begins or where its checkpoint was."""
    method = METHODS[config.method]
    env = task.make_env(config, config.num_envs, seed=method.game_seed(config) + resumed_steps(config.resume))
    networks = build_networks(config, env, task)
    spent_before = method.load(config, networks)
    logger = TensorboardLogger("tensorboard", log_dir=str(folder.path)) if config.tensorboard else None
    trainer, _ = build_trainer(config, env, networks, logger, task)
    experiment = Experiment(
        trainer,
        networks,
        Evaluator(
            partial(task.make_env, config, config.evaluation_episodes, evaluation=True),
            episodes=config.evaluation_episodes,
            epsilon=config.evaluation_epsilon,
            seed=1_000_000 * (config.seed + 1),
            max_seconds=config.evaluation_seconds,
        ),
        folder,
        evaluate_every_steps=config.evaluate_every_steps,
        evaluate_from_steps=config.evaluate_from_steps,
        keep_from_steps=config.keep_from_steps,
        protection=protection(config, whole or config.output_dir),
        about={"game": config.game, "algorithm": config.teacher, "method": config.method, "seed": config.seed},
        spent_before=spent_before,
        progress_bar=config.progress_bar,
    )
    if config.resume is not None:
        experiment.resume(config.resume)
        go_on(config, saved_config(config.resume, RENAMED), trainer, method.epsilon(config))
    return experiment


def protection(config: Config, whole: str) -> Protection:
    """Checkpoints, guard and stoppers of the run, which goes on with the folder ``whole``."""
    return Protection(
        checkpoint_every_steps=config.checkpoint_every_steps,
        checkpoint_keep=config.checkpoint_keep,
        checkpoint_replay=config.checkpoint_replay,
        on_divergence=config.on_divergence,
        stop_after_evaluations=config.stop_after_evaluations,
        resume_hint=f"python {sys.argv[0]} resume={whole}",
        metadata={"config": OmegaConf.to_container(OmegaConf.create(config), resolve=True)},
    )


def run(
    config: Config, task: Task = ATARI, folder: RunFolder | None = None, *, whole: str | None = None
) -> dict[str, Any]:
    """Train, distil, evaluate, report, in a folder that is claimed or not yet; returns the content of results.json."""
    with folder or claimed(config, task) as folder:
        config = copy.deepcopy(config)
        config.output_dir = str(folder.path)
        count_threads(config)
        first = METHODS[config.method].first_phase(config)
        if first is not None:
            run(first, task, whole=config.output_dir)
            config.teacher_from, config.resume = first.output_dir, None
        keep_freed_memory()
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        folder.once_begun(partial(OmegaConf.save, config, folder.path / "config.yaml", resolve=True))
        games = {"final_episodes": config.final_episodes, "final_seed": config.seed}
        return build(config, folder, task, whole=whole).run(**games, export=config.export)


@hydra.main(config_path="config", config_name="rtpd_atari", version_base="1.3")
def main(config: Config) -> None:
    launched(run, config, ATARI)


if __name__ == "__main__":
    main()
