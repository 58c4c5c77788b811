"""Cost of a distillation loss over the same maths in plain PyTorch, with the same network.

    python tests/benchmarks/bench_objectives.py --out docs/results/objectives.json

Forward and backward of the forward KL to values that are in the batch, the student being the smallest tower on uint8
pixels, and in a second part an LSTM on rows of steps, of which the first warm its memory without gradient. Ours also
reports its metrics: agreement and the entropies. The two take turns, so that a machine that slows down slows both; the
ratio of their medians is what holds elsewhere.
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
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Categorical
from torchrl.modules import LSTMModule, QValueActor, QValueModule
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


def ours(network: NatureTower, pixels: Tensor, teacher_values: Tensor) -> dict[str, Callable[[], None]]:
    """The same through the loss module, with its metrics and without, as in most of a hook's minibatches."""
    student = QValueActor(network, in_keys=["pixels"], spec=Categorical(NUM_ACTIONS))
    loss = DistillationLoss(student, teacher_temperature=TEMPERATURE, student_temperature=TEMPERATURE)
    batch = TensorDict({"pixels": pixels, "teacher": {"action_value": teacher_values}}, [len(pixels)])
    return both_ways(loss, batch)


def both_ways(loss: DistillationLoss, batch: TensorDict) -> dict[str, Callable[[], None]]:
    return {
        "ours": lambda: loss(batch)["loss_distill"].backward(),
        "without_metrics": lambda: loss(batch, metrics=False)["loss_distill"].backward(),
    }


def compared(batch_size: int, repetitions: int, warmup: int = 10) -> dict[str, Any]:
    """Median milliseconds of both, taking turns, and by how much ours is slower."""
    torch.manual_seed(0)
    network = NatureTower(NUM_ACTIONS, filters=(8, 8, 8), units=64)
    pixels = torch.randint(256, (batch_size, 4, 84, 84), dtype=torch.uint8)
    teacher_values = torch.randn(batch_size, NUM_ACTIONS)
    calls = {"plain": plain(network, pixels, teacher_values), **ours(network, pixels, teacher_values)}
    times = take_turns(calls, repetitions, warmup=warmup, before=lambda: network.zero_grad(set_to_none=True))
    return {"batch_size": batch_size, **overhead(times, repetitions)}


def overhead(times: dict[str, list[float]], repetitions: int) -> dict[str, Any]:
    """Median milliseconds of plain code and ours, and by how much ours is slower."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "repetitions": repetitions,
        "plain_ms": medians["plain"],
        "ours_ms": medians["ours"],
        "without_metrics_ms": medians["without_metrics"],
        "overhead_percent": 100 * (medians["ours"] / medians["plain"] - 1),
        "overhead_percent_without_metrics": 100 * (medians["without_metrics"] / medians["plain"] - 1),
        "overhead_percent_of_pairs": 100 * (median_ratio(times["ours"], times["plain"]) - 1),
    }


def plain_rows(layer: nn.LSTM, head: nn.Linear, batch: TensorDict, burn_in: int) -> Callable[[], None]:
    """The same of a recurrent student: the layer is called once for the burn-in and once for the rest."""
    seen, teacher_values = batch["observation"], batch["teacher", "action_value"]

    def call() -> None:
        state = None
        if burn_in:
            with torch.no_grad():
                _, state = layer(seen[:, :burn_in])
        wanted = F.log_softmax(teacher_values[:, burn_in:] / TEMPERATURE, -1)
        found = F.log_softmax(head(layer(seen[:, burn_in:], state)[0]) / TEMPERATURE, -1)
        F.kl_div(found, wanted, log_target=True, reduction="none").sum(-1).mean().backward()

    return call


def ours_rows(layer: nn.LSTM, head: nn.Linear, batch: TensorDict, burn_in: int) -> dict[str, Callable[[], None]]:
    """The same through TorchRL's ``LSTMModule`` and the loss module, which look for games that begin within rows."""
    memory = LSTMModule(lstm=layer, in_key="observation", out_key="features")
    values = TensorDictModule(head, in_keys=["features"], out_keys=["action_value"])
    student = TensorDictSequential(memory, values, QValueModule(spec=Categorical(NUM_ACTIONS)))
    loss = DistillationLoss(student, teacher_temperature=TEMPERATURE, student_temperature=TEMPERATURE, burn_in=burn_in)
    return both_ways(loss, batch)


def compared_rows(
    num_rows: int, burn_in: int, repetitions: int, *, units: int = 128, steps: int = 40
) -> dict[str, Any]:
    """Median milliseconds of both for rows ``[num_rows, steps]`` of features ``[units]``, as :func:`compared`."""
    torch.manual_seed(0)
    layer, head = nn.LSTM(units, units, batch_first=True), nn.Linear(units, NUM_ACTIONS)
    batch = TensorDict(
        {
            "observation": torch.randn(num_rows, steps, units),
            "is_init": torch.zeros(num_rows, steps, 1, dtype=torch.bool),
            "teacher": {"action_value": torch.randn(num_rows, steps, NUM_ACTIONS)},
        },
        [num_rows, steps],
    )
    calls = {"plain": plain_rows(layer, head, batch, burn_in), **ours_rows(layer, head, batch, burn_in)}

    def forget() -> None:
        layer.zero_grad(set_to_none=True)
        head.zero_grad(set_to_none=True)

    times = take_turns(calls, repetitions, warmup=10, before=forget)
    return {"rows": num_rows, "steps": steps, "burn_in": burn_in, "units": units, **overhead(times, repetitions)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [compared(batch_size, options.repetitions) for batch_size in options.batch_sizes]
    recurrent = [
        compared_rows(32, burn_in, options.repetitions, units=units) for units in (128, 256) for burn_in in (0, 10)
    ]
    for row in [*rows, *recurrent]:
        name = (
            f"batch {row['batch_size']}" if "batch_size" in row else f"LSTM of {row['units']}, burn-in {row['burn_in']}"
        )
        print(
            f"{name}: plain {row['plain_ms']:.2f} ms, ours {row['ours_ms']:.2f} ms, "
            f"overhead {row['overhead_percent']:.1f} % (of pairs {row['overhead_percent_of_pairs']:.1f} %), "
            f"without metrics {row['overhead_percent_without_metrics']:.1f} %"
        )
    if options.out is not None:
        write_json(
            options.out,
            {"threads": options.threads, "rows": rows, "recurrent": recurrent, "environment": run_environment()},
        )


if __name__ == "__main__":
    main()
