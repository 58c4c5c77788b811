"""Where each millisecond of a training step goes in the main example.

    python tests/benchmarks/bench_profile.py --out docs/results/profile.json
    python tests/benchmarks/bench_profile.py --teacher pqn --out docs/results/pqn_profile.json

Runs the example's own networks, trainer and hook with a stopwatch around their parts. A part that calls another stops
while that one runs, so that the times add up to the whole. Besides, how long the arithmetic of an update would take at
the speed of a large matrix product, which no program for this machine can undercut by much.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from main_example import ROOT, rtpd_atari
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from turns import take_turns

from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json
from torchrl_rtpd.runs.process import keep_freed_memory

# Parts that plain code has, too; the rest is what the library costs.
WORK = ("environment", "networks", "backward", "optimiser")
SETTINGS = {
    "dqn": [
        *("total_steps=6000", "warmup_steps=1000", "batch_size=32", "steps_per_update=4", "rollout_steps=8"),
        "n_step=1",
    ],
    "pqn": [
        *("teacher=pqn", "game=breakout", "total_steps=6144", "num_envs=8", "rollout_steps=128", "batch_size=256"),
        *("num_epochs=4", "single_frames=true", "teacher_settles=null", "student_settles=null"),
    ],
}


class Stopwatch:
    """Seconds by part, each without those of the parts it calls.

    A part is ``(owner, work)``, such as ``("net17", "backward")``; an owner of None is the caller's.
    """

    def __init__(self, device: str) -> None:
        self.seconds: Counter[tuple[str, str]] = Counter()
        self._open: list[tuple[str, str]] = [("trainer", "rest")]
        self._since = time.perf_counter()
        self._on_gpu = device.startswith("cuda")

    def lap(self) -> None:
        """Book the time since the last lap on the innermost part."""
        if self._on_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, owner: str | None, work: str) -> Iterator[None]:
        """Time what is done inside."""
        self.lap()
        self._open.append((owner or self._open[-1][0], work))
        try:
            yield
        finally:
            self.lap()
            self._open.pop()

    def around(self, thing: Any, method: str, owner: str | None, work: str) -> None:
        """Time every call of a method of an object or class."""
        setattr(thing, method, self.timed(getattr(thing, method), owner, work))

    def timed(self, call: Callable[..., Any], owner: str | None, work: str) -> Callable[..., Any]:
        """The same function with its calls timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(owner, work):
                return call(*args, **kwargs)

        return timed


