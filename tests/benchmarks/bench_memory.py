"""Resident memory of the main example with a full replay of a million transitions.

    python tests/benchmarks/bench_memory.py --out docs/results/memory.json

The rollouts of the warm-up fill the replay, again and again as new games; then the example's own trainer goes on
playing and learning, and the resident memory of the process is noted after every round.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from main_example import ROOT, rtpd_atari
from tensordict import TensorDictBase

from torchrl_rtpd import AtariVecEnv
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json
from torchrl_rtpd.runs.process import keep_freed_memory


def resident_bytes() -> int:
    """Of this process, as Linux counts."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmRSS"].split()[0])


def main() -> None:
    """Fill, train, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capacity", type=int, default=1_000_000)
    parser.add_argument("--updates", type=int, default=2_000)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    keep_freed_memory()
    warmup = 1_024
    settings = [f"replay_capacity={options.capacity}", f"total_steps={warmup + 4 * options.updates}"]
    settings += [f"warmup_steps={warmup}", "rollout_steps=32", "batch_size=32", "steps_per_update=4", "threads=2"]
    with initialize_config_dir(str(ROOT / "examples" / "config"), version_base="1.3"):
        config = compose("rtpd_atari", [*settings, "output_dir=unused"])
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    env = AtariVecEnv(config.game, config.num_envs, num_threads=config.threads, seed=0)
    trainer, _ = rtpd_atari.build_trainer(config, env, rtpd_atari.build_networks(config, env), None)
    buffer, storage = trainer.replay_buffer, trainer.replay_buffer.storage
    before = resident_bytes()
    rounds: list[dict[str, Any]] = []

    played: list[TensorDictBase] = []

    def fill(batch: TensorDictBase) -> None:
        if trainer.collected_frames >= warmup:
            return
        played.append(batch.reshape(-1).clone())
        if len(played) * batch.numel() < warmup:
            return
        while len(storage) < storage.max_size:
            storage.cut()
            for rollout in played:
                buffer.extend(rollout)
        storage.cut()
        for rollout in played[:-1]:  # the trainer writes the last one itself
            buffer.extend(rollout)

    def note() -> None:
        rounds.append({"updates": trainer._optim_count, "resident_gb": resident_bytes() / 1e9})

    trainer.register_op("batch_process", fill)
    trainer.register_op("post_steps", note)
    trainer.train()
    learning = [entry for entry in rounds if entry["updates"] >= 200]  # once everything was allocated
    quarter = len(learning) // 4
    first, last = (
        statistics.mean(entry["resident_gb"] for entry in part) for part in (learning[:quarter], learning[-quarter:])
    )
    result = {
        "transitions": len(storage),
        "bytes_per_transition": storage.bytes_per_transition,
        "estimated_gb": storage.estimated_bytes / 1e9,
        "resident_gb_before": before / 1e9,
        "resident_gb_most": max(entry["resident_gb"] for entry in rounds),
        "growth_percent": 100 * (last / first - 1),
        "updates": trainer._optim_count,
        "rounds": rounds,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}))
    if options.out is not None:
        write_json(options.out, {**result, "environment": run_environment()})


if __name__ == "__main__":
    main()
