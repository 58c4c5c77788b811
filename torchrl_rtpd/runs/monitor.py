"""Watching a run: progress, evaluations on a schedule, the best networks kept.

A step is one agent decision. Evaluation uses environments and generators of its own, so watching changes nothing in
training.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

from tensordict.nn import TensorDictModule
from torchrl.record.loggers import Logger
from torchrl.trainers import Trainer, TrainerHookBase
from tqdm import tqdm

from torchrl_rtpd.evaluation.evaluator import EvaluationStopped, Evaluator
from torchrl_rtpd.evaluation.scores import Scores
from torchrl_rtpd.files.weights import save_weights
from torchrl_rtpd.runs.clock import SPENT, RunClock
from torchrl_rtpd.runs.folder import RunFolder
from torchrl_rtpd.runs.kept import KeptNetworks, plain, restored
from torchrl_rtpd.runs.metrics import Averages, MetricsFile
from torchrl_rtpd.runs.played import PlayedGames
from torchrl_rtpd.runs.ranges import check_ranges
from torchrl_rtpd.trainers._torchrl import stopping
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer

__all__ = ["RunMonitor", "Watching"]

_LEARNED = ("agreement", "teacher_regret", "kl_to_teacher", "student_entropy", "loss_distill", "loss_td")
_STUDENT_METRICS = (*_LEARNED, "dormant")


class Watching(Protocol):
    """Evaluations of a run as other hooks need them; a :class:`RunMonitor` makes them.

    Attributes:
        networks: actors by name, the teacher first.
        last_scores: scores of each network's last evaluation, by name.
        evaluated_steps: agent steps at the last evaluation, -1 before.
        folder: the run's folder.
    """

    networks: dict[str, TensorDictModule]
    last_scores: dict[str, Scores]
    evaluated_steps: int
    folder: RunFolder

    @property
    def student_score(self) -> float | None:
        """Mean over the students of their last scores."""

    def measure_random(self) -> float | None:
        """Return the mean score of a random player, who plays at the first call; None where it gave no scores."""


class RunMonitor(TrainerHookBase):
    """Hook that shows progress, evaluates every network on a schedule and keeps each one's best weights.

    Args:
        networks: actors by name, the teacher first.
        evaluator: plays the games.
        output_dir: receives ``metrics.csv`` and ``weights/``. A path is claimed for this run when training begins. A
            :class:`~torchrl_rtpd.runs.RunFolder` that was claimed before stays its owner's to release.
        distiller: the hook that teaches the students, for their metrics; None without students.
        evaluate_every_steps: agent steps between evaluations, the last one at the end of training; 0 or None never
            evaluates during the run.
        log_every_steps: agent steps between rows of ``metrics.csv``.
        evaluate_from_steps: no evaluation before this step.
        keep_from_steps: none before this step counts for the best weights, as of networks that still learn fast; the
            last one of a run always does.
        logger: receives the scores, as TorchRL's trainers log everything else.
        progress_bar: draw one if True.
        spent_before: ``steps``, ``updates``, ``training_seconds`` and ``cpu_seconds`` that an earlier run took without
            which this one could not be, such as that of a teacher who is to be distilled. They are added to all counts.

    ``metrics.csv`` counts ``steps``, ``updates``, ``seconds`` by the clock, and ``training_seconds``, those without
    evaluations. ``cpu_seconds`` are the processor's, of all threads and without evaluations, which say more than the
    clock where other work shares a CPU. ``training_score`` is the mean score of the ``training_games`` that ended since
    the row before, by whoever acts, with exploration.

    An evaluation that was given up (:class:`~torchrl_rtpd.evaluation.EvaluationStopped`) leaves its cells empty. If it
    took too long, a warning says so. If the run is to end, the evaluation is made up for when the run is resumed.

    Attributes:
        clock: steps, updates and seconds of the run.
        last_scores: scores of each network's last evaluation, by name.
        evaluated_steps: agent steps at the last evaluation, -1 before.

    Raises:
        ValueError: an interval out of range, or an unknown name in ``spent_before``.
        RuntimeError: when training begins, an ``output_dir`` that another run holds, or that holds the results of
            another run while this one was not restored.

    Examples:
        ``RunMonitor(networks, evaluator, "outputs/run", distiller=hook).register(trainer)`` after the other hooks;
        ``examples/rtpd_atari.py`` shows it at work.
    """

    def __init__(
        self,
        networks: Mapping[str, TensorDictModule],
        evaluator: Evaluator,
        output_dir: str | os.PathLike | RunFolder,
        *,
        distiller: RealTimeDistillTrainer | None = None,
        evaluate_every_steps: int | None = None,
        log_every_steps: int = 1_000,
        evaluate_from_steps: int = 0,
        keep_from_steps: int = 0,
        logger: Logger | None = None,
        progress_bar: bool = True,
        spent_before: Mapping[str, float] | None = None,
    ) -> None:
        intervals = {
            "log_every_steps": log_every_steps,
            "evaluate_every_steps": evaluate_every_steps,
            "evaluate_from_steps": evaluate_from_steps,
            "keep_from_steps": keep_from_steps,
        }
        may_be_zero = "evaluate_every_steps evaluate_from_steps keep_from_steps"
        check_ranges(intervals, {"[1, inf)": "log_every_steps", "[0, inf)": may_be_zero})
        self.clock = RunClock(spent_before)
        self.networks = dict(networks)
        self.evaluator = evaluator
        self.folder = output_dir if isinstance(output_dir, RunFolder) else RunFolder(output_dir)
        self.distiller = distiller
        self.logger = logger
        self.last_scores: dict[str, Scores] = {}
        self.evaluated_steps = -1
        students = [f"{name}/{metric}" for name in list(self.networks)[1:] for metric in _STUDENT_METRICS]
        scores = [f"{name}/{metric}" for name in self.networks for metric in ("score", "score_std")]
        self._played = PlayedGames(getattr(evaluator, "score_key", None))  # any callable may evaluate
        columns = [*SPENT[:2], "seconds", *SPENT[2:], "steps_per_second", *self._played.COLUMNS, *scores, *students]
        self.metrics = MetricsFile(self.folder.path / "metrics.csv", columns)
        self._logging = _Interval(log_every_steps)
        self._evaluation = _Interval(evaluate_every_steps or 0, first=evaluate_from_steps)
        self._kept = KeptNetworks(self.networks, keep_from_steps)
        self._averages = Averages(students)
        self._progress_bar = progress_bar
        self._bar: tqdm | None = None
        self._random_return: float | None = None  # not measured yet
        self._restored = False

    def register(self, trainer: Trainer, name: str = "run_monitor") -> None:
        """Attach to a trainer; after its other hooks, so that the monitor sees their work."""
        self._trainer = trainer
        self.clock.attach(trainer)
        self._bar = tqdm(total=trainer.total_frames, unit="step", disable=not self._progress_bar, dynamic_ncols=True)
        trainer.register_op("setup", self.claim)
        trainer.register_op("pre_steps_log", self._played.add)
        trainer.register_op("post_steps", self.watch)
        trainer.register_op("shutdown", self.end)
        trainer.register_module(name, self)

    def claim(self) -> None:
        """Take the folder, or refuse to train; called by the trainer when training begins."""
        self.folder.claim(resume=self._restored)

    def watch(self) -> None:
        """Log and evaluate where it is time; called by the trainer after each batch."""
        self.folder.begin()
        steps = self._trainer.collected_frames
        if self._bar is not None:
            self._bar.update(steps - self._bar.n)
        self.clock.after_batch()
        if self.distiller is not None:
            self._averages.add(self.distiller.metrics)
        row: dict[str, float] = {}
        due = self._evaluation.due(steps) or steps >= self._trainer.total_frames
        if self._evaluation.steps and due and self.clock.learning:
            row = self._evaluate(steps)
            if not stopping(self._trainer):  # otherwise the resumed run evaluates at once
                self._evaluation.done(steps)
        if row or self._logging.due(steps):
            self._logging.done(steps)
            self.metrics.append({**self.clock.counters(), **self._played.take(), **row, **self._averages.take()})
            self._show()

    def end(self) -> None:
        """Stop the clocks of training; called by the trainer at its end."""
        self.clock.end()
        if self._bar is not None:
            self._bar.close()

    @property
    def means(self) -> dict[str, float]:
        """Means of the students' metrics in the last row, by ``<student>/<metric>``."""
        return self._averages.last

    def drop(self, *names: str) -> None:
        """Watch students no more that the hook has dropped; their rows end here, their best weights stay as saved."""
        for name in names:
            (self.folder.path / "weights" / "last" / f"{name}.safetensors").unlink(missing_ok=True)  # of a cut run
            del self.networks[name]
            self._kept.drop(name)
            self.last_scores.pop(name, None)

    @property
    def best(self) -> dict[str, TensorDictModule]:
        """Copies of the networks with their best weights, by name."""
        return self._kept.networks

    @property
    def best_scores(self) -> dict[str, Scores]:
        """Scores of the evaluation that each network is kept from, by name."""
        return self._kept.scores

    @property
    def student_score(self) -> float | None:
        """Mean over the students of their last scores, the teacher's without students; None before an evaluation."""
        names = list(self.networks)[1:] or list(self.networks)
        if not all(name in self.last_scores for name in names):
            return None
        return sum(self.last_scores[name].mean for name in names) / len(names)

    @property
    def random_return(self) -> float | None:
        """Mean score of a random player; None before :meth:`measure_random`."""
        return self._random_return

    def measure_random(self) -> float | None:
        """Return the mean score of a random player.

        The random player plays at the first call. Its time counts as evaluation.

        Returns:
            None where the games were given up, with a warning unless the run is to end.
        """
        if self._random_return is None:
            try:
                with self.clock.evaluating():
                    self._play_random()
            except EvaluationStopped as error:
                self._warn_of(error)
        return self._random_return

    def _play_random(self) -> None:
        teacher = next(iter(self.networks.values()))
        self._random_return = self.evaluator(teacher, epsilon=1.0, should_stop=self._stops).mean

    def _stops(self) -> bool:
        return stopping(self._trainer)

    def _warn_of(self, error: EvaluationStopped) -> None:
        if not self._stops():
            warnings.warn(f"no scores at step {self._trainer.collected_frames}: {error}", stacklevel=3)

    def _evaluate(self, steps: int) -> dict[str, float]:
        """Play, report and keep the best; the scores for a row, none where an evaluation was given up."""
        try:
            with self.clock.evaluating():
                scores = {
                    name: self.evaluator(network, seed=self.evaluator.seed + steps, should_stop=self._stops)
                    for name, network in self.networks.items()
                }
                self.last_scores = scores
                self._report_returns()
        except EvaluationStopped as error:
            self._warn_of(error)
            return {}
        self.evaluated_steps = steps
        for name, found in scores.items():
            if self._kept.offer(name, self.networks[name], found, steps, self._trainer.total_frames):
                self._save_best(name)
            if self.logger is not None:
                self.logger.log_scalar(f"score/{name}", found.mean, step=steps)
        means = {f"{name}/score": found.mean for name, found in scores.items()}
        return means | {f"{name}/score_std": found.std for name, found in scores.items()}

    def _report_returns(self) -> None:
        """Tell the distiller the returns of all networks and of a random player, if something follows them."""
        if self.distiller is None or not self.distiller.follows_returns:
            return
        if self._random_return is None:
            self._play_random()
        assert self._random_return is not None
        teacher, *students = self.networks
        returns = {name: self.last_scores[name].mean for name in students}
        self.distiller.report_returns(returns, self.last_scores[teacher].mean, self._random_return)

    def _save_best(self, name: str) -> None:
        try:
            save_weights(self.networks[name], self.folder.path / "weights" / f"{name}.safetensors")
        except OSError as error:  # checkpoints hold it as well
            warnings.warn(f"the best {name} is kept in memory only: {error}; free some space.", stacklevel=2)

    def _show(self) -> None:
        shown = {} if self._played.last is None else {"training score": f"{self._played.last:.0f}"}
        shown.update((f"{name} score", f"{scores.mean:.0f}") for name, scores in self.last_scores.items())
        shown.update(
            (f"{name.split('/')[0]} agrees", f"{value:.0%}")
            for name, value in self._averages.last.items()
            if name.endswith("/agreement") and name.split("/")[0] in self.networks
        )
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)

    def save_last(self) -> None:
        """Write the weights as they are now to ``weights/last``; where no evaluation counted, as the best ones as well.

        Before the end of the first batch nothing is written, since nothing has been learned. In a folder that was lost
        to another run nothing is written either, and a warning says so.
        """
        if self.distiller is not None:
            self.distiller.wait()  # where training failed while students learn beside their teacher
        steps = self._trainer.collected_frames
        filled = self._kept.fill(self.networks, self.last_scores if self.evaluated_steps == steps else {}, steps)
        if not self.folder.begun:
            return
        try:
            self.folder.check()
        except RuntimeError as error:
            warnings.warn(f"the last weights are not saved: {error}", stacklevel=2)
            return
        weights = self.folder.path / "weights"
        for name, network in self.networks.items():
            save_weights(network, weights / "last" / f"{name}.safetensors")
            if name in filled:
                save_weights(network, weights / f"{name}.safetensors")

    def state_dict(self) -> dict[str, Any]:
        """Return best networks, all scores, clocks, sums of the next row, and its place in the metrics file."""
        return {
            **self._kept.state_dict(),
            "last_scores": plain(self.last_scores),
            "random_return": self._random_return,
            "evaluated_steps": self.evaluated_steps,
            "steps": self._trainer.collected_frames,
            "clock": self.clock.state_dict(),
            "averages": self._averages.state_dict(),
            "played": self._played.state_dict(),
            "next_log": self._logging.next,
            "next_evaluation": self._evaluation.next,
            # A state that is asked for before the run begins writes nothing.
            "metrics": self.metrics.position() if self.folder.held else self.metrics.left_at,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; later rows of the metrics file are cut off with the next one."""
        self.drop(*(name for name in self.networks if name not in state_dict["best"]))
        self._kept.load_state_dict(state_dict)
        self._restored = True
        if "metrics" not in state_dict:  # of the first version of checkpoints
            return
        self.last_scores = restored(state_dict["last_scores"])
        self._random_return = state_dict["random_return"]
        self.evaluated_steps = state_dict["evaluated_steps"]
        self.clock.load_state_dict(state_dict["clock"])
        self._averages.load_state_dict(state_dict["averages"])
        if "played" in state_dict:  # not yet in the third version
            self._played.load_state_dict(state_dict["played"])
        self._logging.next, self._evaluation.next = state_dict["next_log"], state_dict["next_evaluation"]
        if self._bar is not None:
            self._bar.reset()  # time and steps count from here
            self._bar.initial = self._bar.n = self._bar.last_print_n = state_dict["steps"]
            self._bar.refresh()
        if state_dict["metrics"] is not None:
            self.metrics.cut(state_dict["metrics"])

    @staticmethod
    def upgraded_state(state: dict[str, Any], version: int) -> dict[str, Any]:
        """Return a state of an older version of checkpoints as one of today.

        The first version held best networks and scores alone; all else begins from scratch. The second held clocks and
        sums side by side with the scores.
        """
        if version < 2:
            scores = {name: {"scores": games, "cut": 0, "steps": 0} for name, games in state["best_scores"].items()}
            return {"best": state["best"], "best_scores": scores}
        if version > 2:
            return state
        state = dict(state)
        clock = {name: state.pop(name) for name in ("seconds", "cpu_seconds", "evaluation_seconds", "learning_since")}
        clock["evaluation_cpu_seconds"] = state.pop("_evaluation_cpu_seconds")
        averages = {"sums": state.pop("sums"), "count": state.pop("_num_summed"), "last": state.pop("shown")}
        intervals = {"next_log": state.pop("_next_log"), "next_evaluation": state.pop("_next_evaluation")}
        return {**state, **intervals, "clock": clock, "averages": averages}


class _Interval:
    """Steps at which something is due: the multiples of an interval, reached or passed."""

    def __init__(self, steps: int, *, first: int = 0) -> None:
        self.steps = steps
        self.first = first
        self.next = 0

    def due(self, steps: int) -> bool:
        return steps >= max(self.next, self.first)

    def done(self, steps: int) -> None:
        self.next = steps - steps % self.steps + self.steps
