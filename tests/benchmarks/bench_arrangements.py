"""Other arrangements of an update's arithmetic, each beside the one that the package has, in turns.

    python tests/benchmarks/bench_arrangements.py --out docs/results/arrangements.json

The first layer of a tower sees uint8 stacks ``[B, 4, 84, 84]``, and all towers the same ones. Tried are the 8x8
convolution of stride 4 as one of 2x2 over 64 channels (each 4x4 block of pixels becomes a pixel), as a product of
matrices (im2col), and once for all students with their filters side by side. Beside them one optimiser and one backward
pass for all networks, a minibatch of both states, the products of the wide layer by MKL, and ``torch.compile`` of all
losses at once. All compute the same but for rounding, which is checked before anything is timed. Times are of forward
and backward, of a whole update where it says so.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from main_example import ROOT
from torch import Tensor, nn
from turns import median_ratio, take_turns

from torchrl_rtpd.networks.linear import WideLinear
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json
from torchrl_rtpd.runs.process import keep_freed_memory

sys.path.insert(0, str(ROOT / "examples"))
import by_hand

NUM_ACTIONS = 18
FLEET = (16, 16, 16, 8, 8, 8)  # filters of the first layers of the paper's students
Result = Tensor | list[Tensor]
Calls = dict[str, Callable[[], Result]]
"""Alternatives by name, the package's own first; each returns what must be equal."""


def stacks(batch: int) -> Tensor:
    """Random frames in channels-last memory, as the replay hands them out."""
    return torch.randint(256, (batch, 84, 84, 4), dtype=torch.uint8).permute(0, 3, 1, 2)


def learned(output: Tensor, *parameters: Tensor) -> list[Tensor]:
    """Gradients of the sum of squares."""
    return list(torch.autograd.grad(output.square().sum(), parameters))


def first_layer(batch: int) -> Calls:
    """One network's: scaling, convolution, and gradients of its 32 filters."""
    pixels, convolution = stacks(batch), nn.Conv2d(4, 32, 8, 4).to(memory_format=torch.channels_last)
    weight, bias = convolution.weight, convolution.bias

    def direct() -> Result:
        return learned(F.conv2d(by_hand.scaled(pixels), weight, bias, 4), weight, bias)

    def blocks() -> Result:
        # [B, 84, 84, 4] bytes to [B, 21, 21, 4 * 4 * 4] numbers; the filters likewise.
        rows = pixels.permute(0, 2, 3, 1).reshape(batch, 21, 4, 21, 4, 4).permute(0, 1, 3, 2, 4, 5)
        values = rows.reshape(batch, 21, 21, 64).to(torch.float32).mul_(1 / 255).permute(0, 3, 1, 2)
        filters = weight.reshape(32, 4, 2, 4, 2, 4).permute(0, 3, 5, 1, 2, 4).reshape(32, 64, 2, 2)
        return learned(F.conv2d(values, filters, bias), weight, bias)

    def product() -> Result:
        columns = F.unfold(by_hand.scaled(pixels), 8, stride=4)
        return learned(weight.flatten(1) @ columns + bias[:, None], weight, bias)

    return {"8x8 convolution": direct, "2x2 convolution over blocks": blocks, "im2col and a product": product}


def fleet_layer(batch: int, filters: tuple[int, ...]) -> Calls:
    """The first layers of several students on the same pixels, scaled once."""
    values = by_hand.scaled(stacks(batch))
    layers = [nn.Conv2d(4, number, 8, 4).to(memory_format=torch.channels_last) for number in filters]
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]

    def separate() -> Result:
        total = sum(layer(values).square().sum() for layer in layers)
        return list(torch.autograd.grad(total, [*weights, *biases]))

    def together() -> Result:
        output = F.conv2d(values, torch.cat(weights), torch.cat(biases), 4)
        total = sum(part.square().sum() for part in output.split(list(filters), 1))
        return list(torch.autograd.grad(total, [*weights, *biases]))

    return {"a convolution each": separate, "one for all": together}


def wide_layer(batch: int, inputs: int, outputs: int) -> Calls:
    """The fully connected layer, with gradients of its input and weights."""
    ours, theirs = WideLinear(inputs, outputs), nn.Linear(inputs, outputs)
    theirs.load_state_dict(ours.state_dict())
    features = torch.randn(batch, inputs, requires_grad=True)
    return {
        "WideLinear": lambda: learned(ours(features), features, *ours.parameters()),
        "nn.Linear": lambda: learned(theirs(features), features, *theirs.parameters()),
    }


def both_states(batch: int) -> Calls:
    """The teacher's network without gradient on two minibatches: as of double DQN, which runs it on both states."""
    tower = by_hand.tower((32, 64, 64), 512, NUM_ACTIONS)
    now, then = by_hand.scaled(stacks(batch)), by_hand.scaled(stacks(batch))
    together = torch.cat([now, then])
    apart = torch.no_grad()(lambda: torch.cat([tower(now), tower(then)]))
    return {"a minibatch each": apart, "one of twice the size": torch.no_grad()(lambda: tower(together))}


