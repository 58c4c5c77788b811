"""Kill -9 at random points of real runs of the main example, and resume each time.

    python tests/benchmarks/bench_kills.py --kills 50 --out docs/results/kills.json
    python tests/benchmarks/bench_kills.py --kills 0 --starts 50

A life of the process ends at a random moment: while it starts, plays, learns, evaluates or saves. Runs that reach their
end are followed by others. Rows of metrics.csv must come at the steps of a run that was never killed, each once.

With ``--starts`` a second run is started, or resumed, in the folder of one that has ended, and killed at a random
moment before the end of its first batch. The files of the first run must stay as they are, byte by byte.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from main_example import ROOT
from turns import parsed_options

from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.runs.checkpoints import newest_checkpoint
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import read_metrics, write_json

__all__ = ["INTERVAL", "kill_runs", "kill_starts"]

INTERVAL = 64  # agent steps between checkpoints
BATCH = 32
SETTINGS = [
    "total_steps=960",
    "warmup_steps=64",
    "replay_capacity=960",
    "steps_per_update=8",
    "recycle_every_updates=null",
    f"checkpoint_every_steps={INTERVAL}",
    "evaluate_every_steps=64",
    "evaluate_from_steps=0",
    "evaluation_episodes=2",
    "final_episodes=2",
    "max_episode_steps=10",
    "students=[net17]",
    "progress_bar=false",
    "video=false",
    "tensorboard=false",
    "threads=1",
]
# The example as it is, telling how far it is.
LIFE = """
import runpy, sys
sys.path.insert(0, "examples")
from torchrl_rtpd.runs import RunMonitor
watch = RunMonitor.watch
def watch_and_tell(monitor):
    watch(monitor)
    print("steps", monitor.clock.steps, flush=True)
RunMonitor.watch = watch_and_tell
print("begins", flush=True)
runpy.run_path("examples/rtpd_atari.py", run_name="__main__")
"""


class Life:
    """One process of a run."""

    def __init__(self, overrides: list[str]) -> None:
        self.steps = 0
        self.times: list[float] = []  # when it had imported its libraries, and after each batch
        command = [sys.executable, "-c", LIFE, *overrides]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        self.output: list[str] = []
        self.learning = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            if line.startswith(("begins", "steps ")):
                self.times.append(time.monotonic())
            if line.startswith("begins"):
                pass
            elif line.startswith("steps "):
                self.steps = int(line.split()[1])
                self.learning.set()
            else:
                self.output.append(line)
        self.learning.set()

    def kill_after(self, seconds: float, *, from_start: bool) -> bool:
        """Kill it after so long, counted from its start or its first batch; whether it was still there."""
        if not from_start:
            self.learning.wait(timeout=300)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.005)
        alive = self.process.poll() is None
        self.process.kill()
        self.end()
        return alive

    def end(self) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(timeout=900)
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


def row_steps(folder: Path) -> list[float]:
    """The steps of a run's rows."""
    return read_metrics(folder / "metrics.csv")["steps"]


def kill_runs(folder: Path, kills: int, seed: int, longest_seconds: float = 8.0) -> dict[str, object]:
    """Kill and resume.

    Args:
        folder: for the runs.
        kills: how many lives to end.
        seed: of the moments.
        longest_seconds: of a life, from its first batch.

    Returns:
        Counts: kills, resumed lives, rows lost and doubled, the most steps that one kill cost.
    """
    moments = random.Random(seed)
    whole = Life([f"output_dir={folder / 'whole'}", *SETTINGS])
    if whole.end():
        raise RuntimeError("".join(whole.output))
    wanted = row_steps(folder / "whole")
    found: dict[str, int] = dict.fromkeys(
        ("kills", "resumed", "restarted", "lost", "doubled", "most_repeated", "runs"), 0
    )
    while found["kills"] < kills:
        run = folder / f"run{found['runs']}"
        alive = False
        while True:
            life, begins = _next_life(run, found, killed=alive)
            alive = False
            if found["kills"] < kills:
                starting = moments.random() < 0.2
                seconds = moments.uniform(0, 6 if starting else longest_seconds)
                alive = life.kill_after(seconds, from_start=starting)
            code = life.end()
            if not alive:
                if code:
                    raise RuntimeError("".join(life.output))
                break
            reached, at = max(life.steps, begins), _checkpoint_steps(run)
            found["kills"] += 1
            found["most_repeated"] = max(found["most_repeated"], reached - max(at, 0))
            print(f"kill {found['kills']}: run {found['runs']}, step {reached}, checkpoint {at}", flush=True)
        rows = row_steps(run)
        found["lost"] += len(set(wanted) - set(rows))
        found["doubled"] += len(rows) - len(set(rows))
        if rows != wanted:
            raise RuntimeError(f"rows came at {rows}, not at {wanted}")
        found["runs"] += 1
    return {**found, "interval": INTERVAL, "batch": BATCH, "seed": seed}


