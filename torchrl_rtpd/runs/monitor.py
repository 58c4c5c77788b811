"""Watching a run: progress, evaluations on a schedule, the best networks kept.

A step is one agent decision. Evaluation uses environments and generators of its own, so watching changes nothing in
training.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensordict.nn import TensorDictModule
from torchrl.record.loggers import Logger
from torchrl.trainers import Trainer, TrainerHookBase
from tqdm import tqdm

from torchrl_rtpd.evaluation.evaluator import EvaluationStopped, Evaluator
from torchrl_rtpd.evaluation.scores import Scores
from torchrl_rtpd.files.weights import save_weights
from torchrl_rtpd.runs.metrics import MetricsFile
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer

__all__ = ["RunMonitor"]

_SPENT = ("steps", "updates", "training_seconds", "cpu_seconds")
_STUDENT_METRICS = ("agreement", "kl_to_teacher", "student_entropy", "loss_distill", "loss_td", "dormant")


class RunMonitor(TrainerHookBase):
    """Hook that shows progress, evaluates every network on a schedule and keeps each one's best weights.

    Args:
        networks: actors by name, the teacher first.
        evaluator: plays the games.
        output_dir: receives ``metrics.csv`` and ``weights/``.
        distiller: the hook that teaches the students, for their metrics; None without students.
        evaluate_every_steps: agent steps between evaluations, the last one at the end of training; 0 or None never
            evaluates during the run.
        log_every_steps: agent steps between rows of ``metrics.csv``.
        evaluate_from_steps: no evaluation before this step.
        logger: receives the scores, as TorchRL's trainers log everything else.
        progress_bar: whether to draw one.
        spent_before: ``steps``, ``updates``, ``training_seconds`` and ``cpu_seconds`` that an earlier run took without
            which this one could not be, such as that of a teacher who is to be distilled; they are added to what is
            reported.

    ``metrics.csv`` counts ``steps``, ``updates``, ``seconds`` by the clock, and ``training_seconds``, those without
    evaluations; ``cpu_seconds`` are the processor's, of all threads and without evaluations, which say more than the
    clock where other work shares a CPU.

    Attributes:
        last_scores: of each network's last evaluation.
        best_scores: of the evaluation each network is kept from.
        evaluated_steps: agent steps at the last evaluation, -1 before.
        measures_random: whether a random player plays at the first evaluation; other hooks set it. He does in any case
            where a schedule follows returns.
        random_return: his mean score, None before.
        seconds_before: of the run, in the processes it was resumed from.

    An evaluation that was given up (:class:`~torchrl_rtpd.evaluation.EvaluationStopped`) leaves its cells empty; if it
    took too long, with a warning, and if the run is to end, it is made up for when the run is resumed.

    Raises:
        ValueError: an interval out of range, or something else than these in ``spent_before``.

    Examples:
        ``RunMonitor(networks, evaluator, "outputs/run", distiller=hook).register(trainer)`` after the other hooks;
        ``examples/rtpd_atari.py`` shows it at work.
    """

    def __init__(
        self,
        networks: Mapping[str, TensorDictModule],
        evaluator: Evaluator,
        output_dir: str | Path,
        *,
        distiller: RealTimeDistillTrainer | None = None,
        evaluate_every_steps: int | None = None,
        log_every_steps: int = 1_000,
        evaluate_from_steps: int = 0,
        logger: Logger | None = None,
        progress_bar: bool = True,
        spent_before: Mapping[str, float] | None = None,
    ) -> None:
        if log_every_steps < 1 or (evaluate_every_steps or 0) < 0 or evaluate_from_steps < 0:
            raise ValueError(
                "intervals are counted in agent steps, at least 1 for logging and 0 for evaluation: got "
                f"log_every_steps={log_every_steps}, evaluate_every_steps={evaluate_every_steps}, "
                f"evaluate_from_steps={evaluate_from_steps}."
            )
        unknown = set(spent_before or {}) - set(_SPENT)
        if unknown:
            raise ValueError(f"spent_before holds {', '.join(_SPENT)}: got {', '.join(sorted(unknown))}.")
        self.spent_before = {**dict.fromkeys(_SPENT, 0), **(spent_before or {})}
        self.networks = dict(networks)
        self.evaluator = evaluator
        self.output_dir = Path(output_dir)
        self.distiller = distiller
        self.evaluate_every_steps = evaluate_every_steps or 0
        self.log_every_steps = log_every_steps
        self.evaluate_from_steps = evaluate_from_steps
        self.logger = logger
        self.progress_bar = progress_bar
        self.best = {name: copy.deepcopy(network) for name, network in self.networks.items()}
        self.best_scores: dict[str, Scores] = {}
        self.last_scores: dict[str, Scores] = {}
        self.evaluation_seconds = 0.0
        self._evaluation_cpu_seconds = 0.0
        self.evaluated_steps = -1
        # Seconds of the run, steps and evaluation seconds at the first update.
        self._learning_since: tuple[float, int, float] | None = None
        self._ended: float | None = None  # seconds of the run at the end of training
        self.seconds_before = self._cpu_before = 0.0  # of the run, in processes before this one
        self._bar: tqdm | None = None
        self.random_return: float | None = None  # not measured yet
        self.measures_random = False
        self._next_log = self._next_evaluation = 0
        self._sums: dict[str, float] = {}
        self._num_summed = 0
        self._shown: dict[str, float] = {}
        students = [f"{name}/{metric}" for name in list(self.networks)[1:] for metric in _STUDENT_METRICS]
        scores = [f"{name}/{metric}" for name in self.networks for metric in ("score", "score_std")]
        self.metrics = MetricsFile(
            self.output_dir / "metrics.csv",
            [*_SPENT[:2], "seconds", *_SPENT[2:], "steps_per_second", *scores, *students],
        )

    def register(self, trainer: Trainer, name: str = "run_monitor") -> None:
        """Attach to a trainer; after its other hooks, so that it sees their work."""
        self._trainer = trainer
        self._start, self._cpu_start = time.monotonic(), time.process_time()
        self._bar = tqdm(total=trainer.total_frames, unit="step", disable=not self.progress_bar, dynamic_ncols=True)
        trainer.register_op("post_steps", self.watch)
        trainer.register_op("shutdown", self._end)
        trainer.register_module(name, self)
        self.evaluator.should_stop = lambda: trainer._stop_training

    def watch(self) -> None:
        """Look at the run after a batch: called by the trainer."""
        steps = self._trainer.collected_frames
        if self._bar is not None:
            self._bar.update(steps - self._bar.n)
        learning = self._trainer._optim_count > 0
        if learning and self._learning_since is None:
            self._learning_since = (self.seconds, steps, self.evaluation_seconds)
        self._add_up()
        row: dict[str, float] = {}
        due = steps >= max(self._next_evaluation, self.evaluate_from_steps) or steps >= self._trainer.total_frames
        if self.evaluate_every_steps and due and learning:
            row = self._evaluate(steps)
            if not self._trainer._stop_training:  # else the resumed run evaluates at once
                self._next_evaluation = steps - steps % self.evaluate_every_steps + self.evaluate_every_steps
        if row or steps >= self._next_log:
            self._next_log = steps - steps % self.log_every_steps + self.log_every_steps
            self.metrics.append({**self._counters(), **row, **self._averages()})
            self._show()

    def _end(self) -> None:
        self._ended, self._cpu_ended = self.seconds, self._cpu_seconds
        self.evaluator.should_stop = lambda: False  # what is played from now on is not the run's
        if self._bar is not None:
            self._bar.close()

    @property
    def seconds(self) -> float:
        """Time of the run so far, in the processes it was resumed from, too; by a clock that nobody sets."""
        return self.seconds_before + time.monotonic() - self._start

    @property
    def _cpu_seconds(self) -> float:
        return self._cpu_before + time.process_time() - self._cpu_start

    @property
    def student_score(self) -> float | None:
        """Mean over the students of their last scores, the teacher's without students; None before an evaluation."""
        names = list(self.networks)[1:] or list(self.networks)
        if not all(name in self.last_scores for name in names):
            return None
        return sum(self.last_scores[name].mean for name in names) / len(names)

    @property
    def steps(self) -> int:
        """Agent steps so far, those spent before among them."""
        return int(self.spent_before["steps"]) + self._trainer.collected_frames

    @property
    def updates(self) -> int:
        """Minibatches learned from so far, those spent before among them."""
        return int(self.spent_before["updates"]) + self._trainer._optim_count

    @property
    def training_seconds(self) -> float:
        """By the clock, evaluation left out, from :meth:`register` on, with those spent before."""
        now = self.seconds if self._ended is None else self._ended
        return self.spent_before["training_seconds"] + now - self.evaluation_seconds

    @property
    def cpu_seconds(self) -> float:
        """Likewise, of the processor in all threads."""
        now = self._cpu_seconds if self._ended is None else self._cpu_ended
        return self.spent_before["cpu_seconds"] + now - self._evaluation_cpu_seconds

    @property
    def steps_per_second(self) -> float | None:
        """Agent steps a second from the first update to the end of training, evaluation left out; None before."""
        if self._learning_since is None:
            return None
        since, steps, evaluating = self._learning_since
        now = self.seconds if self._ended is None else self._ended
        seconds = now - since - (self.evaluation_seconds - evaluating)
        done = self._trainer.collected_frames - steps
        return done / seconds if done and seconds > 0 else None

    def _counters(self) -> dict[str, float]:
        row = {name: round(getattr(self, name), 2) for name in (*_SPENT, "seconds")}
        speed = self.steps_per_second
        return row if speed is None else {**row, "steps_per_second": round(speed, 2)}

    def _add_up(self) -> None:
        if self.distiller is None or not self.distiller.metrics:
            return
        for key, value in self.distiller.metrics.items():
            name = key.removeprefix("distill/")
            if name in self.metrics.columns:
                self._sums[name] = self._sums.get(name, 0.0) + value
        self._num_summed += 1

    def _averages(self) -> dict[str, float]:
        averages = {name: total / self._num_summed for name, total in self._sums.items()}
        if self.distiller is not None:  # measured now and then: the last value, not a mean of copies
            last = {key.removeprefix("distill/"): value for key, value in self.distiller.metrics.items()}
            averages.update((name, last[name]) for name in averages if name.endswith("/dormant"))
        self._sums, self._num_summed = {}, 0
        self._shown = averages or self._shown
        return averages

    def _evaluate(self, steps: int) -> dict[str, float]:
        start, cpu_start = time.monotonic(), time.process_time()
        try:
            scores = {
                name: self.evaluator(network, seed=self.evaluator.seed + steps)
                for name, network in self.networks.items()
            }
            self.last_scores = scores
            self._report_returns()
        except EvaluationStopped as error:
            if not self._trainer._stop_training:
                warnings.warn(f"no scores at step {steps}: {error}", stacklevel=2)
            return {}
        finally:
            self.evaluation_seconds += time.monotonic() - start
            self._evaluation_cpu_seconds += time.process_time() - cpu_start
        self.evaluated_steps = steps
        for name, found in scores.items():
            self._keep_if_best(name, found)
            if self.logger is not None:
                self.logger.log_scalar(f"score/{name}", found.mean, step=steps)
        means = {f"{name}/score": found.mean for name, found in scores.items()}
        return means | {f"{name}/score_std": found.std for name, found in scores.items()}

    def _keep_if_best(self, name: str, scores: Scores) -> None:
        if name not in self.best_scores or scores.mean > self.best_scores[name].mean:
            network = self.networks[name]
            self.best_scores[name] = scores
            self.best[name].load_state_dict(network.state_dict())
            try:
                save_weights(network, self.output_dir / "weights" / f"{name}.safetensors")
            except OSError as error:  # checkpoints hold it, too
                warnings.warn(f"the best {name} is kept in memory only: {error}; free some space.", stacklevel=2)

    def _report_returns(self) -> None:
        """Tell the hook how everybody plays, a random player included, if it wants to know."""
        told = self.distiller if self.distiller is not None and self.distiller.follows_returns else None
        teacher, *students = self.networks
        if self.random_return is None and (told is not None or self.measures_random):
            self.random_return = self.evaluator(self.networks[teacher], epsilon=1.0).mean
        if told is not None and self.random_return is not None:
            returns = {name: self.last_scores[name].mean for name in students}
            told.report_returns(returns, self.last_scores[teacher].mean, self.random_return)

    def _show(self) -> None:
        shown = {f"{name} score": f"{scores.mean:.0f}" for name, scores in self.last_scores.items()}
        shown.update(
            (f"{name.split('/')[0]} agrees", f"{value:.0%}")
            for name, value in self._shown.items()
            if name.endswith("/agreement")
        )
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)

    def save_last(self) -> None:
        """Write the weights as they are now, beside the best ones; the latter too where nothing was evaluated."""
        for name, network in self.networks.items():
            save_weights(network, self.output_dir / "weights" / "last" / f"{name}.safetensors")
            if name not in self.best_scores:
                self.best[name].load_state_dict(network.state_dict())
                save_weights(network, self.output_dir / "weights" / f"{name}.safetensors")

    _COUNTERS = (
        "evaluation_seconds",
        "_evaluation_cpu_seconds",
        "evaluated_steps",
        "_next_log",
        "_next_evaluation",
        "_num_summed",
    )

    def state_dict(self) -> dict[str, Any]:
        """Best networks, all scores, clocks, sums of the next row, and where in the metrics file it will come."""
        return {
            "best": {name: network.state_dict() for name, network in self.best.items()},
            "best_scores": _plain(self.best_scores),
            "last_scores": _plain(self.last_scores),
            "random_return": self.random_return,
            "steps": self._trainer.collected_frames,
            "seconds": self.seconds,
            "cpu_seconds": self._cpu_seconds,
            "learning_since": self._learning_since,
            "sums": dict(self._sums),
            "shown": dict(self._shown),
            "metrics": self.metrics.position(),
            **{name: getattr(self, name) for name in self._COUNTERS},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; later rows of the metrics file are cut off."""
        for name, network in self.best.items():
            network.load_state_dict(state_dict["best"][name])
        self.best_scores = _scores(state_dict["best_scores"])
        if "metrics" not in state_dict:  # of the first version of checkpoints
            return
        self.last_scores = _scores(state_dict["last_scores"])
        self.random_return = state_dict["random_return"]
        self._learning_since = state_dict["learning_since"]
        self._sums, self._shown = dict(state_dict["sums"]), dict(state_dict["shown"])
        for name in self._COUNTERS:
            setattr(self, name, state_dict[name])
        self.seconds_before, self._start = state_dict["seconds"], time.monotonic()
        self._cpu_before, self._cpu_start = state_dict["cpu_seconds"], time.process_time()
        if self._bar is not None:
            self._bar.initial = self._bar.n = state_dict["steps"]
            self._bar.refresh()
        self.metrics.cut(state_dict["metrics"])


def _plain(scores: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """Scores as plain values."""
    return {
        name: {"scores": list(found.scores), "cut": found.cut, "steps": found.steps} for name, found in scores.items()
    }


def _scores(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, Scores]:
    return {name: Scores(tuple(saved["scores"]), saved["cut"], saved["steps"]) for name, saved in plain.items()}
