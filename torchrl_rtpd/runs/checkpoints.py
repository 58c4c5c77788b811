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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrl.checkpoint import Checkpoint, CheckpointError, CheckpointRotation, GlobalRNGState
from torchrl.trainers import ReplayBufferTrainer, Trainer, TrainerHookBase

from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.replay.storage import FrameStackStorage
from torchrl_rtpd.runs.components import CollectorState, LoggerState, ReplayState

__all__ = ["SaveCheckpoints", "newest_checkpoint"]

_SCORE = "student_score"
_UNKNOWN = -sys.float_info.max  # of a checkpoint between evaluations: TorchRL's rotation wants a finite number
_LEARNED = ("loss_module", "optimizer", "target_updater", "trainer_module.real_time_distill")


class SaveCheckpoints(TrainerHookBase):
    """Hook that saves all of a trainer's state on a schedule and restores it.

    Saved are what TorchRL's :class:`~torchrl.trainers.Trainer` finds itself (losses with targets, optimiser, collector,
    exploration, counters, all registered hooks) and what it leaves out: the random generators of Python, numpy and
    torch, priorities as numbers, the position of a TensorBoard log, and the environment where that can be saved. It is
    TorchRL's own schedule and rotation, so that a checkpoint is the state between two batches. The first is written
    before the first batch, another one at the end of training and when it is stopped.

    An evaluation that improves on the best score of the students is followed by a checkpoint at once, which is kept.

    Without ``replay`` a restored run has an empty buffer, which is filled anew by playing the restored policy up to the
    warm-up's size; those steps are not counted. Environments that cannot be saved, such as ALE's, begin new games, and
    a :class:`~torchrl_rtpd.replay.FrameStackStorage` is told so (``cut``). All else goes on as if nothing had happened.

    Args:
        directory: where the checkpoints lie.
        every_steps: agent steps between two of them.
        keep_last: how many of the newest stay, besides the best one.
        replay: whether the replay buffer is saved, too; about 7 kB a transition of Atari.
        metadata: what else the manifest is to hold, such as the run's configuration; JSON.
        monitor: tells scores, so that the best checkpoint is kept; anything with ``student_score`` and
            ``evaluated_steps``.

    Raises:
        ValueError: numbers out of range.
        CheckpointError: at ``restore``, a checkpoint that is damaged or of another run.

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
        monitor: Any = None,
    ) -> None:
        if every_steps < 1 or keep_last < 1:
            raise ValueError(
                "checkpoints come every so many agent steps, and one at least is kept: got "
                f"every_steps={every_steps}, keep_last={keep_last}; use 1 or more."
            )
        self.every_steps = every_steps
        self.replay = replay
        self.metadata = dict(metadata or {})
        self.monitor = monitor
        self.rotation = _Rotation(directory, keep_last=keep_last, keep_best=(_SCORE, "max"))
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
        self.rotation.remove_leftovers()
        checkpoint = VerifiedCheckpoint(random=GlobalRNGState(), collector=CollectorState(trainer.collector))
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
        evaluated = self.monitor is not None and self.monitor.evaluated_steps == trainer.collected_frames
        score = self.monitor.student_score if evaluated else None
        stored = len(trainer.replay_buffer) if getattr(trainer, "replay_buffer", None) is not None else 0
        return {**self.metadata, _SCORE: _UNKNOWN if score is None else score, "stored": stored}

    def _first(self) -> None:
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
            trainer._last_save = trainer.collected_frames - self.every_steps

    def latest(self) -> Path | None:
        """The newest checkpoint that is whole, if any."""
        return next((path for path in reversed(self.rotation.checkpoints()) if _is_whole(path)), None)

    @property
    def how_to_resume(self) -> str:
        """What to type to go on, for scripts with a ``resume`` key."""
        latest = self.latest()
        if latest is None:
            return f"There is no checkpoint in {self.rotation.directory} to go on from."
        steps = int(latest.name.rpartition("-")[2])
        return f"Go on from step {steps:,} with: python {sys.argv[0]} resume={self.rotation.directory.parent}"

    def save(self, directory: str | os.PathLike | None = None) -> Path:
        """Save now, beside the schedule.

        Args:
            directory: another folder to write, which the rotation leaves alone. None is the next of the rotation.

        Returns:
            The checkpoint.
        """
        trainer = self._trainer
        checkpoint = trainer._sync_checkpoint_components()
        metadata = trainer._checkpoint_manifest_metadata()
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
        checkpoint = self._trainer._sync_checkpoint_components()
        manifest = checkpoint.verify(path)
        saved, own = set(manifest["components"]), checkpoint.components.keys() - {"policy"}
        optional = {"replay_buffer", "logger"}
        if saved - own - optional or own - saved - optional:
            raise CheckpointError(
                f"a run is resumed with the parts it was saved with: {path} has {sorted(saved - own - optional)} "
                f"besides and lacks {sorted(own - saved - optional)}; build it with the same networks and hooks."
            )
        checkpoint.load(path, components=saved & own, verified=True, map_location="cpu")
        if hasattr(self._trainer, "_greedy_last_frames"):  # DQNTrainer's; 0 would lower epsilon a second time
            self._trainer._greedy_last_frames = self._trainer.collected_frames
        self._trainer.collector.update_policy_weights_()
        self._continue_stream(manifest, "replay_buffer" in saved)
        self._restored = True

    def restore_learning(self, path: str | os.PathLike) -> None:
        """Put networks, targets and optimisers back to a checkpoint; time, data and random numbers go on.

        Args:
            path: a checkpoint of this run.
        """
        checkpoint = self._trainer._sync_checkpoint_components()
        checkpoint.load(path, components=set(_LEARNED) & checkpoint.components.keys(), map_location="cpu")
        self._trainer.collector.update_policy_weights_()

    def _continue_stream(self, manifest: Mapping[str, Any], has_replay: bool) -> None:
        """Join the restored replay to what will be collected, or fill it anew."""
        trainer = self._trainer
        buffer = getattr(trainer, "replay_buffer", None)
        if buffer is None or (trainer.checkpoint.components["collector"].continued and has_replay):
            return
        if has_replay:
            if isinstance(buffer.storage, FrameStackStorage):
                buffer.storage.cut()
            return
        if not hasattr(trainer.collector, "rollout"):
            raise CheckpointError(
                f"the checkpoint has no replay, and a {type(trainer.collector).__name__} cannot fill it anew; resume "
                "one that was saved with replay=True."
            )
        wanted = min(int(manifest["metadata"]["stored"]), max(trainer.collector.init_random_frames or 0, 1))
        storer = ReplayBufferTrainer(buffer, flatten_tensordicts=True)
        while len(buffer) < wanted:
            storer.extend(trainer.collector._postproc(trainer.collector.rollout()).clone())

    def state_dict(self) -> dict[str, Any]:
        """The students' best score and the time spent saving."""
        return {"best": self._best, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._best = state_dict["best"]
        self.rotation.seconds = state_dict["seconds"]


class _Rotation(CheckpointRotation):
    """TorchRL's rotation for one run.

    It saves all but what is left out; drops checkpoints of later steps, which a run that was resumed from an earlier
    one has left behind; and goes on with a warning where the disk takes no checkpoint, since the last one is still
    whole.
    """

    left_out: set[str] = frozenset()  # type: ignore[assignment]
    seconds = 0.0

    def save(self, checkpoint: Checkpoint, *, step: int, **kwargs: Any) -> Path:
        """Save in place of whatever is newer; a disk that fails is a warning, and the newest that is whole is kept."""
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

    def remove_leftovers(self) -> None:
        """Delete what a killed process left half written; what it was about to replace gets its name back."""
        for path in self.directory.glob(f".{self.prefix}-*") if self.directory.is_dir() else ():
            name, old, _ = path.name[1:].partition(".old-")
            if old and not (self.directory / name).exists():
                os.replace(path, self.directory / name)
            else:
                shutil.rmtree(path, ignore_errors=True)


def newest_checkpoint(path: str | os.PathLike) -> Path:
    """The checkpoint to resume from.

    Args:
        path: a checkpoint; or a run's folder or its folder of checkpoints, of which the newest whole one is taken.

    Returns:
        A checkpoint whose files are as they were written.

    Raises:
        CheckpointError: none there, or the one named is damaged. Damaged ones in a run's folder are passed over with a
            warning.

    Examples:
        >>> newest_checkpoint("no/such/run")
        Traceback (most recent call last):
        torchrl.checkpoint._checkpoint.CheckpointError: no checkpoint in no/such/run: ...
    """
    folder = Path(path)
    if (folder / "sealed.json").exists() or (folder / "manifest.json").exists():
        VerifiedCheckpoint.verify(folder)
        return folder
    places = [folder, folder / "checkpoints"]
    found = sorted(child for place in places if place.is_dir() for child in place.glob("checkpoint-*"))
    for child in reversed(found):
        try:
            VerifiedCheckpoint.verify(child)
            return child
        except CheckpointError as error:
            warnings.warn(f"passed over: {error}", stacklevel=2)
    raise CheckpointError(
        f"no checkpoint in {path}: resume=PATH takes a checkpoint-<steps> folder or the folder of a run that has "
        f"some; {len(found)} damaged ones were found there."
    )


def _is_whole(path: Path) -> bool:
    try:
        VerifiedCheckpoint.verify(path)
    except CheckpointError:
        return False
    return True