def kill_starts(folder: Path, starts: int, seed: int) -> dict[str, int]:
    """Kill second runs in a used folder, between their imports and the end of their first batch.

    Args:
        folder: for the run.
        starts: number of second runs, every other one resumed.
        seed: of the moments.

    Returns:
        Counts: starts; those that ended by themselves, being refused; those that had time for a batch; and those
        without one after which a file of the first run was another.
    """
    moments = random.Random(seed)
    run = folder / "first"
    settings = [setting if setting != "total_steps=960" else "total_steps=128" for setting in SETTINGS]
    whole = Life([f"output_dir={run}", *settings])
    if whole.end():
        raise RuntimeError("".join(whole.output))
    longest_seconds = 1.2 * (whole.times[1] - whole.times[0])
    before = _contents(run)
    found = dict.fromkeys(("starts", "refused", "learned", "changed"), 0)
    for number in range(starts):
        life = Life([f"resume={run}", "total_steps=960"] if number % 2 else [f"output_dir={run}", *SETTINGS])
        share = moments.random()
        while len(life.times) < 2 and life.process.poll() is None:
            if life.times and time.monotonic() > life.times[0] + share * longest_seconds:
                break
            time.sleep(0.002)
        found["refused"] += life.process.poll() is not None
        life.process.kill()
        life.end()
        found["starts"] += 1
        after = _contents(run)
        found["changed"] += any(after.get(name) != content for name, content in before.items()) and not life.steps
        if life.steps:  # too late: by then the run had begun to write files of its own
            found["learned"] += 1
            before = after
    return found


def _contents(folder: Path) -> dict[str, str]:
    """Digest of every file but the lock, by its name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _next_life(run: Path, found: dict[str, int], *, killed: bool) -> tuple[Life, int]:
    """Start or resume; the process and the steps it begins with."""
    steps = _checkpoint_steps(run)
    if steps < 0:  # killed before there was anything to go on from
        found["restarted"] += killed
        return Life([f"output_dir={run}", f"seed={found['runs']}", *SETTINGS]), 0
    found["resumed"] += 1
    return Life([f"resume={run}"]), steps


def _checkpoint_steps(run: Path) -> int:
    """Of the newest checkpoint, -1 without one. All there are must be whole."""
    checkpoints = sorted((run / "checkpoints").glob("checkpoint-*"))
    for path in checkpoints:
        VerifiedCheckpoint.verify(path)
    return int(newest_checkpoint(run).name.rpartition("-")[2]) if checkpoints else -1


def main() -> None:
    """Kill, count, save."""
    options = parsed_options(__doc__, {"kills": 50, "starts": 0, "seed": 0})
    start = time.monotonic()
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.kills:
            result = kill_runs(Path(folder), options.kills, options.seed)
        if options.starts:
            result["second_runs"] = kill_starts(Path(folder), options.starts, options.seed)
    result["minutes"] = round((time.monotonic() - start) / 60, 1)
    print(json.dumps(result))
    if options.out is not None:
        write_json(options.out, {**result, "environment": run_environment()})


if __name__ == "__main__":
    main()
