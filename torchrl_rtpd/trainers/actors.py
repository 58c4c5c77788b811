"""Names for the Ray actors of a training, so that an error says which one died."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torchrl.trainers import Trainer

from torchrl_rtpd.trainers._torchrl import replay_actor, started_learners

__all__ = ["dead_actors_named"]

_ENDED_BY_OTHERS = "ray.kill"  # in Ray's account of an actor that TorchRL ended because another one had died
_SECONDS = 10.0  # for an actor to say that it lives


@contextmanager
def dead_actors_named(trainer: Trainer) -> Iterator[None]:
    """Name the Ray actor whose death ends the training inside.

    TorchRL ends a training when one of its collectors, learners or its replay dies, and does not start it again. Its
    error is that of the first actor that it happened to wait for, which need not be the dead one: a learner whose
    neighbour died reports a closed connection. What was saved stays, and a new process goes on from it.

    Args:
        trainer: one that collects or learns on Ray; any other is left alone.

    Raises:
        RuntimeError: an actor died; with its number and Ray's account, from TorchRL's own error.

    Examples:
        >>> def train(trainer):
        ...     with dead_actors_named(trainer):
        ...         trainer.train()
    """
    actors = _actors(trainer)
    try:
        yield
    except Exception as error:
        for name, actor in actors.items():
            account = _account_of_death(actor)
            if account is not None and _ENDED_BY_OTHERS not in account:
                raise RuntimeError(
                    f"the actors of a training must live as long as it: {name} died; what was saved is kept, so go on "
                    f"from the newest checkpoint. Ray says: {account}"
                ) from error
        raise


def _actors(trainer: Trainer) -> dict[str, Any]:
    """Handles of the collectors, learners and replay, by what they are called in an error."""
    found = {}
    for kind, handles in (
        ("collector", getattr(trainer.collector, "remote_collectors", ())),
        ("learner", started_learners(trainer)),
    ):
        found.update({f"{kind} {number} of {len(handles)}": handle for number, handle in enumerate(handles)})
    replay = replay_actor(trainer)
    return found if replay is None else {**found, "the replay": replay}


def _account_of_death(actor: Any) -> str | None:
    """Ray's account of how an actor ended; None of one that lives, or that only does not answer."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    if not ray.is_initialized():
        return None
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=_SECONDS)
    except RayActorError as error:
        return str(error)
    except GetTimeoutError:
        return None
    return None
