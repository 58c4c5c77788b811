"""The smallest student that will do, found in one run of its teacher.

A ladder of students of many sizes begins. At each rung some of them go, so that the run costs little more than one with
a few students::

    16 students --1/4 of the run--> 8 --1/2--> 5 --3/4--> 3 --end--> the smallest that holds the share

Scores are those of the weights that a run keeps, each student's best so far: they are what it exports.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase
from torchrl.trainers import Trainer, TrainerHookBase

from torchrl_rtpd.deploy.export import export_student
from torchrl_rtpd.deploy.formats import checked_formats
from torchrl_rtpd.deploy.latency import deployed_latency
from torchrl_rtpd.evaluation.shares import Candidate, may_be_smallest, share_of_teacher
from torchrl_rtpd.functional.checks import check_within
from torchrl_rtpd.networks.towers import num_parameters
from torchrl_rtpd.runs.deployed import first_step
from torchrl_rtpd.runs.exports import expected_metadata, metadata_of
from torchrl_rtpd.runs.monitor import RunMonitor

__all__ = ["SizeSearch", "sentence"]


class SizeSearch(TrainerHookBase):
    """Hook that drops students of a ladder until the smallest that will do is left.

    After the first evaluation that reaches a rung, at most a share of the students go on: the smallest that are not
    refuted, and the safest (:func:`~torchrl_rtpd.evaluation.may_be_smallest`). At half of the run a student is refuted
    that is no better than a random player, at three quarters one that has less than half of the safest's share. After
    the final games the answer is the smallest student whose share of the teacher's level is at least ``min_share`` with
    95 % confidence. Successive halving: Karnin et al. 2013; Jamieson & Talwalkar 2016, https://arxiv.org/abs/1502.07943.

    Register it with the trainer after the students' hook. An :class:`~torchrl_rtpd.runs.Experiment` of that trainer,
    whose evaluations should fall on the rungs, shows it their scores, and writes the answer under ``"search"`` into
    ``results.json``.

    Keyword Args:
        min_share: of the way from a random player to the teacher that the student must hold. Default: 0.95.
        max_latency_ms: students that take longer for a decision, exported and run on one thread, are not trained.
        max_bytes: students whose exported file is larger are not trained.
        format: of that file. Default: ``"onnx"``.
        rungs: share of the students that go on, by share of the run. Default: 1/2 at a quarter, 5/16 at half, and
            3/16 at three quarters; the costs are then those of half of the students.
        confidence: of all bounds, one-sided. Default: 0.95.

    Attributes:
        ladder: what is known of each student: ``parameters`` and, where limits ask for it, ``latency_ms`` and
            ``bytes``; of one that was dropped ``dropped_at_steps`` and, as they were then, ``score_mean``,
            ``score_standard_error``, ``share``, ``share_standard_error`` and ``regret``.

    Raises:
        ValueError: a number out of range, an unknown format, or no student within the limits.
        ImportError: a limit without the export extra.

    Examples:
        >>> search = SizeSearch(min_share=0.9, rungs={0.5: 0.25})
        >>> search.min_share, search.rungs
        (0.9, {0.5: 0.25})
    """

    def __init__(
        self,
        *,
        min_share: float = 0.95,
        max_latency_ms: float | None = None,
        max_bytes: int | None = None,
        format: str = "onnx",
        rungs: Mapping[float, float] = MappingProxyType({0.25: 0.5, 0.5: 0.3125, 0.75: 0.1875}),
        confidence: float = 0.95,
    ) -> None:
        check_within("(0, 1]", min_share=min_share)
        check_within("(0.5, 1)", "half of all bounds would be wrong", confidence=confidence)
        check_within("(0, inf)", "None sets no limit", max_latency_ms=max_latency_ms, max_bytes=max_bytes)
        within = all(0 < rung < 1 and 0 < kept <= 1 for rung, kept in rungs.items())
        falling = list(rungs.values()) == sorted(rungs.values(), reverse=True)
        if not within or not falling or list(rungs) != sorted(rungs):
            raise ValueError(
                "rungs must be growing shares of the run, and falling ones of the students, within 0 and 1: got "
                f"{dict(rungs)}; write {{0.25: 0.5}}."
            )
        checked_formats([format], "format")
        self.min_share, self.confidence, self.rungs = min_share, confidence, dict(rungs)
        self.max_latency_ms, self.max_bytes, self.format = max_latency_ms, max_bytes, format
        self.ladder: dict[str, dict[str, Any]] = {}
        self._passed = 0  # rungs
        self._begun = False
        self._monitor: RunMonitor | None = None
        self._about: Mapping[str, Any] = {}

    # Before the run

    def begin(self) -> None:
        """Drop students that are beyond a limit; called by the trainer before a run that was not resumed."""
        monitor, begun = self._followed(), self._begun
        self._begun = True
        if begun or (self.max_latency_ms is None and self.max_bytes is None):
            return
        students = {name: monitor.networks[name] for name in list(monitor.networks)[1:]}
        within = self.admitted(students, monitor.evaluator.env)
        self._drop([name for name in students if name not in within])

    def admitted(self, networks: Mapping[str, TensorDictModule], env: EnvBase) -> list[str]:
        """Measure students as they will be deployed, and return the names of those within the limits.

        Args:
            networks: students by name, trained or not: neither latency nor bytes depends on it.
            env: in which they play; it is reset where there are limits.
        """
        for name, network in networks.items():
            self.ladder.setdefault(name, {"parameters": num_parameters(network)}).update(
                self._measured(name, network, env)
            )
        within = [name for name in networks if self._is_within(self.ladder[name])]
        if not within:
            raise ValueError(
                f"a student must be within max_latency_ms={self.max_latency_ms} and max_bytes={self.max_bytes}: the "
                f"ladder has {self._smallest()} at least; raise the limits, or add smaller students."
            )
        return within

    def _measured(self, name: str, network: TensorDictModule, env: EnvBase) -> dict[str, Any]:
        found: dict[str, Any] = {}
        example = first_step(network, env)
        if self.max_latency_ms is not None:
            found["latency_ms"] = deployed_latency(network, example).milliseconds
        if self.max_bytes is not None:
            found["bytes"] = self._bytes(name, network, example, expected_metadata(self._about, env))
        return found

    def _bytes(self, name: str, network: TensorDictModule, example: TensorDictBase, metadata: Mapping[str, Any]) -> int:
        """Length of the exported file, with what it says of its run."""
        with tempfile.TemporaryDirectory() as place:
            report = export_student(
                network,
                Path(place) / name,
                formats=[self.format],
                example=example,
                metadata=metadata,
            )
            return report.files[self.format].bytes

    def _is_within(self, measured: Mapping[str, Any]) -> bool:
        limits = {"latency_ms": self.max_latency_ms, "bytes": self.max_bytes}
        return all(limit is None or measured[key] <= limit for key, limit in limits.items())

    def _smallest(self) -> str:
        keys = ("latency_ms", "bytes")
        known = {key: [row[key] for row in self.ladder.values() if key in row] for key in keys}
        return ", ".join(f"{key}={min(values):g}" for key, values in known.items() if values)

    # During the run

    def follow(self, monitor: RunMonitor, about: Mapping[str, Any]) -> None:
        """Take the monitor whose scores decide; called by the experiment.

        Args:
            monitor: of the run.
            about: entries that head ``results.json``, which exported files hold as well.

        Raises:
            ValueError: a run without students.
        """
        if monitor.distiller is None or len(monitor.networks) < 2:
            raise ValueError(
                f"a search needs students that learn: got the networks {list(monitor.networks)}; register a "
                "RealTimeDistillTrainer with the trainer."
            )
        self._monitor, self._about = monitor, about
        for name in list(monitor.networks)[1:]:
            self.ladder.setdefault(name, {"parameters": num_parameters(monitor.networks[name])})

    def warn_of_missed_rungs(self, evaluated: range) -> None:
        """Warn of rungs that no evaluation before the end reaches, or not before the next rung.

        Args:
            evaluated: agent steps at which networks play.

        Warns:
            UserWarning: such rungs, at which nobody can be dropped in time.
        """
        places = [rung * self._trainer.total_frames for rung in self.rungs]
        reached = [next((steps for steps in evaluated if steps >= place), math.inf) for place in places]
        later = [*places[1:], self._trainer.total_frames]
        missed = [round(place) for place, steps, end in zip(places, reached, later, strict=True) if steps >= end]
        if missed:
            warnings.warn(
                f"no evaluation lies between the rungs of the search at {missed} steps and those after them: the "
                "students that should go there learn on; evaluate more often, or from an earlier step on.",
                stacklevel=3,
            )

    def register(self, trainer: Trainer, name: str = "size_search") -> None:
        """Attach to a trainer; be saved with its checkpoints."""
        self._trainer = trainer
        trainer.register_op("setup", self.begin)
        trainer.register_op("post_steps", self.watch)
        trainer.register_module(name, self)

    def watch(self) -> None:
        """Drop students if an evaluation has reached a rung; called by the trainer after each batch."""
        monitor = self._followed()
        reached = sum(monitor.evaluated_steps >= rung * self._trainer.total_frames for rung in self.rungs)
        if reached <= self._passed:
            return
        self._passed = reached
        teacher, *students = monitor.networks
        candidates = self._candidates(monitor, students, teacher)
        number = sum(row.get("dropped_at_steps") != 0 for row in self.ladder.values())  # that began to learn
        keep = math.ceil(number * list(self.rungs.values())[reached - 1])
        progress = monitor.evaluated_steps / self._trainer.total_frames
        living = may_be_smallest(candidates, keep, least_share=2 * progress - 1, confidence=self.confidence)
        self._drop([name for name in students if name not in living], candidates)

    def _followed(self) -> RunMonitor:
        if self._monitor is None:
            raise RuntimeError("a search needs scores: give its trainer to an Experiment, whose run() trains it.")
        return self._monitor

    def _candidates(self, monitor: RunMonitor, students: Sequence[str], teacher: str) -> dict[str, Candidate]:
        chance, scores, means = monitor.measure_random(), monitor.best_scores, monitor.means
        return {
            name: Candidate(
                self.ladder[name]["parameters"],
                None if chance is None else share_of_teacher(scores[name], scores[teacher], chance),
                means.get(f"{name}/teacher_regret"),
            )
            for name in students
        }

    def _drop(self, names: Sequence[str], candidates: Mapping[str, Candidate] | None = None) -> None:
        """Let students go, with what was known of them; before the run nothing but their sizes is."""
        monitor = self._followed()
        assert monitor.distiller is not None
        if not names:
            return
        scores = dict(monitor.best_scores)
        monitor.distiller.drop(*names)
        monitor.drop(*names)
        for name in names:
            self.ladder[name]["dropped_at_steps"] = 0 if candidates is None else monitor.evaluated_steps
            if candidates is not None:
                self.ladder[name] |= _scored(scores[name].mean, scores[name].standard_error, candidates[name])

    def state_dict(self) -> dict[str, Any]:
        """Return what is known of each student, and the rungs passed."""
        return {"ladder": {name: dict(row) for name, row in self.ladder.items()}, "passed": self._passed}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.ladder = {name: dict(row) for name, row in state_dict["ladder"].items()}
        self._passed, self._begun = state_dict["passed"], True

    # After the run

    def conclusion(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer for ``results.json``.

        Args:
            results: its other content, with final scores.

        Returns:
            ``chosen``, the name of the smallest student that holds the share with confidence, None where none does;
            ``min_share``, ``confidence``; and ``ladder``, a row a student, with ``share``, ``share_standard_error`` and
            ``share_at_least``, the lower bound, of those that played the final games; all of these bounds hold together
            with the confidence asked for (Bonferroni's correction). After a run the chosen one's row
            has ``latency_ms`` of a decision and, with the export extra, ``bytes`` of its file.
        """
        rows = {network["name"]: network for network in results["networks"]}
        teacher, *students = results["networks"]
        chance = _Row(results["random_score"], results.get("random_standard_error", 0.0))
        each = 1 - (1 - self.confidence) / len(students)  # so that all bounds hold together
        ladder = {name: {"name": name, **row} for name, row in self.ladder.items()}
        chosen: list[str] = []
        for student in students:
            share = share_of_teacher(_Row.of(student), _Row.of(teacher), chance)
            entry = ladder[student["name"]]
            known = Candidate(student["parameters"], share, student.get("regret"))
            entry |= _scored(student["score_mean"], student["score_standard_error"], known)
            if share is not None and math.isfinite(bound := share.bound(each)):
                entry["share_at_least"] = bound
                if bound >= self.min_share:
                    chosen.append(student["name"])
        smallest = min(chosen, key=lambda name: rows[name]["parameters"], default=None)
        if smallest is not None and self._monitor is not None:
            ladder[smallest] |= self._deployed(self._monitor, results, rows[smallest])
        order = sorted(ladder.values(), key=lambda row: row["parameters"])
        return {"chosen": smallest, "min_share": self.min_share, "confidence": self.confidence, "ladder": order}

    def _deployed(self, monitor: RunMonitor, results: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """Latency as the run's results have it, and bytes of the file of the weights that are kept."""
        network, env, latency = monitor.best[row["name"]], monitor.evaluator.env, {"latency_ms": row["latency_ms"]}
        about = metadata_of(results, row, env)
        try:
            return {**latency, "bytes": self._bytes(row["name"], network, first_step(network, env), about)}
        except ImportError:  # a run without limits needs no extra
            return latency


class _Row(NamedTuple):
    """Scores in an entry of ``results.json``."""

    mean: float
    standard_error: float
    episodes: int = 0

    @classmethod
    def of(cls, network: Mapping[str, Any]) -> _Row:
        return cls(network["score_mean"], network["score_standard_error"], network["episodes"])


def _scored(mean: float, standard_error: float, known: Candidate) -> dict[str, float | None]:
    """Entries of the ladder on what a student has reached."""
    share = known.share
    return {
        "score_mean": mean,
        "score_standard_error": standard_error,
        "share": None if share is None else share.value,
        "share_standard_error": None if share is None else share.standard_error,
        "regret": known.regret,
    }


def sentence(conclusion: Mapping[str, Any]) -> str:
    """Say what :meth:`SizeSearch.conclusion` found, in a sentence or two for the end of a run.

    Examples:
        >>> row = {"name": "8-8-8-32", "parameters": 17_000, "share": 1.02, "share_at_least": 0.97}
        >>> sentence({"chosen": "8-8-8-32", "min_share": 0.95, "confidence": 0.95, "ladder": [row]})
        'The smallest student that holds 95% of its teacher is 8-8-8-32, 17,000 parameters: share 1.02, at least 0.97.'
    """
    share, rows = f"{conclusion['min_share']:.0%}", conclusion["ladder"]
    if conclusion["chosen"] is not None:
        row = next(row for row in rows if row["name"] == conclusion["chosen"])
        size = f"{row['parameters']:,} parameters"
        size += f", {row['bytes']:,} bytes" if "bytes" in row else ""
        size += f", {row['latency_ms']:.3f} ms a decision" if row.get("latency_ms") else ""
        return (
            f"The smallest student that holds {share} of its teacher is {row['name']}, {size}: share "
            f"{row['share']:.2f}, at least {row['share_at_least']:.2f}."
        )
    tried = [row for row in rows if row.get("share_at_least") is not None]
    if not tried:
        return (
            f"No student holds {share} of its teacher: the teacher is no better than a random player, or has played a "
            "single final game; train longer, play more."
        )
    best = max(tried, key=lambda row: row["share_at_least"])
    return (
        f"No student holds {share} of its teacher with {conclusion['confidence']:.0%} confidence. The nearest is "
        f"{best['name']}: share {best['share']:.2f}, at least {best['share_at_least']:.2f}; play more final games, "
        "train longer, or add larger students."
    )