class Update:
    """Teacher, net1 and net17 as ``by_hand.py`` has them, and an update in one of several arrangements."""

    def __init__(self, batch: int, *, backward: str = "each", optimiser: str = "each", compiled: bool = False) -> None:
        torch.manual_seed(0)
        sizes = (((32, 64, 64), 512), ((16, 32, 32), 256), ((8, 8, 8), 64))
        self.learners = [by_hand.Learner(by_hand.tower(*size, NUM_ACTIONS), lr=5e-4, eps=1e-5) for size in sizes]
        self.backward = backward
        self.optimizers = [learner.optimizer for learner in self.learners]
        if optimiser == "one":
            networks = nn.ModuleList(learner.network for learner in self.learners)
            self.optimizers = [torch.optim.Adam(networks.parameters(), lr=5e-4, eps=1e-5, fused=True)]
        self.losses = torch.compile(self._losses) if compiled else self._losses
        actions, rewards = torch.randint(NUM_ACTIONS, (batch,)), torch.rand(batch)
        self.now, self.then, self.rest = stacks(batch), stacks(batch), (actions, rewards, torch.zeros(batch))

    def _losses(self, now: Tensor, then: Tensor, action: Tensor, reward: Tensor, over: Tensor) -> list[Tensor]:
        batch = by_hand.Batch(by_hand.scaled(now), action, reward, over, by_hand.scaled(then))
        teacher, *students = self.learners
        with torch.no_grad():
            following = [learner.target(batch.next_pixels) for learner in self.learners]
            next_action = following[0].argmax(1)
        values = teacher.network(batch.pixels)
        losses = [by_hand.td_error(values, following[0], next_action, batch)]
        for student, next_values in zip(students, following[1:], strict=True):
            own = student.network(batch.pixels)
            kl = by_hand.divergence(values.detach(), own)
            losses.append(kl + by_hand.td_error(own, next_values, next_action, batch))
        return losses

    def __call__(self) -> list[Tensor]:
        """Make the update; return the losses before it."""
        losses = self.losses(self.now, self.then, *self.rest)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        if self.backward == "one":
            sum(losses).backward()
        else:
            for loss in losses:
                loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return [loss.detach() for loss in losses]


def whole_update(batch: int) -> Calls:
    """Updates of teacher, net1 and net17."""
    arrangements = {
        "a backward pass and an optimiser each": {},
        "one backward pass": {"backward": "one"},
        "one optimiser": {"optimiser": "one"},
        "losses compiled together": {"backward": "one", "compiled": True},
    }
    made = {}
    for name, options in arrangements.items():
        torch.manual_seed(1)
        made[name] = Update(batch, **options)
    return made


def compared(calls: Calls, repetitions: int) -> dict[str, object]:
    """Times of alternatives that give the same; the first call of each is timed alone, as it may compile."""
    firsts, results = {}, {}
    for name, call in calls.items():
        begin = time.perf_counter()
        results[name] = copy.deepcopy(call())
        firsts[name] = time.perf_counter() - begin
    reference = next(iter(results.values()))
    for result in results.values():
        torch.testing.assert_close(result, reference, rtol=2e-3, atol=2e-3)
    times = take_turns(calls, repetitions, in_a_row=3)
    first = next(iter(times))
    return {
        name: {
            "ms": statistics.median(values),
            "over_the_first": median_ratio(values, times[first]),
            "first_call_seconds": firsts[name],
        }
        for name, values in times.items()
    }


def tasks(batch: int) -> dict[str, Callable[[], Calls]]:
    """What is compared, by name."""
    return {
        "first layer of the teacher": partial(first_layer, batch),
        "first layers of six students": partial(fleet_layer, batch, FLEET),
        "first layers of two students of 8 filters": partial(fleet_layer, batch, (8, 8)),
        "wide layer of the teacher": partial(wide_layer, batch, 3_136, 512),
        "wide layer of net1": partial(wide_layer, batch, 1_568, 256),
        "a network on both states": partial(both_states, batch),
        "update of teacher, net1 and net17": partial(whole_update, batch),
    }


def main() -> None:
    """Compare, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=40)
    options = parser.parse_args()
    keep_freed_memory()
    rows = []
    for batch in options.batch:
        for threads in options.threads:
            torch.set_num_threads(threads)
            for task, make in tasks(batch).items():
                torch.manual_seed(0)
                found = compared(make(), options.repetitions)
                rows += [
                    {"task": task, "batch": batch, "threads": threads, "way": way, **numbers}
                    for way, numbers in found.items()
                ]
                print(batch, threads, task, {way: round(number["ms"], 2) for way, number in found.items()}, flush=True)
    if options.out is not None:
        result = {"rows": rows, "repetitions": options.repetitions, "environment": run_environment()}
        write_json(options.out, result)
    print(json.dumps(rows[-1]))


if __name__ == "__main__":
    main()
