"""Networks of a run: their names, and that they are the ones that the trainer and its hook train."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping

from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.trainers import Trainer

from torchrl_rtpd.trainers._torchrl import hooks_of
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer

__all__ = ["check_networks", "distiller_of"]


def distiller_of(trainer: Trainer) -> RealTimeDistillTrainer | None:
    """Return the hook of the students, if there are any: registered with the trainer, or inside its stepper."""
    inside = getattr(getattr(trainer, "optimization_stepper", None), "hook", None)
    hooks = [*hooks_of(trainer).values(), inside]
    return next((hook for hook in hooks if isinstance(hook, RealTimeDistillTrainer)), None)


def check_networks(
    networks: Mapping[str, TensorDictModule], teacher_loss: nn.Module, distiller: RealTimeDistillTrainer | None
) -> None:
    """Refuse networks whose names or order are not those of the trainer's loss and the hook's students.

    Args:
        networks: by name, the teacher first.
        teacher_loss: the trainer's.
        distiller: the hook of the students, if there is one.

    Raises:
        ValueError: the first network that is at the wrong place or has a name it must not have.

    Warns:
        UserWarning: students of the hook that are not among the networks, and so are neither scored nor saved.
    """
    _check_names(networks)
    if distiller is None:
        return
    learned = {name: _identities(loss.parameters()) for name, loss in distiller.students.items()}
    found: dict[str, str] = {}
    for name, network in networks.items():
        own = _identities(network.parameters())
        found |= {student: name for student, parameters in learned.items() if own & parameters}
    first, trained = next(iter(networks)), _identities(teacher_loss.parameters())
    if first in found.values() and not trained & _identities(networks[first].parameters()):
        raise ValueError(
            f"the first network is the teacher: got {first!r}, a student of the hook; put the network that the "
            "trainer's loss trains first."
        )
    for student, name in found.items():
        if student != name:
            raise ValueError(
                f"a student has one name in the hook and among the networks: got {student!r} and {name!r}; use the "
                "hook's, under which its metrics are logged."
            )
    missing = sorted(learned.keys() - found.keys())
    if missing:
        warnings.warn(
            f"the hook trains {', '.join(missing)}, not among the networks of the run {list(networks)}: without scores "
            "and weights; add them.",
            stacklevel=4,
        )


def _identities(parameters: Iterable[nn.Parameter]) -> set[int]:
    """Where parameters lie, by which a network is recognised in a loss."""
    return {parameter.data_ptr() for parameter in parameters if parameter.numel() and not parameter.is_meta}


def _check_names(networks: Mapping[str, TensorDictModule]) -> None:
    """Refuse names that cannot stand in file names and columns, and a network that has two."""
    if not networks:
        raise ValueError("a run trains at least one network: got none; name the teacher, and its students after it.")
    names: dict[int, str] = {}
    for name, network in networks.items():
        if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name):
            raise ValueError(
                f"a network's name is part of file names and columns, so it has letters, digits, '_', '-', '+' and "
                f"'.': got {name!r}."
            )
        if id(network) in names:
            raise ValueError(
                f"a network has one name: got {names[id(network)]!r} and {name!r} for one network; a student of its "
                "teacher's size is a network of its own."
            )
        names[id(network)] = name