def profiled(config: Any) -> tuple[Counter[tuple[str, str]], int, float]:
    """Seconds by part from the first update on, the number of updates, and the operations of one."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    env = rtpd_atari.make_env(config, config.num_envs, seed=config.seed)
    networks = rtpd_atari.build_networks(config, env)
    trainer, hook = rtpd_atari.build_trainer(config, env, networks, None)
    watch = Stopwatch(config.device)
    watch.around(env, "_step", "collector", "environment")
    watch.around(env, "_reset", "collector", "environment")
    trainer.collector.iterator = partial(_timed_iterator, trainer.collector.iterator, watch)
    watch.around(trainer.replay_buffer, "extend", "replay", "writing")
    watch.around(trainer.replay_buffer, "sample", "replay", "sampling")
    for network in networks.values():
        watch.around(network.module[0].module, "forward", None, "networks")
    watch.around(trainer.loss_module, "forward", "teacher", "loss")
    watch.around(trainer.optimizer, "step", "teacher", "optimiser")
    backward = Tensor.backward
    watch.around(Tensor, "backward", None, "backward")
    for index, (op, kwargs) in enumerate(trainer._optimizer_ops):
        trainer._optimizer_ops[index] = (watch.timed(op, "teacher", "gradient norm"), kwargs)
    for name, student in (hook.learners if hook is not None else {}).items():
        watch.around(student, "learn", name, "loss and metrics")
        watch.around(student.optimizer, "step", name, "optimiser")
    trainer.register_op("pre_optim_steps", partial(_begin, watch, trainer))
    try:
        trainer.train()
    finally:
        Tensor.backward = backward
    watch.lap()
    seconds = watch.seconds.copy()
    updates = trainer._optim_count if hook is None else hook.updates  # the trainer counts one more an epoch
    return seconds, updates, learning_flops(config, networks, trainer.replay_buffer.sample()["pixels"])


def learning_flops(config: Any, networks: dict[str, Any], pixels: Tensor) -> int:
    """Floating-point operations of an update: forward and backward, and of target networks forward."""
    total = 0
    for name, network in networks.items():
        tower = network.module[0].module
        with FlopCounterMode(display=False, custom_mapping=_OWN_FLOPS) as counter:
            tower(pixels).sum().backward()
            if name == "teacher" or config.td_coeff:
                with torch.no_grad():
                    tower(pixels)
        total += counter.get_total_flops()
    return total


def _linear_flops(left: list[int], right: list[int], *_: Any, **__: Any) -> int:
    """Operations of a product ``[M, K]`` with ``[N, K]`` by oneDNN."""
    return 2 * left[0] * left[1] * right[0]


_OWN_FLOPS = {torch.ops.mkldnn._linear_pointwise: _linear_flops}  # which PyTorch's counter does not know


def matrix_flops(device: str, size: int = 1_024, repetitions: int = 30) -> float:
    """Floating-point operations a second of a matrix product, the best of some."""
    matrix = torch.randn(size, size, device=device)
    times = take_turns({"product": lambda: matrix @ matrix}, repetitions)["product"]
    return 2 * size**3 / (1e-3 * min(times))


def _timed_iterator(iterator: Callable[[], Iterator[Any]], watch: Stopwatch) -> Iterator[Any]:
    batches = iterator()
    while True:
        with watch.part("collector", "rest"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _begin(watch: Stopwatch, trainer: Any) -> None:
    if not trainer._optim_count:  # random play before the first update is not part of a training step
        watch.lap()
        watch.seconds.clear()


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--teacher", default="dqn", choices=list(SETTINGS))
    parser.add_argument("overrides", nargs="*", help="keys of the example's configuration")
    options = parser.parse_args()
    keep_freed_memory()
    common = ["td_coeff=0", "student_updates=1", "recycle_every_updates=null", "evaluate_every_steps=null"]
    common += ["students=[net17]", "game=road_runner", "threads=2"]
    with initialize_config_dir(str(ROOT / "examples" / "config"), version_base="1.3"):
        config = compose("rtpd_atari", [*common, *SETTINGS[options.teacher], *options.overrides, "output_dir=unused"])
    seconds, updates, flops = profiled(config)
    parts = [
        {"owner": owner, "work": work, "ms": 1e3 * spent / updates} for (owner, work), spent in seconds.most_common()
    ]
    total = sum(part["ms"] for part in parts)
    share = 1 - sum(part["ms"] for part in parts if part["work"] in WORK) / total
    for part in parts:
        print(f"{part['owner']:10} {part['work']:18} {part['ms']:8.3f} ms {part['ms'] / total:6.1%}")
    speed = matrix_flops(config.device)
    result = {
        "parts": parts,
        "ms_an_update": total,
        "updates": updates,
        "share_of_library": share,
        "gigaflops_an_update": flops / 1e9,
        "gigaflops_a_second": speed / 1e9,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "parts"}))
    if options.out is not None:
        settings = OmegaConf.to_container(config)
        chosen = {
            key: settings[key] for key in ("game", "students", "batch_size", "steps_per_update", "threads", "device")
        }
        if options.teacher == "pqn":
            chosen["steps_per_update"] = config.batch_size // config.num_epochs
        write_json(options.out, {**result, "options": chosen, "environment": run_environment(config.device)})


if __name__ == "__main__":
    main()
