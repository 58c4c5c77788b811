"""Watching a run: progress, evaluations on a schedule, the best networks kept.

A step is one agent decision. Evaluation uses environments and generators of its own, so watching changes nothing in
training.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensordict.nn import TensorDictModule
from torchrl.record.loggers import Logger
from torchrl.trainers import Trainer, TrainerHookBase
from tqdm import tqdm

from torchrl_rtpd.evaluation import Evaluator, Scores
from torchrl_rtpd.export import save_weights
from torchrl_rtpd.report import MetricsFile
from torchrl_rtpd.trainers import RealTimeDistillTrainer

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
        self._learning_since: tuple[float, int, float] | None = (
            None  # clock, steps, evaluation seconds at the first update
        )
        self._ended: float | None = None  # clock at the end of training
        self._random_return: float | None = None  # not measured yet
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
        self._start, self._cpu_start = time.perf_counter(), time.process_time()
        self._bar = tqdm(total=trainer.total_frames, unit="step", disable=not self.progress_bar, dynamic_ncols=True)
        trainer.register_op("post_steps", self.watch)
        trainer.register_op("shutdown", self._end)

    def watch(self) -> None:
        """Look at the run after a batch: called by the trainer."""
        steps = self._trainer.collected_frames
        self._bar.update(steps - self._bar.n)
        learning = self._trainer._optim_count > 0
        if learning and self._learning_since is None:
            self._learning_since = (time.perf_counter(), steps, self.evaluation_seconds)
        self._add_up()
        row: dict[str, float] = {}
        due = steps >= max(self._next_evaluation, self.evaluate_from_steps) or steps >= self._trainer.total_frames
        if self.evaluate_every_steps and due and learning:
            self._next_evaluation = steps - steps % self.evaluate_every_steps + self.evaluate_every_steps
            row = self._evaluate(steps)
        if row or steps >= self._next_log:
            self._next_log = steps - steps % self.log_every_steps + self.log_every_steps
            self.metrics.append({**self._counters(), **row, **self._averages()})
            self._show()

    def _end(self) -> None:
        self._ended, self._cpu_ended = time.perf_counter(), time.process_time()
        self._bar.close()

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
        now = time.perf_counter() if self._ended is None else self._ended
        return self.spent_before["training_seconds"] + now - self._start - self.evaluation_seconds

    @property
    def cpu_seconds(self) -> float:
        """Likewise, of the processor in all threads."""
        now = time.process_time() if self._ended is None else self._cpu_ended
        return self.spent_before["cpu_seconds"] + now - self._cpu_start - self._evaluation_cpu_seconds

    @property
    def steps_per_second(self) -> float | None:
        """Agent steps a second from the first update to the end of training, evaluation left out; None before."""
        if self._learning_since is None:
            return None
        clock, steps, evaluating = self._learning_since
        now = time.perf_counter() if self._ended is None else self._ended
        seconds = now - clock - (self.evaluation_seconds - evaluating)
        done = self._trainer.collected_frames - steps
        return done / seconds if done and seconds > 0 else None

    def _counters(self) -> dict[str, float]:
        row = {name: round(getattr(self, name), 2) for name in _SPENT}
        row["seconds"] = round(time.perf_counter() - self._start, 2)
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
        start, cpu_start = time.perf_counter(), time.process_time()
        row: dict[str, float] = {}
        for name, network in self.networks.items():
            scores = self.evaluator(network, seed=self.evaluator.seed + steps)
            self.last_scores[name] = scores
            row[f"{name}/score"], row[f"{name}/score_std"] = scores.mean, scores.std
            if name not in self.best_scores or scores.mean > self.best_scores[name].mean:
                self.best_scores[name] = scores
                self.best[name].load_state_dict(network.state_dict())
                save_weights(network, self.output_dir / "weights" / f"{name}.safetensors")
            if self.logger is not None:
                self.logger.log_scalar(f"score/{name}", scores.mean, step=steps)
        self._report_returns()
        self.evaluation_seconds += time.perf_counter() - start
        self._evaluation_cpu_seconds += time.process_time() - cpu_start
        return row

    def _report_returns(self) -> None:
        """Tell the hook how everybody plays, a random player included, if it wants to know."""
        if self.distiller is None or not self.distiller.follows_returns:
            return
        teacher, *students = self.networks
        if self._random_return is None:
            self._random_return = self.evaluator(self.networks[teacher], epsilon=1.0).mean
        returns = {name: self.last_scores[name].mean for name in students}
        self.distiller.report_returns(returns, self.last_scores[teacher].mean, self._random_return)

    def _show(self) -> None:
        shown = {f"{name} score": f"{scores.mean:.0f}" for name, scores in self.last_scores.items()}
        shown.update(
            (f"{name.split('/')[0]} agrees", f"{value:.0%}")
            for name, value in self._shown.items()
            if name.endswith("/agreement")
        )
        self._bar.set_postfix(shown, refresh=False)

    def save_last(self) -> None:
        """Write the weights as they are now, beside the best ones; the latter too where nothing was evaluated."""
        for name, network in self.networks.items():
            save_weights(network, self.output_dir / "weights" / "last" / f"{name}.safetensors")
            if name not in self.best_scores:
                self.best[name].load_state_dict(network.state_dict())
                save_weights(network, self.output_dir / "weights" / f"{name}.safetensors")

    def state_dict(self) -> dict[str, Any]:
        """Best networks and their scores."""
        return {
            "best": {name: network.state_dict() for name, network in self.best.items()},
            "best_scores": {name: list(scores.scores) for name, scores in self.best_scores.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name, network in self.best.items():
            network.load_state_dict(state_dict["best"][name])
        self.best_scores = {name: Scores(tuple(scores), 0, 0) for name, scores in state_dict["best_scores"].items()}
