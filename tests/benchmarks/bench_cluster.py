"""Measured pieces of a cluster's cost: bytes a step, a collector's speed, an update, a broadcast of weights, staleness.

    python tests/benchmarks/bench_cluster.py --out docs/results/cluster.json

Ray runs on this machine with more logical cores than there are, so pieces are timed one at a time: never two that
compete for a core. Weights are the paper's teacher and five students. What a network between machines adds is not
measured.
"""

from __future__ import annotations

import json
import os
import pickle
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.data import Categorical, LazyTensorStorage, RayReplayBuffer, TensorDictReplayBuffer
from torchrl.envs import EnvBase, GymEnv
from torchrl.modules import QValueActor
from turns import parsed_options

from torchrl_rtpd import (
    AtariVecEnv,
    DualNetworkCollector,
    PQNLoss,
    RealTimeDistillTrainer,
    StudentDQNLoss,
    StudentPQNLoss,
    TeacherDQNLoss,
    make_actor,
)
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json
from torchrl_rtpd.trainers import hard_update_every

NUMBERS = {"repetitions": 20, "slots": 8, "rollout": 16, "collectors": 4, "batch": 32, "batches": 40}
STUDENTS = ["net1", "net2", "net3", "net5", "net17"]
RAY = {"num_cpus": 16, "include_dashboard": False, "object_store_memory": 500_000_000, "log_to_driver": False}
ACTIONS = Categorical(18)
ENDLESS = 10**9  # for -1 a Ray collector yields nothing


def atari(slots: int, frame_stack: int) -> EnvBase:
    """Road Runner, one thread."""
    return AtariVecEnv("road_runner", slots, frame_stack=frame_stack, num_threads=1, full_action_space=True, seed=0)


def networks() -> dict[str, QValueActor]:
    """The paper's teacher and five students."""
    return {name: make_actor(name, ACTIONS, seed=0) for name in ["teacher", *STUDENTS]}


def least_seconds(call: Callable[[], object], repetitions: int) -> float:
    """Shortest time of a call, since others may use the machine; the first two are not counted."""
    times = []
    for _ in range(repetitions + 2):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[2:])


def bytes_a_step(slots: int, rollout: int) -> dict[str, dict[str, float]]:
    """Bytes that a step has in a batch on its way, and pickled as Ray sends it: frames alone or in stacks of four."""
    found = {}
    for kind, shown, stack in (("single frames", 1, 4), ("stacks of four", 4, None)):
        collector = DualNetworkCollector(
            atari(slots, shown),
            make_actor("teacher", ACTIONS),
            frame_stack=stack,
            frames_per_batch=slots * rollout,
            total_frames=slots * rollout,
        )
        batch = next(iter(collector))
        steps = batch.numel()
        found[kind] = {"data": batch.bytes() / steps, "sent": len(pickle.dumps(batch)) / steps}
        collector.shutdown()
    return found


def on_ray(make_env: Callable[[], EnvBase], named: dict[str, QValueActor], **kwargs: Any) -> DualNetworkCollector:
    """A collector of Ray actors."""
    teacher, *students = named.values()
    return DualNetworkCollector(
        make_env,
        teacher,
        dict(zip(list(named)[1:], students, strict=True)) or None,
        backend="ray",
        backend_options={"ray_init_config": RAY, "remote_configs": {"num_cpus": 1, "memory": 0}},
        **kwargs,
    )


def collection(slots: int, rollout: int, batches: int) -> dict[str, float]:
    """Steps a second of one Ray collector, and the driver's seconds a step to pass a batch on to a replay."""
    replay = RayReplayBuffer(
        replay_buffer_cls=TensorDictReplayBuffer,
        storage=partial(LazyTensorStorage, 4 * slots * rollout),
        batch_size=32,
        ray_init_config=RAY,
        remote_config={"num_cpus": 0},
    )
    steps = slots * rollout
    collector = on_ray(
        partial(atari, slots, 1),
        {"teacher": make_actor("teacher", ACTIONS)},
        frame_stack=4,
        frames_per_batch=steps,
        total_frames=ENDLESS,
        sync=True,
        num_collectors=1,
    )
    data = iter(collector)
    seconds = least_seconds(lambda: next(data), batches)
    batch = next(data).reshape(-1)
    storing = least_seconds(lambda: replay.extend(batch), batches)
    sampling = least_seconds(replay.sample, batches)
    collector.shutdown()
    replay.shutdown()
    return {"steps_per_second": steps / seconds, "driver_seconds_a_step": storing / steps, "seconds_a_sample": sampling}


