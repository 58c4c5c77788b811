"""A whole study: every row of a YAML file on every game and seed, skipping what is done.

    python examples/study.py classic --list                      the command of each run, one a line
    python examples/study.py classic --status                    how far each run is
    python examples/study.py classic                             run what is missing, into outputs/classic
    python examples/study.py classic --rows rtpd --seeds 0 1     some of it
    python examples/study.py classic --publish docs/results/classic     collect its CSV files, or add to them

A study is a file in config/study/: the script, its games, seeds, common overrides, and for each row the overrides that
make it. Games are a list, or a mapping to what a game has of its own, ``seeds`` and ``overrides``. ``{out}``,
``{game}``, ``{seed}`` stand for the folder of the study and the run's own; so a row can begin from what an earlier row
left. A run lies in ``<out>/<game>/<row>/seed<seed>`` and is done when it has its results.json; one that was cut goes on
from its last checkpoint. Runs follow one another, each in a process of its own. Elsewhere, such as on a cluster, give
the listed commands to whatever runs them there, or use Hydra's launchers (docs/studies.md).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torchrl.checkpoint import CheckpointError

from torchrl_rtpd.evaluation.comparison import COSTS
from torchrl_rtpd.runs.checkpoints import newest_checkpoint
from torchrl_rtpd.runs.metrics import read_metrics

CONFIG = Path(__file__).resolve().parent / "config"
TOTALS = (*COSTS, "seconds", "evaluation_seconds", "steps_per_second", "random_score", "random_standard_error")


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        row, game, seed: its place in the study.
        script: module in this folder with ``run`` and a ``main`` of Hydra's.
        overrides: of the script's configuration, complete.
        folder: receives what it leaves.
    """

    row: str
    game: str
    seed: int
    script: str
    overrides: tuple[str, ...]
    folder: Path

    @property
    def command(self) -> str:
        """Command that reproduces the run from the repository's root."""
        return f"python examples/{self.script}.py {' '.join(self.overrides)}"

    @property
    def done(self) -> bool:
        """True if the run has its results."""
        return (self.folder / "results.json").exists()

    @property
    def status(self) -> str:
        """``done``; the agent steps that it has logged, ``begun`` before there are any; or ``not begun``."""
        if self.done:
            return "done"
        try:
            steps = read_metrics(self.folder / "metrics.csv").get("steps")
        except FileNotFoundError:
            return "not begun"
        except ValueError:  # a line that is just being written
            return "begun"
        return f"at step {steps[-1]:,.0f}" if steps else "begun"


def runs_of(study: dict[str, Any], out: Path) -> Iterator[Run]:
    """All runs of a study in order: game by game, a row's runs after those of the rows above it."""
    for game in study["games"]:
        special = own_of(study, game)
        common = [*study["overrides"], *special.get("overrides", [])]
        for row, own in study["rows"].items():
            for seed in special.get("seeds", study["seeds"]):
                folder = out / game / row / f"seed{seed}"
                given = [*common, *own, f"game={game}", f"seed={seed}", f"output_dir={folder}"]
                values = {"out": out, "game": game, "seed": seed}
                yield Run(row, game, seed, study["script"], tuple(text.format(**values) for text in given), folder)


