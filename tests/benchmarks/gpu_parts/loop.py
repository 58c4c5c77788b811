"""The whole loop on one device, by DQN and by PQN: its speed, where its time goes, and its checkpoints.

Assembled from the package's parts as a user would: single frames shown on the device, a captured teacher that acts,
captured updates, batches that stay on the device.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torchrl.data import SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import HardUpdate
from torchrl.trainers import Trainer
from torchrl.trainers.algorithms.dqn import DQNTrainer
from torchrl.trainers.algorithms.on_policy import OnPolicyTrainer

from gpu_parts.trainings import utilisation
from gpu_parts.update import FLEETS, distance, losses_of, optimizer_of
from torchrl_rtpd import (
    AnnealExploration,
    AtariVecEnv,
    BoundedHistory,
    CudaGraphStepper,
    DualNetworkCollector,
    FrameStackStorage,
    KeepOnDevice,
    KeepWarmupData,
    LambdaTargets,
    RealTimeDistillTrainer,
    make_actor,
    make_replay_buffer,
)
from torchrl_rtpd.envs import atari
from torchrl_rtpd.runs.checkpoints import SaveCheckpoints
from torchrl_rtpd.runs.clock import RunClock

__all__ = ["CHECKED", "PAPER", "TINY", "Sizes", "build_with", "loops", "make_env", "resumed_loop"]


@dataclass(frozen=True)
class Sizes:
    """Games at once, steps of each in a batch, transitions of a minibatch, and minibatches of a batch."""

    slots: int
    rollout: int
    minibatch: int
    updates: int

    @property
    def steps(self) -> int:
        """Steps of a batch."""
        return self.slots * self.rollout


PAPER = {"dqn": Sizes(64, 4, 32, 64), "pqn": Sizes(128, 32, 128, 64)}
"""An update every 4 steps by DQN; two epochs of 32 minibatches over 4,096 steps by PQN."""

CHECKED = {"dqn": Sizes(16, 4, 32, 16), "pqn": Sizes(16, 32, 128, 8)}
"""The same with few games, since opening one takes a while."""

TINY = {"dqn": Sizes(4, 2, 4, 2), "pqn": Sizes(4, 2, 4, 4)}
"""For a rehearsal on a CPU."""


@dataclass
class Loop:
    """A trainer with its parts."""

    trainer: Trainer
    collector: DualNetworkCollector
    hook: RealTimeDistillTrainer | None


def make_env(sizes: Sizes, device: str, game: str = "breakout") -> AtariVecEnv:
    """Games that show single frames."""
    threads = torch.get_num_threads()
    return AtariVecEnv(game, sizes.slots, frame_stack=1, seed=0, device=device, num_threads=threads)


def build(method: str, students: list[str], env: AtariVecEnv, sizes: Sizes, total_steps: int) -> Loop:
    """A teacher and its students that learn to play; the environment says where."""
    device = str(env.device)
    norm = "layer" if method == "pqn" else None
    pupils = {
        name: make_actor(name, env.action_spec, seed=seed, device=device, norm=norm)
        for seed, name in enumerate(students, start=1)
    }

    def hook_of(losses: dict[str, Any]) -> RealTimeDistillTrainer | None:
        return RealTimeDistillTrainer(losses, optimizer=optimizer_of(method, device), checks=[]) if losses else None

    return build_with(method, lambda teacher: hook_of(losses_of(method, teacher, pupils)[1]), env, sizes, total_steps)


def build_with(
    method: str,
    hook_of: Callable[[QValueActor], RealTimeDistillTrainer | None],
    env: AtariVecEnv,
    sizes: Sizes,
    total_steps: int,
) -> Loop:
    """A teacher that learns to play, and the hook of its students, given by a function of the teacher."""
    device = str(env.device)
    teacher = make_actor("teacher", env.action_spec, seed=0, device=device, norm="layer" if method == "pqn" else None)
    exploration = EGreedyModule(
        env.action_spec_unbatched, 1.0, 0.01, annealing_num_steps=total_steps, device=torch.device(device)
    )
    collector = DualNetworkCollector(
        env,
        teacher,
        exploration=exploration,
        keep=["action_value"] if method == "pqn" else [],
        frame_stack=4,
        frames_per_batch=sizes.steps,
        total_frames=total_steps,
        policy_device=device,
        env_device=device,
        storing_device=device,
        cudagraph_policy=True,
    )
    collector.shutdown = lambda *_, **__: None  # the next loop plays on with these games
    loss, _ = losses_of(method, teacher, {})
    loss.set_keys(terminated="end_of_life")
    make = {"dqn": _dqn, "pqn": _pqn}[method]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*experimental/prototype feature|.*hook stage will be replaced|Opti")
        trainer = make(
            sizes,
            exploration,
            device,
            collector=collector,
            total_frames=total_steps,
            frame_skip=1,
            loss_module=loss,
            optimizer=optimizer_of(method, device)(loss.parameters()),
            clip_norm=10.0,
            progress_bar=False,
            episode_reward_key="episode_reward",
        )
    BoundedHistory().register(trainer)
    hook = hook_of(teacher)
    if device.startswith("cuda"):
        CudaGraphStepper(hook).register(trainer)
    elif hook is not None:
        hook.register(trainer)
    return Loop(trainer, collector, hook)


def _storage(sizes: Sizes, capacity: int, device: str) -> FrameStackStorage:
    return FrameStackStorage(capacity, num_envs=sizes.slots, steps_per_write=sizes.rollout, device=device)


def _dqn(sizes: Sizes, exploration: EGreedyModule, device: str, **common: Any) -> Trainer:
    together = sizes.updates if device.startswith("cuda") else min(4, sizes.updates)
    storage = _storage(sizes, 160 * sizes.steps, device)
    buffer = make_replay_buffer(storage, batch_size=sizes.minibatch, minibatches_at_once=together)
    trainer = DQNTrainer(
        **common,
        optim_steps_per_batch=sizes.updates,
        replay_buffer=buffer,
        target_net_updater=HardUpdate(common["loss_module"], value_network_update_interval=1_000),
        greedy_module=exploration,
    )
    KeepWarmupData(buffer).register(trainer)
    KeepOnDevice().register(trainer)
    return trainer


def _pqn(sizes: Sizes, exploration: EGreedyModule, device: str, **common: Any) -> Trainer:
    buffer = TensorDictReplayBuffer(
        storage=_storage(sizes, sizes.steps, device),
        sampler=SamplerWithoutReplacement(),
        batch_size=sizes.minibatch,
    )
    trainer = OnPolicyTrainer(
        **common,
        optim_steps_per_batch=None,
        replay_buffer=buffer,
        num_epochs=sizes.updates * sizes.minibatch // sizes.steps,
        add_gae=False,
        log_actions=False,  # it would average them, and these are integers
        terminated_key="end_of_life",
    )
    LambdaTargets(gamma=0.99, lmbda=0.65).register(trainer)
    AnnealExploration(exploration).register(trainer)
    return trainer


class Spans:
    """Seconds of the host by what it did or waited for, on the loop's thread.

    ``environment`` is ALE's, ``inference`` the teacher's step and the wait for its actions, ``learning`` that of a
    batch's updates, to their end on the device. The rest is what lies between.
    """

    def __init__(self, loop: Loop, env: AtariVecEnv) -> None:
        self.seconds: Counter[str] = Counter()
        self._calls = (
            (env._ale, "recv", "environment"),
            (env._ale, "send", "environment"),
            (atari, "to_host", "inference"),
            (loop.collector, "_wrapped_policy", "inference"),
            (loop.trainer, "optim_steps", "learning"),
        )

    def __enter__(self) -> Spans:
        self._before = [getattr(place, name) for place, name, _ in self._calls]
        for (place, name, span), call in zip(self._calls, self._before, strict=True):
            setattr(place, name, self._timed(call, span, wait=span == "learning"))
        return self

    def __exit__(self, *_: object) -> None:
        for (place, name, _), call in zip(self._calls, self._before, strict=True):
            setattr(place, name, call)

    def _timed(self, call: Callable[..., Any], span: str, *, wait: bool = False) -> Callable[..., Any]:
        @wraps(call)
        def counted(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                result = call(*args, **kwargs)
                if wait and torch.cuda.is_available():
                    torch.cuda.synchronize()
                return result
            finally:
                self.seconds[span] += time.perf_counter() - start

        return counted


def loops(found: dict[str, Any], device: str, seconds: float, sizes: Mapping[str, Sizes]) -> None:
    """Steps a second of each method and fleet, from the first batch that learned on, and where the time goes.

    Args:
        found: what to fill.
        device: where everything but ALE lies.
        seconds: of each loop, after its first batches.
        sizes: by method.
    """
    for method, size in sizes.items():
        missing = [fleet for fleet in FLEETS if f"{method}, {fleet}" not in found]
        if not missing:
            continue
        env = make_env(size, device)
        for fleet in missing:
            loop = build(method, FLEETS[fleet], env, size, total_steps=10_000_000)
            found[f"{method}, {fleet}"] = _measured(loop, env, size, seconds)
            print(method, fleet, found[f"{method}, {fleet}"], flush=True)
        env.close()


def _measured(loop: Loop, env: AtariVecEnv, size: Sizes, seconds: float) -> dict[str, Any]:
    """Train for some seconds after three batches, in which everything is captured."""
    clock, trainer = RunClock(), loop.trainer
    clock.attach(trainer)
    spans = Spans(loop, env)
    began: list[float] = []
    batches = 0

    def after_batch() -> None:
        nonlocal batches
        batches += 1
        if batches == 3:
            clock.after_batch()
            spans.seconds.clear()
            began.append(time.perf_counter())
        elif batches > 3 and time.perf_counter() - began[0] > seconds:
            trainer.request_stop("timed")

    trainer.register_op("post_steps", after_batch)
    with utilisation() as busy, spans:
        trainer.train()
    clock.end()
    whole = time.perf_counter() - began[0]
    shares = {name: value / whole for name, value in spans.seconds.items()}
    return {
        "steps_per_second": clock.steps_per_second,
        "seconds": whole,
        "steps": (batches - 3) * size.steps,
        "shares": {**shares, "rest": 1 - sum(shares.values())},
        **busy,
    }


def resumed_loop(device: str, method: str, sizes: Sizes, batches: int = 4) -> dict[str, Any]:
    """A loop cut in its middle and resumed twice from one checkpoint: both go on alike, captured or not.

    Games of ALE cannot be saved and begin anew by one seed.
    """
    torch.backends.cudnn.deterministic = True
    total = batches * sizes.steps
    with tempfile.TemporaryDirectory() as place:
        _run(method, device, sizes, total, Path(place) / "whole")
        middle = Path(place) / "whole" / f"checkpoint-{total // 2:012d}"
        runs = [_run(method, device, sizes, total, Path(place) / name, middle) for name in ("one", "other")]
        size = sum(path.stat().st_size for path in middle.rglob("*") if path.is_file())
    torch.backends.cudnn.deterministic = False
    (one, updates), (other, _) = runs
    return {
        "steps": total,
        "cut_at": total // 2,
        "updates_at_the_end": updates,
        "captured": device.startswith("cuda"),
        "checkpoint_megabytes": size / 1e6,
        "largest_difference_of_weights_of_two_resumes": {
            name: max(distance(*pair) for pair in zip(one[name], other[name], strict=True)) for name in one
        },
    }


def _run(
    method: str, device: str, sizes: Sizes, total: int, folder: Path, checkpoint: Path | None = None
) -> tuple[dict[str, list[torch.Tensor]], int]:
    """Weights of teacher and five students at the end of a run or of its second half, and its updates."""
    torch.manual_seed(0)
    env = make_env(sizes, device)
    loop = build(method, FLEETS["the paper's five"], env, sizes, total)
    assert loop.hook is not None
    saver = SaveCheckpoints(folder, every_steps=sizes.steps, keep_last=99, replay=True)
    saver.register(loop.trainer)
    if checkpoint is not None:
        saver.restore(checkpoint)
    loop.trainer.train()
    env.close()
    modules = {"teacher": loop.trainer.loss_module, **loop.hook.students}
    weights = {name: [value.cpu() for value in module.state_dict().values()] for name, module in modules.items()}
    return weights, loop.hook.updates
