"""Frame storage against TorchRL's storage of whole stacks: sampling, writing and memory.

    python tests/benchmarks/bench_replay.py --out docs/results/replay.json

All buffers hold the same real transitions. Sampling is what a trainer waits for: a minibatch with its stacks, for the
whole-stack buffer copies of what it stored; "channels_last" brings its pixels into the memory layout of the networks,
which ours come in.
"""

from __future__ import annotations

import statistics
from functools import partial

import torch
from torchrl.data import LazyTensorStorage, PrioritizedSampler, TensorDictReplayBuffer
from turns import median_ratio, parsed_options, take_turns

from torchrl_rtpd import AtariVecEnv, FrameStackStorage, make_replay_buffer
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json
from torchrl_rtpd.runs.process import keep_freed_memory

NUMBERS = {"repetitions": 200, "capacity": 20_480, "batch": 32, "envs": 8, "steps": 8, "threads": 2}


def main() -> None:
    """Fill the buffers, measure, print, save."""
    options = parsed_options(__doc__, NUMBERS, game="road_runner")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_freed_memory()

    def frames(n_step: int = 1, prioritized: bool = False) -> TensorDictReplayBuffer:
        storage = FrameStackStorage(
            options.capacity, num_envs=options.envs, steps_per_write=options.steps, n_step=n_step
        )
        return make_replay_buffer(storage, batch_size=options.batch, prioritized=prioritized)

    whole = TensorDictReplayBuffer(storage=LazyTensorStorage(options.capacity), batch_size=options.batch)
    whole_prioritized = TensorDictReplayBuffer(
        storage=LazyTensorStorage(options.capacity),
        sampler=PrioritizedSampler(options.capacity, alpha=0.6, beta=0.4),
        batch_size=options.batch,
    )
    buffers = {
        "frames": frames(),
        "frames_prioritized": frames(prioritized=True),
        "frames_10_step": frames(n_step=10),
        "stacks": whole,
        "stacks_prioritized": whole_prioritized,
    }
    env = AtariVecEnv(options.game, options.envs, num_threads=options.threads, seed=0)
    rollout = env.reset()
    writes: dict[str, list[float]] = {}
    for _ in range(options.capacity // (options.envs * options.steps)):
        rollout = env.rollout(
            options.steps, policy=None, break_when_any_done=False, auto_reset=False, tensordict=rollout
        )
        batch = rollout.reshape(-1)
        calls = {name: partial(buffer.extend, batch) for name, buffer in buffers.items()}
        for name, values in take_turns(calls, 1, warmup=0).items():
            writes.setdefault(name, []).extend(values)
        rollout = env.step_mdp(rollout[:, -1])
    calls = {name: buffer.sample for name, buffer in buffers.items()}

    def channels_last() -> None:
        sample = whole.sample()
        for pixels in (sample["pixels"], sample["next", "pixels"]):
            pixels.contiguous(memory_format=torch.channels_last)

    calls["stacks_channels_last"] = channels_last
    times = take_turns(calls, options.repetitions, warmup=10)
    held = {
        "frames": buffers["frames"].storage.bytes_per_transition,
        "stacks": whole[:].bytes() / len(whole),
    }
    result = {
        "sample_ms": {name: statistics.median(values) for name, values in times.items()},
        "sample_over_stacks": {name: median_ratio(values, times["stacks"]) for name, values in times.items()},
        "write_ms": {name: statistics.median(values) for name, values in writes.items()},
        "bytes_per_transition": held,
        "options": {"game": options.game, **{name: getattr(options, name) for name in NUMBERS}},
    }
    print(result)
    if options.out is not None:
        write_json(options.out, {**result, "environment": run_environment()})


if __name__ == "__main__":
    main()
