"""A whole run by one call: watch, protect, train, score, report.

Whoever has a trainer, its students' hook and an evaluator has a run of days: with progress, evaluations, checkpoints to
resume from, guards, a table and figures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.trainers import Trainer

from torchrl_rtpd.evaluation.evaluator import EvaluationStopped, Evaluator
from torchrl_rtpd.runs.checkpoints import newest_checkpoint
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.exports import check_export, export_students
from torchrl_rtpd.runs.figures import plot_curves, plot_front
from torchrl_rtpd.runs.final import final_results
from torchrl_rtpd.runs.folder import RunFolder
from torchrl_rtpd.runs.metrics import read_metrics, write_json
from torchrl_rtpd.runs.monitor import RunMonitor
from torchrl_rtpd.runs.players import check_networks, distiller_of
from torchrl_rtpd.runs.process import keep_freed_memory
from torchrl_rtpd.runs.protect import Protection, protect
from torchrl_rtpd.runs.report import pareto_front, results_table
from torchrl_rtpd.runs.size_search import SizeSearch, sentence
from torchrl_rtpd.trainers._torchrl import hooks_of

__all__ = ["Experiment"]

_TEST_SEED = 10_000_000  # of the final games; those of evaluations during a run lie below
_RESUME_HINT = "build the run by the same lines and call experiment.resume().run()"


class Experiment:
    """Turn any TorchRL trainer into a whole run.

    Five lines after a trainer and the students' hook::

        networks = {"teacher": teacher, "student": student}
        evaluator = Evaluator(lambda: make_env(10), episodes=10)
        experiment = Experiment(trainer, networks, evaluator, "outputs/cartpole", evaluate_every_steps=2_000)
        results = experiment.run()

    The folder then holds ``results.json``, ``table.md``, ``metrics.csv``, ``curves.png``, ``front.png``, ``weights/``
    (of each network the best by evaluation, and the last), ``checkpoints/`` and, with ``run(export=["onnx"])``, the
    students as files for devices in ``deployed/``. A folder that holds another run is
    refused before anything is written. A run that was interrupted goes on, built by the same lines, with
    ``experiment.resume().run()``; one that is finished does so if its trainer's ``total_frames`` is larger.

    Training is what ``trainer.train()`` would do, to the last bit.

    Args:
        trainer: built, with all its hooks registered and nothing trained. It must not save checkpoints itself.
        networks: policies by name, the teacher first: the very modules that trainer and students' losses train. Of a
            policy in several parts, the whole policy. With one network only, the name ``teacher`` says that it is one.
        evaluator: plays the games of evaluations and the final ones. It is closed at the end.
        output_dir: folder of the run; or a :class:`~torchrl_rtpd.runs.folder.RunFolder` that is claimed already, by a
            script that has files of its own to write there. None makes a new one, ``outputs/<date>_<time>``.

    Keyword Args:
        evaluate_every_steps: agent steps between two evaluations. 0 plays the final games only, None no games at all.
        evaluate_from_steps: no evaluation comes before.
        keep_from_steps: no network is kept from an evaluation before, since one that is kept should be a settled one.
        protection: options of checkpoints, guards and stoppers; see :class:`~torchrl_rtpd.runs.Protection`.
        about: entries that head ``results.json``, such as ``game`` and ``seed``, which the figures name.
        spent_before: steps, updates and seconds of an earlier phase; see :class:`~torchrl_rtpd.runs.RunMonitor`.
        progress_bar: show progress and scores.

    Attributes:
        folder: of the run.
        monitor: watches the run; has best networks and scores.
        protected: checkpoints, guard and stopper.

    Raises:
        ValueError: a name that is no file name, one network under two names, a first network that is not the one the
            trainer trains, or a student under another name than the hook's.
        RuntimeError: a trainer that saves checkpoints already; at :meth:`run`, a folder that holds another run.
        SystemExit: at :meth:`run`, after a signal that asked the run to end; its last checkpoint is whole. One that
            comes in the final games gives them up, and the resumed run plays them. A report that was begun is finished.

    Examples:
        >>> import tempfile, torch, warnings
        >>> from functools import partial
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> from torchrl.envs import GymEnv, RewardSum, SerialEnv
        >>> from torchrl.modules import MLP, QValueActor
        >>> from torchrl.objectives import DQNLoss, SoftUpdate
        >>> from torchrl.trainers.algorithms.dqn import DQNTrainer
        >>> from torchrl_rtpd import DistillationLoss, DualNetworkCollector, RealTimeDistillTrainer
        >>> def make_env():
        ...     games = SerialEnv(2, partial(GymEnv, "CartPole-v1", categorical_action_encoding=True))
        ...     return games.append_transform(RewardSum())
        >>> env = make_env()
        >>> make_actor = partial(QValueActor, in_keys=["observation"], spec=env.action_spec_unbatched)
        >>> teacher, student = make_actor(MLP(4, 2, num_cells=[32])), make_actor(MLP(4, 2, num_cells=[4]))
        >>> loss = DQNLoss(teacher, action_space="categorical", delay_value=True)
        >>> warnings.simplefilter("ignore")
        >>> trainer = DQNTrainer(
        ...     collector=DualNetworkCollector(env, teacher, frames_per_batch=32, total_frames=128),
        ...     total_frames=128, frame_skip=1, optim_steps_per_batch=2, loss_module=loss, progress_bar=False,
        ...     optimizer=torch.optim.Adam(loss.parameters()), target_net_updater=SoftUpdate(loss, tau=0.1),
        ...     replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(128), batch_size=16),
        ...     episode_reward_key="episode_reward",
        ... )
        >>> RealTimeDistillTrainer(DistillationLoss(student), optimizer=torch.optim.Adam).register(trainer)
        >>> place = tempfile.mkdtemp() + "/run"
        >>> networks, evaluator = {"teacher": teacher, "student": student}, Evaluator(make_env, episodes=2)
        >>> results = Experiment(trainer, networks, evaluator, place, progress_bar=False).run()  # doctest: +ELLIPSIS
        Trained. Now plays the final games of 2 networks and measures how long they take for a decision.
        <BLANKLINE>
        | network ...
        >>> results["steps"], [row["parameters"] for row in results["networks"]]
        (128, [226, 30])
        >>> sorted(os.listdir(place))
        ['checkpoints', 'curves.png', 'front.png', 'metrics.csv', 'results.json', 'table.md', 'weights']
    """

    def __init__(
        self,
        trainer: Trainer,
        networks: Mapping[str, TensorDictModule],
        evaluator: Evaluator,
        output_dir: str | os.PathLike | RunFolder | None = None,
        *,
        evaluate_every_steps: int | None = 0,
        evaluate_from_steps: int = 0,
        keep_from_steps: int = 0,
        protection: Protection | None = None,
        about: Mapping[str, Any] | None = None,
        spent_before: Mapping[str, float] | None = None,
        progress_bar: bool = True,
    ) -> None:
        check_networks(networks, trainer.loss_module, distiller_of(trainer))
        self._start = time.perf_counter()
        self._commit = run_environment()["commit"]  # of the code that runs, whatever comes into the checkout later
        self.trainer = trainer
        self.about = dict(about or {})
        self.folder = _folder(output_dir)
        self._plays = evaluate_every_steps is not None
        self._search = next((hook for hook in hooks_of(trainer).values() if isinstance(hook, SizeSearch)), None)
        self._resumed = False
        self.monitor = RunMonitor(
            networks,
            evaluator,
            self.folder,
            distiller=distiller_of(trainer),
            evaluate_every_steps=evaluate_every_steps,
            evaluate_from_steps=evaluate_from_steps,
            keep_from_steps=keep_from_steps,
            logger=trainer.logger,
            progress_bar=progress_bar,
            spent_before=spent_before,
        )
        if self._search is not None:
            if not evaluate_every_steps:
                raise ValueError(
                    f"a search drops students by their scores: got evaluate_every_steps={evaluate_every_steps}; "
                    "evaluate at its rungs."
                )
            if keep_from_steps:
                raise ValueError(
                    f"a search compares networks by their best scores from its first rung on: got keep_from_steps="
                    f"{keep_from_steps}; leave it out."
                )
            self._search.follow(self.monitor, self.about)
            first = max(evaluate_from_steps, evaluate_every_steps)
            self._search.warn_of_missed_rungs(range(first, trainer.total_frames, evaluate_every_steps))
        protection = protection or Protection()
        if protection.resume_hint is None:
            protection = replace(protection, resume_hint=_RESUME_HINT)
        self.protected = protect(trainer, self.monitor, self.folder.path / "checkpoints", protection)

    def resume(self, path: str | os.PathLike | None = None) -> Experiment:
        """Go on from a checkpoint, in this run's folder; call it right before :meth:`run`.

        Args:
            path: a checkpoint of this run; None takes the newest whole one of its folder.

        Returns:
            This object.

        Raises:
            CheckpointError: no checkpoint there, one that is damaged, or one of a run with other parts.
            RuntimeError: a folder that another process is writing.
        """
        path = newest_checkpoint(self.folder if path is None else path)
        self.folder.claim(resume=True)
        self.protected.saver.restore(path)
        self._resumed = True
        return self

    def run(
        self, *, final_episodes: int | None = None, final_seed: int = 0, export: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Train, play the final games, write the report and print its table.

        Args:
            final_episodes: final games of each network, a multiple of the evaluator's slots; None plays as many as an
                evaluation does.
            final_seed: of the final games, which are never those of an evaluation during the run.
            export: formats of :func:`~torchrl_rtpd.deploy.export_student` in which each student is written after the
                report, into ``deployed/``, from its kept weights. One that cannot be is a warning with the reason.

        Returns:
            The content of ``results.json``.

        Raises:
            ValueError: final games that the slots cannot share; formats that are unknown or that no student has.
            ImportError: the export extra is not installed.
        """
        games = self._final_games(final_episodes)
        export = check_export(export, self.monitor.networks, self.monitor.evaluator.env)
        with self.folder.claim(resume=self._resumed), self.protected.stopper.held():
            keep_freed_memory()
            try:
                self._train()
                results, states = self._results(games, _TEST_SEED + final_seed)
                self._report(results)
                self._export(export, results, states)
            finally:
                self.monitor.evaluator.close()
        self._leave_if_asked()
        return results

    def _leave_if_asked(self) -> None:
        """End the process as a shell reports one that a signal has ended, if there was one."""
        received = self.protected.stopper.received
        if received is not None:
            raise SystemExit(128 + received)

    def _final_games(self, episodes: int | None) -> int | None:
        """Final games of each slot, None if no games are to be played."""
        slots = self.monitor.evaluator.env.batch_size.numel()
        if not self._plays or episodes is None:
            return self.monitor.evaluator.quota if self._plays else None
        if episodes < 1 or episodes % slots:
            raise ValueError(
                f"final_episodes must be a multiple of the evaluator's {slots} slots: got {episodes}; use "
                f"{max(1, round(episodes / slots)) * slots}."
            )
        return episodes // slots

    def _train(self) -> None:
        stopper, saver = self.protected.stopper, self.protected.saver
        try:
            self.trainer.train()
        except Exception:
            print(saver.how_to_resume)
            raise
        finally:  # a run that fails leaves its metrics and weights as well
            self.trainer.shutdown()
            self.monitor.save_last()
        if stopper.received is not None:
            print(saver.how_to_resume)
        self._leave_if_asked()

    def _results(self, games: int | None, seed: int) -> tuple[dict[str, Any], TensorDictBase | None]:
        """Content of ``results.json``, and states of the final games."""
        clock, stopper = self.monitor.clock, self.protected.stopper
        number = len(self.monitor.networks)
        games_of = "" if games is None else f"plays the final games of {number} networks and "
        print(f"Trained. Now {games_of}measures how long they take for a decision.")
        try:
            final, states = final_results(
                self.monitor, games=games, seed=seed, should_stop=lambda: stopper.received is not None
            )
        except EvaluationStopped:
            print(f"The final games are missing. {self.protected.saver.how_to_resume}")
            self._leave_if_asked()
            raise
        networks = final.pop("networks")
        results = {
            **self.about,
            "steps": clock.steps,
            "updates": clock.updates,
            "spent_before": clock.spent_before,
            "seconds": round(time.perf_counter() - self._start + clock.seconds_before, 1),
            "training_seconds": round(clock.training_seconds, 2),
            "cpu_seconds": round(clock.cpu_seconds, 2),
            "steps_per_second": clock.steps_per_second,
            "evaluation_seconds": round(clock.evaluation_seconds, 1),
            **final,
            "networks": networks,
            "environment": {
                **run_environment(_device(next(iter(self.monitor.networks.values())))),
                "commit": self._commit,
            },
        }
        if self._search is not None:
            results["search"] = self._search.conclusion(results)
        return results, states

    def _report(self, results: dict[str, Any]) -> None:
        """Write results, table and figures; print the table."""
        folder = self.folder.path
        write_json(folder / "results.json", results)
        table = results_table(results)
        (folder / "table.md").write_text(table + "\n")
        plot_curves(
            read_metrics(folder / "metrics.csv"),
            [network["name"] for network in results["networks"]],
            folder / "curves.png",
            title=f"{self._name}: one run of {results['seconds']:.0f} s, {results['updates']} updates",
            random_score=results.get("random_score"),
        )
        if pareto_front(results["networks"]):
            plot_front({"game": self._name, **results}, folder / "front.png")
        answer = "" if self._search is None else f"\n\n{sentence(results['search'])}"
        print(f"\n{table}{answer}\n\nEverything lies in {folder}")

    def _export(self, formats: Sequence[str], results: dict[str, Any], states: TensorDictBase | None) -> None:
        """Write the students for devices, unless the run is asked to end."""
        if not formats:
            return
        if self.protected.stopper.received is not None:
            print(f"The students were not exported. {self.protected.saver.how_to_resume}")
            return
        reports = export_students(
            self.monitor.best,
            self.folder.path / "deployed",
            formats=formats,
            env=self.monitor.evaluator.env,
            states=states,
            results=results,
        )
        for report in reports.values():
            print(report)

    @property
    def _name(self) -> str:
        """Game and seed, for the figures."""
        named = str(self.about.get("game", self.folder.path.name))
        return f"{named}, seed {self.about['seed']}" if "seed" in self.about else named


def _folder(place: str | os.PathLike | RunFolder | None) -> RunFolder:
    if place is None:
        return RunFolder.fresh(f"outputs/{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    return place if isinstance(place, RunFolder) else RunFolder(place)


def _device(network: TensorDictModule) -> Any:
    return next((parameter.device for parameter in network.parameters()), "cpu")
