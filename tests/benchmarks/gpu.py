"""Checks, timings and a real run for a machine with a GPU, in one script.

    python tests/benchmarks/gpu.py --out gpu.json --seconds 700

Most valuable first, each for DQN and for PQN:

1. A CPU and the GPU give the same losses for the same networks and minibatch. A captured update learns what the same
   update learns uncaptured, and the teacher the same bits with and without students; one that is not finite is left
   out, by the guard inside the graph. Neither updates nor rollouts make the host wait, but for actions (checked with
   torch's synchronisation debugger). A loop that is cut and resumed twice from one checkpoint goes on alike.
2. Steps a second of the whole loop with the teacher alone, one student, the paper's five, and the shares of games,
   inference, learning and the rest.
3. A run of the main example by PQN with five students, in all the time that is left. A later call goes on with it.

What follows is run once that run has ended, or by ``--only``:

4. The tests that need a GPU, and the main example cut and resumed.
5. The update of the teacher alone, with one student, with the paper's five: eager and as one CUDA graph, each in
   float32 and with bfloat16 below the heads; and what the guard costs in it.
6. Sampling from a replay in GPU memory, one minibatch at a time and many together, and from one in the host's.
7. Checkpoints of the paper's preset, and of a replay in GPU memory.
8. Short trainings of the main example, with the GPU's utilisation; games and collector alone, which bound them.
9. Students of PQN that differ in one thing each: which of them live.
10. Last, since it takes longest: captured updates, compiled by torch.compile before.

A machine may be lent for minutes. Parts come in order of value, each has a limit of its own, and what it has found is
saved when it ends or is cut off. A second call with the same ``--out`` leaves out the parts that are there, and several
calls at once may fill one file. ``--device cpu`` runs what needs no GPU, in small sizes, to try the script. On the
machine: torch, and this package's dependencies.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_parts.checks import captured_is_same, guarded, rollout_waits_nowhere, same_losses, suite, waits_nowhere
from gpu_parts.game import PONG, game
from gpu_parts.loop import CHECKED, PAPER, TINY, loops, resumed_loop
from gpu_parts.resuming import resumed
from gpu_parts.saving import add_to, limited, read
from gpu_parts.survival import FOUR_EPOCHS, survival
from gpu_parts.timing import captured_profile, checkpoints, guard_times, replay_times, update_times
from gpu_parts.trainings import GAMES, playing, short_trainings
from gpu_parts.update import METHODS

Part = tuple[float, Callable[[dict[str, Any]], dict[str, Any] | None]]
"""Seconds at most, and a function that fills what it is given, or returns what to add."""

LOOP_SECONDS = 8.0  # of each of the six loops
SURVIVAL = {
    False: {"seconds": 130.0, "sizes": FOUR_EPOCHS, "seeds": 2},
    True: {"seconds": 2.0, "sizes": TINY["pqn"], "seeds": 1},
}
"""Options of that part, by whether it is a rehearsal."""


def options_of() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40_000, help="of the short trainings")
    parser.add_argument("--seconds", type=float, default=700.0, help="for all parts of this call together")
    parser.add_argument("--patience", type=float, default=1.0, help="times the limits of the parts")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--only", nargs="*", help="parts to run; default: all")
    parser.add_argument("--out", type=Path, help="a JSON file to write, or to add to")
    parser.add_argument("--folder", type=Path, help="of the real run; default: beside --out")
    parser.add_argument("--run", nargs="*", default=PONG, help="keys of the real run; default: PQN on Pong")
    return parser.parse_args()


def checks(device: str, small: bool) -> dict[str, Part]:
    """Parts of a minute and a half: what must hold before a number counts."""
    sizes = TINY if small else CHECKED
    updates = 8 if small else 50
    parts: dict[str, Part] = {}
    for method in METHODS:
        name = "" if method == "dqn" else f"{method}_"
        parts[f"{name}same_losses"] = (60, lambda _, method=method: same_losses(device, method))
        parts[f"{name}waits_nowhere"] = (60, lambda _, method=method: waits_nowhere(device, method))
        parts[f"{name}captured_is_same"] = (90, lambda _, method=method: captured_is_same(device, updates, method))
    parts["rollout_waits_nowhere"] = (60, lambda _: rollout_waits_nowhere(device))
    parts["guarded"] = (60, lambda _: guarded(device, 14 if small else 24))
    for method in METHODS:
        parts[f"{method}_resumed"] = (60, lambda _, method=method: resumed_loop(device, method, sizes[method]))
    return parts


def timings(device: str, repetitions: int, steps: int, *, compiled: bool, small: bool) -> dict[str, Part]:
    """Parts that take a while, and are not needed to believe the real run."""
    parts: dict[str, Part] = {
        "suite": (180, lambda _: suite(device)),
        "resumed": (120, lambda _: resumed(device, steps)),
        "update_ms": (120, partial(update_times, device=device, repetitions=repetitions)),
        "replay_ms": (60, lambda _: replay_times(device, repetitions)),
        "guard_ms": (60, lambda _: guard_times(device, repetitions)),
        "captured_profile": (60, partial(captured_profile, device=device)),
        "checkpoints": (60, lambda _: checkpoints(device, steps)),
        "training": (400, partial(short_trainings, device=device, steps=steps)),
        "survival": (240, partial(survival, device=device, **SURVIVAL[small])),
        "playing": (240, partial(playing, device=device, repetitions=repetitions, games=GAMES)),
    }
    if compiled:
        parts["compiled_update_ms"] = (
            300,
            partial(update_times, device=device, repetitions=repetitions, compiled=True),
        )
    return parts


def main() -> None:
    """Check, time, train, save; what fails is reported and does not keep the rest from running."""
    options = options_of()
    device, out, small = options.device, options.out, options.device == "cpu"
    if not small:
        torch.set_num_threads(os.cpu_count() or 1)
    end = time.perf_counter() + options.seconds
    folder = options.folder or (Path("gpu_game") if out is None else out.with_name(f"{out.stem}_game"))
    parts: dict[str, Part] = {
        **checks(device, small),
        "loop": (120, lambda found: loops(found, device, 0.1 if small else LOOP_SECONDS, TINY if small else PAPER)),
        "game": (86_400, lambda found: game(found, device, end - time.perf_counter(), folder, options.run)),
        **timings(device, options.repetitions, options.steps, compiled=not options.no_compile, small=small),
    }
    there = {} if out is None else read(out)
    failed = False
    for name, (limit, part) in parts.items():
        start = time.perf_counter()
        if (options.only and name not in options.only) or "error" not in there.get(name, {"error": ""}) or start > end:
            continue
        save = partial(add_to, out, name, device, start)
        found = limited(part, min(options.patience * limit, end - start), there.get(name, {}), save)
        failed = failed or "error" in found
        save(found)
        print(f"{name} ({time.perf_counter() - start:.0f} s)", json.dumps(found)[:3_000], flush=True)
    if failed:
        raise SystemExit("some parts failed, see above")


if __name__ == "__main__":
    main()
