"""Cost of a distillation loss over the same maths in plain PyTorch, with the same network.

    python tests/benchmarks/bench_objectives.py --out docs/results/objectives.json

Forward and backward of the forward KL to values that are in the batch, the student being the smallest tower on uint8
pixels. Ours also reports its metrics: agreement and the entropies. The two take turns, so that a machine that slows
down slows both; the ratio of their medians is what holds elsewhere.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Categorical
from torchrl.modules import QValueActor
from turns import median_ratio, take_turns

from torchrl_rtpd import DistillationLoss, NatureTower
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json

NUM_ACTIONS = 18
TEMPERATURE = 0.1


def plain(network: NatureTower, pixels: Tensor, teacher_values: Tensor) -> Callable[[], None]:
    """The update's forward and backward as one would write them by hand."""

    def call() -> None:
        wanted = F.log_softmax(teacher_values / TEMPERATURE, -1)
        found = F.log_softmax(network(pixels) / TEMPERATURE, -1)
        F.kl_div(found, wanted, log_target=True, reduction="batchmean").backward()

    return call


def ours(network: NatureTower, pixels: Tensor, teacher_values: Tensor) -> Callable[[], None]:
    """The same through the loss module."""
    student = QValueActor(network, in_keys=["pixels"], spec=Categorical(NUM_ACTIONS))
    loss = DistillationLoss(student, teacher_temperature=TEMPERATURE, student_temperature=TEMPERATURE)
    batch = TensorDict({"pixels": pixels, "teacher": {"action_value": teacher_values}}, [len(pixels)])
    return lambda: loss(batch)["loss_distill"].backward()


def compared(batch_size: int, repetitions: int, warmup: int = 10) -> dict[str, Any]:
    """Median milliseconds of both, taking turns, and by how much ours is slower."""
    torch.manual_seed(0)
    network = NatureTower(NUM_ACTIONS, filters=(8, 8, 8), units=64)
    pixels = torch.randint(256, (batch_size, 4, 84, 84), dtype=torch.uint8)
    teacher_values = torch.randn(batch_size, NUM_ACTIONS)
    calls = {"plain": plain(network, pixels, teacher_values), "ours": ours(network, pixels, teacher_values)}
    times = take_turns(calls, repetitions, warmup=warmup, before=lambda: network.zero_grad(set_to_none=True))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "batch_size": batch_size,
        "repetitions": repetitions,
        "plain_ms": medians["plain"],
        "ours_ms": medians["ours"],
        "overhead_percent": 100 * (medians["ours"] / medians["plain"] - 1),
        "overhead_percent_of_pairs": 100 * (median_ratio(times["ours"], times["plain"]) - 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [compared(batch_size, options.repetitions) for batch_size in options.batch_sizes]
    for row in rows:
        print(
            f"batch {row['batch_size']}: plain {row['plain_ms']:.2f} ms, ours {row['ours_ms']:.2f} ms, "
            f"overhead {row['overhead_percent']:.1f} % (of pairs {row['overhead_percent_of_pairs']:.1f} %)"
        )
    if options.out is not None:
        write_json(options.out, {"threads": options.threads, "rows": rows, "environment": run_environment()})


if __name__ == "__main__":
    main()