def broadcasts(most: int, repetitions: int) -> dict[str, Any]:
    """Seconds to send all weights, to one collector, to two, and so on by doubling."""
    found: dict[str, Any] = {"bytes": 0, "seconds": {}}
    number = 1
    while number <= most:
        # A tiny game: its actors wait while weights are sent.
        collector = on_ray(
            partial(atari, 1, 4),
            networks(),
            acting=dict.fromkeys(STUDENTS, 0.1),
            frames_per_batch=4 * number,
            total_frames=ENDLESS,
            num_collectors=number,
            sync=True,
        )
        weights = collector.dual_policy.weights()
        found["bytes"] = weights.bytes()
        found["seconds"][str(number)] = least_seconds(
            lambda collector=collector, weights=weights: collector.update_policy_weights_(weights), repetitions
        )
        collector.shutdown()
        number *= 2
    return found


def minibatch(size: int) -> TensorDictBase:
    """Random stacks with all that losses of DQN and PQN read."""

    def pixels() -> torch.Tensor:
        return torch.randint(256, (size, 84, 84, 4), dtype=torch.uint8).permute(0, 3, 1, 2)

    over = torch.zeros(size, 1, dtype=torch.bool)
    following = {"pixels": pixels(), "reward": torch.zeros(size, 1), "done": over, "terminated": over}
    action, target = torch.randint(ACTIONS.n, (size,)), torch.zeros(size, 1)
    return TensorDict({"pixels": pixels(), "action": action, "value_target": target, "next": following}, [size])


def update_seconds(kind: str, size: int, repetitions: int) -> float:
    """One update of the teacher and five students."""
    teacher, *students = networks().values()
    if kind == "dqn":
        loss, of_student = TeacherDQNLoss(teacher, delay_value=True), StudentDQNLoss
        loss.make_value_estimator(gamma=0.99)
    else:
        loss, of_student = PQNLoss(teacher), StudentPQNLoss
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-4)
    fleet = {name: of_student(student) for name, student in zip(STUDENTS, students, strict=True)}
    hook = RealTimeDistillTrainer(
        fleet,
        optimizer=partial(torch.optim.Adam, lr=1e-4),
        target_updater=partial(hard_update_every, updates=1_000),
    )
    hook.attach(_Bare(loss))  # type: ignore[arg-type]
    data = minibatch(size)

    def update() -> None:
        batch = data.clone(False)
        found = loss(batch)
        sum(value for key, value in found.items() if key.startswith("loss")).backward()
        optimizer.step()
        optimizer.zero_grad()
        hook.step(batch)

    return least_seconds(update, repetitions)


class _Bare:
    """What the hook asks of a trainer."""

    def __init__(self, loss: nn.Module) -> None:
        self.loss_module = loss


def broadcasts_behind(workers: int, batches: int, *, sync: bool) -> float:
    """Mean number of broadcasts between the weights that acted and those that learn, where learning is what takes long.

    The number of the last broadcast is the bias of a network without weights, so that the values that acted tell it.
    """
    head = nn.Linear(4, 2)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    collector = on_ray(
        partial(GymEnv, "CartPole-v1", categorical_action_encoding=True),
        {"teacher": QValueActor(head, in_keys=["observation"], spec=Categorical(2))},
        keep=["action_value"],
        frames_per_batch=16 * workers,
        total_frames=ENDLESS,
        num_collectors=workers,
        sync=sync,
    )
    behind: list[float] = []
    for batch in collector:
        behind.append(len(behind) - float(batch["action_value"].mean()))
        time.sleep(0.05)
        with torch.no_grad():
            head.bias.fill_(float(len(behind)))
        collector.update_policy_weights_(collector.dual_policy.weights("teacher"))
        if len(behind) == batches:
            break
    collector.shutdown()
    return statistics.mean(behind[batches // 2 :])


def main() -> None:
    """Measure, print, save."""
    options = parsed_options(__doc__, NUMBERS)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ["RAY_worker_niceness"] = "0"
    result: dict[str, Any] = {
        "bytes_a_step": bytes_a_step(options.slots, options.rollout),
        "update_seconds": {kind: update_seconds(kind, options.batch, options.repetitions) for kind in ("dqn", "pqn")},
        "collection": collection(options.slots, options.rollout, options.repetitions),
        "broadcast": broadcasts(options.collectors, options.repetitions),
        "broadcasts_behind": {
            way: {
                str(workers): broadcasts_behind(workers, options.batches, sync=way == "in step")
                for workers in (1, 2, 4)
            }
            for way in ("in step", "out of step")
        },
        "options": {name: getattr(options, name) for name in NUMBERS},
        "load": os.getloadavg()[0],
        "ray": version("ray"),
    }
    print(json.dumps(result))
    if options.out is not None:
        write_json(options.out, {**result, "environment": run_environment()})


if __name__ == "__main__":
    main()