def own_of(study: dict[str, Any], game: str) -> dict[str, list[Any]]:
    """Seeds and overrides that a game has of its own.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(study["games"], dict):
        return {}
    found = study["games"][game] or {}
    if not isinstance(found, dict) or not set(found) <= {"seeds", "overrides"}:
        raise ValueError(f"a game may have seeds and overrides of its own: got {game}: {found}; name them so.")
    for key, values in found.items():
        if not isinstance(values, list) or (key == "seeds" and not values):
            wanted = "a list that is not empty" if key == "seeds" else "a list"
            raise ValueError(f"{key} of a game are {wanted}: got {game}: {values!r}; write [...].")
    return found


def chosen(runs: Iterator[Run], **wanted: list[Any] | None) -> list[Run]:
    """Choose the runs whose row, game and seed are wanted; None wants all.

    Raises:
        ValueError: something that no run of the study has.
    """
    every = list(runs)
    for name, values in wanted.items():
        known = list(dict.fromkeys(getattr(run, name) for run in every))
        unknown = set(values or []) - set(known)
        if unknown:
            raise ValueError(f"the study has {name}s {', '.join(map(str, known))}: got {', '.join(map(str, unknown))}.")
    return [
        run for run in every if all(values is None or getattr(run, name) in values for name, values in wanted.items())
    ]


def make(run: Run) -> bool:
    """Do a run in a process of its own, from its last checkpoint if it was cut; True if it got to its end.

    A run that has a whole checkpoint is never begun from scratch, whatever makes it fail: delete its folder for that.
    """
    if _can_go_on(run):
        return _made(run, f"resume={run.folder}")
    shutil.rmtree(run.folder, ignore_errors=True)
    return _made(run, *run.overrides)


def _can_go_on(run: Run) -> bool:
    try:
        newest_checkpoint(run.folder)
    except CheckpointError:
        return False
    return True


def _made(run: Run, *overrides: str) -> bool:
    command = [sys.executable, str(CONFIG.parent / f"{run.script}.py"), *overrides, "video=false"]
    subprocess.run(command, check=False)
    return run.done


def publish(runs: list[Run], folder: Path) -> None:
    """Collect what the runs that are done left: ``runs.csv``, a line a network, and ``evaluations.csv``, its curve.

    Lines that the files have of other runs stay, so that runs made elsewhere or later add to a study.
    """
    summary, curves = [], []
    for run in (run for run in runs if run.done):
        own = {"row": run.row, "game": run.game, "seed": run.seed}
        results = json.loads((run.folder / "results.json").read_text())
        metrics = read_metrics(run.folder / "metrics.csv")
        totals = {name: results[name] for name in TOTALS}
        origin = {"command": run.command, **{name: results["environment"][name] for name in ("commit", "cpu")}}
        for network in results["networks"]:
            name = network.pop("name")
            summary.append({**own, "network": name, **network, **totals, **origin})
            for line, score in enumerate(metrics[f"{name}/score"]):
                if not math.isnan(score):
                    measured = {key: metrics[key][line] for key in COSTS}
                    curves.append({**own, "network": name, **measured, **_measures(metrics, name, line)})
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "runs.csv", _with_other_runs(folder / "runs.csv", summary, runs))
    _write_csv(folder / "evaluations.csv", _with_other_runs(folder / "evaluations.csv", curves, runs))


def _with_other_runs(path: Path, lines: list[dict[str, Any]], runs: list[Run]) -> list[dict[str, Any]]:
    """The lines of the runs that are done and those that a file has of others, in the order of the study's runs."""
    places = {(run.row, run.game, str(run.seed)): place for place, run in enumerate(runs)}

    def place(line: dict[str, Any]) -> int:
        return places.get((line["row"], line["game"], str(line["seed"])), len(runs))

    if path.exists():
        done = {place for place, run in enumerate(runs) if run.done}
        with path.open(newline="") as file:
            lines = [line for line in csv.DictReader(file) if place(line) not in done] + lines
    return sorted(lines, key=place)


def _measures(metrics: dict[str, list[float]], network: str, line: int) -> dict[str, float]:
    """Measurements of a network at an evaluation; of a teacher its score only."""
    columns = {key: metrics.get(f"{network}/{key}") for key in ("score", "agreement", "kl_to_teacher")}
    found = {key: column[line] for key, column in columns.items() if column is not None}
    return {key: float(f"{value:.5g}") for key, value in found.items() if not math.isnan(value)}


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{cell:.10g}" if isinstance(cell, float) else cell for key, cell in row.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(path.stem for path in (CONFIG / "study").glob("*.yaml"))
    parser.add_argument("study", choices=names)
    parser.add_argument("--out", type=Path, help="folder of the runs; outputs/<study> if not given")
    parser.add_argument("--rows", nargs="+", help="these rows only")
    parser.add_argument("--games", nargs="+", help="these games only")
    parser.add_argument("--seeds", nargs="+", type=int, help="these seeds only")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--status", action="store_true", help="print how far each run is and run nothing")
    parser.add_argument("--publish", type=Path, metavar="FOLDER", help="collect what is done, and run nothing")
    options = parser.parse_args()
    study: Any = OmegaConf.to_container(OmegaConf.load(CONFIG / "study" / f"{options.study}.yaml"))
    out = options.out or Path("outputs") / options.study
    try:
        runs = chosen(runs_of(study, out), row=options.rows, game=options.games, seed=options.seeds)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        print("\n".join(run.command for run in runs))
    elif options.status:
        print("\n".join(f"{run.game} {run.row} seed {run.seed}: {run.status}" for run in runs))
    elif options.publish:
        publish(runs, options.publish)
        print(f"{sum(run.done for run in runs)} of {len(runs)} runs are done and in {options.publish}")
    else:
        failed = [run for run in runs if not run.done and not make(run)]
        print(f"{len(runs) - len(failed)} of {len(runs)} runs are done.")
        if failed:
            sys.exit("These failed:\n" + "\n".join(run.command for run in failed))


if __name__ == "__main__":
    main()
