"""Whole checkpoints of a running trainer, on a schedule, and how to go on from one.

A step is one agent decision. A run's checkpoints lie in one folder, ``checkpoint-<steps>`` each; see
:mod:`torchrl_rtpd.files.verified` for what is in them.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torchrl.checkpoint import Checkpoint, CheckpointError, CheckpointRotation
from torchrl.trainers import OptimizationStepper, OptimizerHook, ReplayBufferTrainer, Trainer, TrainerHookBase
from torchrl.trainers.algorithms.on_policy import OnPolicyTrainer

from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.replay.storage import FrameStackStorage
from torchrl_rtpd.runs.components import CollectorState, LoggerState, LossState, RandomState, ReplayState
from torchrl_rtpd.runs.folder import RunFolder
from torchrl_rtpd.runs.monitor import Watching
from torchrl_rtpd.runs.ranges import check_ranges
from torchrl_rtpd.trainers._torchrl import (
    checkpoint_metadata,
    collect_rollout,
    hooks_of,
    save_after_this_batch,
    skip_counted_frames,
    synced_checkpoint,
)
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.optimizers import keep_device_options
from torchrl_rtpd.trainers.whole_update import stateless_parts

__all__ = ["SaveCheckpoints", "newest_checkpoint"]

_SCORE = "student_score"
_UNKNOWN = -sys.float_info.max  # score of a checkpoint between evaluations: TorchRL's rotation wants a finite number
_LEARNED = ("loss_module", "optimizer", "target_updater")
_LEARNERS = (RealTimeDistillTrainer, OptimizationStepper, OptimizerHook)  # hooks that hold what was learned


class SaveCheckpoints(TrainerHookBase):
    """Hook that saves all of a trainer's state on a schedule and restores it.

    A checkpoint holds the parts that TorchRL's :class:`~torchrl.trainers.Trainer` finds itself (losses with targets,
    optimiser, collector, exploration, counters, all registered hooks) and those that it leaves out: the random
    generators of Python, numpy and torch, priorities as numbers, the position of a TensorBoard log, and the environment
    where that can be saved. Schedule and rotation are TorchRL's own, so that a checkpoint is the state between two
    batches. The first is written before the first batch, another one at the end of training and when it is stopped.

    An evaluation that improves on the best score of the students is followed by a checkpoint at once, which is kept.

    Without ``replay`` a restored run has an empty buffer. Unless its trainer is on-policy it is filled from scratch by
    playing the restored policy up to the warm-up's size; those steps are not counted. Environments that cannot be
    saved, such as ALE's, begin new games, and a :class:`~torchrl_rtpd.replay.FrameStackStorage` is told so (``cut``).
    All else goes on as if nothing had happened.

    A run may go on with another number of environments, on another device or with other threads; a warning says so.
    Then its games begin from scratch, and so does a replay that was saved for other environments.

    Args:
        directory: folder of the checkpoints.
        every_steps: agent steps between two of them.
        keep_last: number of the newest ones that stay, beside the best one.
        replay: save the replay buffer as well if True; about 7 kB a transition of Atari.
        metadata: further entries of the manifest, such as the run's configuration; JSON.
        monitor: knows scores, so that the best checkpoint is kept, and holds the run's folder. Without one the
            ``directory`` itself is claimed for this run when training begins.
        resume_hint: text that tells how this run is resumed, such as a command; None names :meth:`restore`.

    Raises:
        ValueError: numbers out of range.
        CheckpointError: at ``restore``, a checkpoint that is damaged or of another run.
        RuntimeError: when training begins, a folder that another run holds, or that holds the results of another run
            while this one was not restored.

    Examples:
        >>> saver = SaveCheckpoints("outputs/run/checkpoints", every_steps=10_000)  # then saver.register(trainer)
        >>> saver.latest() is None
        True
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        every_steps: int,
        keep_last: int = 2,
        replay: bool = False,
        metadata: Mapping[str, Any] | None = None,
        monitor: Watching | None = None,
        resume_hint: str | None = None,
    ) -> None:
        check_ranges({"every_steps": every_steps, "keep_last": keep_last}, {"[1, inf)": "every_steps keep_last"})
        self.every_steps = every_steps
        self.replay = replay
        self.metadata = dict(metadata or {})
        self.monitor = monitor
        self.resume_hint = resume_hint
        self.folder = RunFolder(directory) if monitor is None else monitor.folder
        self.rotation = _Rotation(directory, keep_last=keep_last, keep_best=(_SCORE, "max"))
        self.rotation.before_writing = self._claim
        self._trainer: Any = None
        self._best: float | None = None
        self._restored = False

    @property
    def seconds(self) -> float:
        """Time spent saving so far."""
        return self.rotation.seconds

    def register(self, trainer: Trainer, name: str = "save_checkpoints") -> None:
        """Attach to a trainer, after the hooks that are to be saved and after its monitor."""
        if trainer.checkpoint is not None or trainer.checkpoint_rotation is not None:
            raise RuntimeError(
                "a trainer has one way of saving: this one was built with checkpoint or checkpoint_rotation already; "
                "leave them out, or do without SaveCheckpoints."
            )
        self._trainer = trainer
        checkpoint = VerifiedCheckpoint(random=RandomState(), collector=CollectorState(trainer.collector))
        if trainer.optimizer is not None:
            keep_device_options(trainer.optimizer)
        if trainer.loss_module is not None:
            checkpoint.register("loss_module", LossState(trainer.loss_module))
        buffer = getattr(trainer, "replay_buffer", None)
        if buffer is not None:
            checkpoint.register("replay_buffer", ReplayState(buffer))
        if trainer.logger is not None:
            checkpoint.register("logger", LoggerState(trainer, trainer.logger))
        self.rotation.left_out = {"policy"} if self.replay else {"policy", "replay_buffer"}  # policy: the loss's own
        trainer.checkpoint = checkpoint
        trainer.checkpoint_rotation = self.rotation
        trainer.checkpoint_metadata = self._metadata
        trainer.save_trainer_interval = self.every_steps - 1  # TorchRL saves beyond the interval, not at it
        trainer.register_op("setup", self._first)
        trainer.register_op("post_steps", self._after_evaluation)
        trainer.register_module(name, self)

    def _metadata(self, trainer: Any) -> dict[str, Any]:
        monitor = self.monitor
        evaluated = monitor is not None and monitor.evaluated_steps == trainer.collected_frames
        score = monitor.student_score if monitor is not None and evaluated else None
        stored = len(trainer.replay_buffer) if getattr(trainer, "replay_buffer", None) is not None else 0
        score = _UNKNOWN if score is None else score
        return {**self.metadata, _SCORE: score, "stored": stored, "place": _place(trainer)}

    def _claim(self) -> None:
        self.folder.claim(resume=self._restored)

    def _first(self) -> None:
        self._claim()
        if self._restored:
            return
        found = self.rotation.checkpoints()
        if found:
            raise RuntimeError(
                f"{self.rotation.directory} holds another run, up to {found[-1].name}: resume it, choose another "
                "folder or delete this one."
            )
        self._trainer.save_trainer(force_save=True)

    def _after_evaluation(self) -> None:
        """Let the trainer save at the end of this batch, if the students were never better."""
        monitor, trainer = self.monitor, self._trainer
        if monitor is None or monitor.evaluated_steps != trainer.collected_frames or monitor.student_score is None:
            return
        if self._best is None or monitor.student_score > self._best:
            self._best = monitor.student_score
            save_after_this_batch(trainer)

    def latest(self) -> Path | None:
        """Return the newest checkpoint that is whole, None without one."""
        return next((path for path in reversed(self.rotation.checkpoints()) if _is_whole(path)), None)

    @property
    def how_to_resume(self) -> str:
        """Sentence that names the newest checkpoint and tells how to go on from it."""
        latest = self.latest()
        if latest is None:
            return f"There is no checkpoint in {self.rotation.directory} to go on from."
        steps = int(latest.name.rpartition("-")[2])
        by_hand = f"build the trainer by the same lines and call saver.restore({str(latest)!r}) right before train()"
        return f"To go on from step {steps:,}: {self.resume_hint or by_hand}"

    def save(self, directory: str | os.PathLike | None = None) -> Path:
        """Save now, in addition to the schedule.

        Args:
            directory: another folder to write, which the rotation leaves alone. None is the next of the rotation.

        Returns:
            The checkpoint.
        """
        trainer = self._trainer
        self._claim()
        checkpoint, metadata = synced_checkpoint(trainer), checkpoint_metadata(trainer)
        if directory is None:
            return self.rotation.save(checkpoint, step=trainer.collected_frames, metadata=metadata)
        components = checkpoint.components.keys() - self.rotation.left_out
        return checkpoint.save(directory, components=components, metadata=metadata)

    def restore(self, path: str | os.PathLike) -> None:
        """Go on from a checkpoint; call it when everything is registered, right before ``train``.

        Args:
            path: a checkpoint of a run with the same parts.

        Raises:
            CheckpointError: one that is damaged, or whose parts are not those of this run.
        """
        trainer, checkpoint = self._trainer, synced_checkpoint(self._trainer)
        manifest = checkpoint.verify(path)
        saved, own = set(manifest["components"]), checkpoint.components.keys() - {"policy"}
        optional = {"replay_buffer", "logger", *stateless_parts(trainer)}
        if saved - own - optional or own - saved - optional:
            raise CheckpointError(
                f"a run is resumed with the parts it was saved with: {path} has {sorted(saved - own - optional)} "
                f"in addition and lacks {sorted(own - saved - optional)}; build it with the same networks and hooks."
            )
        self._warn_of_another_place(manifest["metadata"].get("place", {}))
        checkpoint.load(path, components=saved & own, verified=True, map_location="cpu")
        skip_counted_frames(trainer)
        trainer.collector.update_policy_weights_()
        self._continue_stream(manifest, "replay_buffer" in saved and checkpoint.components["replay_buffer"].restored)
        self._restored = True

    def _warn_of_another_place(self, saved: Mapping[str, Any]) -> None:
        """Say where a run goes on, if that is not where it was."""
        own = _place(self._trainer)
        changes = [
            f"{own[key]} instead of {saved[key]} ({key})" for key in own if key in saved and own[key] != saved[key]
        ]
        if changes:
            games = "; its games begin from scratch" if own["environments"] != saved["environments"] else ""
            warnings.warn(f"the run goes on with {', '.join(changes)}{games}.", stacklevel=3)

    def restore_learning(self, path: str | os.PathLike) -> None:
        """Put networks, targets and optimisers back to a checkpoint; time, data and random numbers go on.

        Priorities in the replay that are not finite become the largest one.

        Args:
            path: a checkpoint of this run.
        """
        trainer = self._trainer
        checkpoint = synced_checkpoint(trainer)
        learners = {f"trainer_module.{name}" for name, hook in hooks_of(trainer).items() if isinstance(hook, _LEARNERS)}
        learned = {*_LEARNED, *learners} & checkpoint.components.keys()
        checkpoint.load(path, components=learned, map_location="cpu")
        if "replay_buffer" in checkpoint.components:
            checkpoint.components["replay_buffer"].mend_priorities()
        trainer.collector.update_policy_weights_()

    def _continue_stream(self, manifest: Mapping[str, Any], has_replay: bool) -> None:
        """Join the restored replay to the coming batches, or fill it from scratch."""
        trainer = self._trainer
        buffer = getattr(trainer, "replay_buffer", None)
        continued = has_replay and trainer.checkpoint.components["collector"].continued
        if buffer is None or continued or (isinstance(trainer, OnPolicyTrainer) and not has_replay):
            return
        if has_replay:
            if isinstance(buffer.storage, FrameStackStorage):
                buffer.storage.cut()
            return
        if not hasattr(trainer.collector, "rollout"):
            raise CheckpointError(
                f"the checkpoint has no replay, and a {type(trainer.collector).__name__} cannot fill it from scratch; "
                "resume one that was saved with replay=True."
            )
        wanted = min(int(manifest["metadata"]["stored"]), max(trainer.collector.init_random_frames or 0, 1))
        storer = ReplayBufferTrainer(buffer, flatten_tensordicts=True)
        while len(buffer) < wanted:
            storer.extend(collect_rollout(trainer.collector))

    def state_dict(self) -> dict[str, Any]:
        """Return the students' best score and the time spent saving."""
        return {"best": self._best, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._best = state_dict["best"]
        self.rotation.seconds = state_dict["seconds"]


class _Rotation(CheckpointRotation):
    """TorchRL's rotation for one run.

    It saves all components but those that are left out, and drops checkpoints of later steps, which a run that was
    resumed from an earlier one has left behind. Where the disk takes no checkpoint it goes on with a warning, since the
    last one is still whole.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.left_out: set[str] = set()
        self.seconds = 0.0  # spent saving
        self.before_writing: Callable[[], Any] = lambda: None
        self._tidy = False

    def save(self, checkpoint: Checkpoint, *, step: int, **kwargs: Any) -> Path:
        """Save in place of all newer ones; a disk that fails is a warning, and the newest whole one is kept."""
        self.before_writing()
        if not self._tidy:
            self._remove_leftovers()
        start = time.perf_counter()
        destination = self._checkpoint_path(step, "directory")
        kwargs["components"] = checkpoint.components.keys() - self.left_out
        try:
            for record in self._all_records():  # first, lest they count as the newest
                if record.step > step:
                    self._remove_atomically(record.path)
            super().save(checkpoint, step=step, **kwargs)
        except OSError as error:
            latest = self.latest()
            warnings.warn(
                f"the checkpoint of step {step} could not be written: {error}; training goes on, and "
                f"{'there is none yet' if latest is None else f'{latest} is still whole'}; free some space.",
                stacklevel=2,
            )
        finally:
            self.seconds += time.perf_counter() - start
        return destination

    def _remove_leftovers(self) -> None:
        """Delete folders that a killed process left half written; one it was about to replace gets its name back."""
        self._tidy = True
        for path in self.directory.glob(f".{self.prefix}-*") if self.directory.is_dir() else ():
            name, old, _ = path.name[1:].partition(".old-")
            if old and not (self.directory / name).exists():
                os.replace(path, self.directory / name)
            else:
                shutil.rmtree(path, ignore_errors=True)


def newest_checkpoint(path: str | os.PathLike) -> Path:
    """Return the checkpoint to resume from. Nothing is changed on the disk.

    Args:
        path: a checkpoint; or a run's folder or its folder of checkpoints, of which the newest whole one is taken.

    Returns:
        A checkpoint whose files are as they were written.

    Raises:
        CheckpointError: none there, or the named one is damaged. Damaged ones in a run's folder are passed over with a
            warning.

    Examples:
        >>> newest_checkpoint("no/such/run")
        Traceback (most recent call last):
        torchrl.checkpoint._checkpoint.CheckpointError: no checkpoint in no/such/run: ...
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint in {folder}: there is no such folder; give that of a run.")
    if (folder / "sealed.json").exists() or (folder / "manifest.json").exists():
        VerifiedCheckpoint.verify(folder)
        return folder
    found = _found(folder) + _found(folder / "checkpoints")
    for child in reversed(found):
        try:
            VerifiedCheckpoint.verify(child)
            return child
        except CheckpointError as error:
            warnings.warn(f"passed over: {error}", stacklevel=2)
    raise CheckpointError(
        f"no checkpoint in {folder}: a run goes on from a folder checkpoint-<steps>, or from that of a run that has "
        f"some; {len(found)} damaged ones were found there."
    )


def _found(place: Path) -> list[Path]:
    """Checkpoints in a folder, the newest last; where a process was killed replacing one, the old one."""
    old = {path.name[1:].partition(".old-")[0]: path for path in place.glob(".checkpoint-*.old-*")}
    named = old | {path.name: path for path in place.glob("checkpoint-*")}
    return [named[name] for name in sorted(named)]


def _place(trainer: Any) -> dict[str, Any]:
    """Return the conditions that may differ when a run is resumed."""
    env, parameter = getattr(trainer.collector, "env", None), next(trainer.loss_module.parameters(), None)
    return {
        "environments": None if env is None else env.batch_size.numel(),
        "device": None if parameter is None else parameter.device.type,
        "threads": torch.get_num_threads(),
    }


def _is_whole(path: Path) -> bool:
    try:
        return bool(VerifiedCheckpoint.verify(path))
    except CheckpointError:
        return False
