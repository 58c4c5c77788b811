"""Checks: same losses, nothing waits, captured is uncaptured, guards, and the tests that need a GPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import warnings
import xml.etree.ElementTree
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from main_example import ROOT
from torchrl.modules import EGreedyModule

from gpu_parts.update import FLEETS, Update, distance, minibatch
from torchrl_rtpd import AtariVecEnv, DualNetworkCollector, make_actor

__all__ = [
    "captured_is_same",
    "guarded",
    "no_waiting",
    "rollout_waits_nowhere",
    "same_losses",
    "suite",
    "waits_nowhere",
]


def same_losses(device: str, method: str = "dqn") -> dict[str, float]:
    """Largest relative difference between both devices over the metrics of the teacher and of the five students."""
    found = []
    for where in ("cpu", device):
        update = Update(FLEETS["the paper's five"], where, method)
        metrics = update(minibatch(32, where))
        assert update.hook is not None
        found.append({"loss": float(metrics["loss"]), **(update.hook.log() or {})})
    differences = {key: abs(value - found[1][key]) / max(abs(value), 1e-3) for key, value in found[0].items()}
    if max(differences.values()) > 1e-2:
        raise AssertionError(f"losses of the CPU and {device} must agree to 1e-2: got {differences}.")
    return {"largest_relative_difference": max(differences.values()), "metrics": len(differences)}


def captured_is_same(device: str, updates: int = 50, method: str = "dqn") -> dict[str, Any]:
    """Weights after some updates, captured and not, with and without students."""
    batches = [minibatch(32, device, seed) for seed in range(updates)]
    five = FLEETS["the paper's five"]
    found: dict[tuple[str, str], dict[str, list[torch.Tensor]]] = {}
    torch.backends.cudnn.deterministic = True
    for way in ("eager", "captured"):
        for fleet, students in {"five": five, "alone": []}.items():
            update = Update(students, device, method, captured=way == "captured")
            for batch in batches:
                update(batch)
            found[way, fleet] = update.weights()
    torch.backends.cudnn.deterministic = False
    eager, captured = found["eager", "five"], found["captured", "five"]
    return {
        "updates": updates,
        "largest_difference_of_weights": {
            name: max(distance(*pair) for pair in zip(eager[name], captured[name], strict=True)) for name in eager
        },
        "largest_weight_change": {"dqn": 1e-4, "pqn": 2.5e-4}[method] * updates,  # learning rate times steps
        "teacher_identical_without_students": {
            way: all(
                torch.equal(*pair)
                for pair in zip(found[way, "five"]["teacher"], found[way, "alone"]["teacher"], strict=True)
            )
            for way in ("eager", "captured")
        },
    }


def guarded(device: str, updates: int = 24) -> dict[str, Any]:
    """Weights after updates of which one has a reward that is no number, against those without that update."""
    five = FLEETS["the paper's five"]
    batches = [minibatch(32, device, seed) for seed in range(updates)]
    broken = batches[12].clone()
    broken["next", "reward"] = torch.full_like(broken["next", "reward"], torch.nan)
    torch.backends.cudnn.deterministic = True
    found = []
    for given in ([*batches[:12], broken, *batches[12:]], batches):
        update = Update(five, device, captured=True, guarded=True)
        for batch in given:
            metrics = update(batch)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            update.guard.look(len(given), metrics)
        found.append((update.weights(), update.guard.skipped, len(said)))
    torch.backends.cudnn.deterministic = False
    (weights, skipped, said_so), (wanted, skipped_without, _) = found
    if skipped != 1 + len(five) or skipped_without:
        raise AssertionError(f"one update of each of {1 + len(five)} is left out: got {skipped}, {skipped_without}.")
    return {
        "updates": updates,
        "left_out": skipped,
        "warnings": said_so,
        "finite": all(bool(value.isfinite().all()) for values in weights.values() for value in values),
        "identical_to_never_made": {
            name: all(torch.equal(*pair) for pair in zip(weights[name], wanted[name], strict=True)) for name in weights
        },
    }


def suite(device: str) -> dict[str, Any]:
    """The tests marked ``gpu``: how many passed, and what became of the others."""
    files = sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text())
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
        if device.startswith("cuda") and importlib.util.find_spec("xdist"):
            command += ["-n", "6"]
        # Warnings are none of a GPU's: the image's torch need not be the one TorchRL's extension was built for.
        done = subprocess.run([*command, "-W", "default", *files], cwd=ROOT, text=True, capture_output=True)
        print(done.stdout[-6_000:], done.stderr[-2_000:], flush=True)
        cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    found: dict[str, Any] = {"passed": [], "skipped": {}, "failed": {}}
    for case in cases:
        name = f"{case.get('classname')}.{case.get('name')}"
        bad = [child for child in case if child.tag in ("skipped", "failure", "error")]
        if not bad:
            found["passed"].append(name)
        else:
            found["skipped" if bad[0].tag == "skipped" else "failed"][name] = bad[0].get("message", "")[:300]
    return found


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Inside, whatever makes the host wait for a CUDA device raises."""
    if not device.startswith("cuda"):
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits_nowhere(device: str, method: str = "dqn") -> dict[str, int]:
    """Students' updates under the debugger; calls that look at numbers (1st, 2nd, 4th, 8th, 16th) come before."""
    update = Update(["net17"], device, method)
    batch = minibatch(32, device)
    hook = update.hook
    assert hook is not None
    for _ in range(17):
        update(batch)
    with no_waiting(device):
        for _ in range(6):
            update.trainer.compute_loss(batch)
            hook.step(batch)
    captured = Update(["net17"], device, method, captured=True)
    for _ in range(17):
        captured(batch)
    with no_waiting(device):
        for _ in range(6):
            captured(batch)
    return {"students_updates_without_waiting": 6, "whole_captured_updates_without_waiting": 6}


def rollout_waits_nowhere(device: str, slots: int = 16, steps: int = 32) -> dict[str, Any]:
    """Rollouts by a captured and an uncaptured teacher that explores: the same, and the former wait for actions alone.

    Games are begun by one seed, so that both play the same.
    """
    rollouts = {}
    for captured in (False, True):
        torch.manual_seed(0)
        env = AtariVecEnv("breakout", slots, seed=0, device=device, num_threads=min(8, slots))
        collector = DualNetworkCollector(
            env,
            make_actor("teacher", env.action_spec, seed=0, device=device, norm="layer"),
            exploration=EGreedyModule(env.action_spec_unbatched, 0.1, 0.1, device=torch.device(device)),
            keep=["action_value"],
            frames_per_batch=slots * steps,
            total_frames=-1,
            policy_device=device,
            env_device=device,
            storing_device=device,
            cudagraph_policy=captured,
            track_traj_ids=False,
        )
        batches = [next(iter(collector)).clone()]
        with no_waiting(device) if captured else nullcontext():
            batches.append(collector.rollout())
        rollouts[captured] = torch.cat(batches, 1).cpu()
        collector.shutdown()
    one, other = rollouts.values()
    return {
        "steps": one.numel(),
        "ends_of_games": int(one["next", "done"].sum()),
        "identical_to_uncaptured": {str(key): torch.equal(value, other[key]) for key, value in one.items(True, True)},
        "steps_of_each_game_without_waiting": steps,
    }
