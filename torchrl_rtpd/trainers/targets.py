"""Target networks: how often they follow, exactly."""

from __future__ import annotations

from typing import Any

from torchrl.objectives import HardUpdate, LossModule, SoftUpdate
from torchrl.objectives.utils import TargetNetUpdater

from torchrl_rtpd.functional.checks import check_integers

__all__ = ["hard_update_every", "step_target", "updater_like"]


def hard_update_every(loss_module: LossModule, updates: int) -> HardUpdate:
    """Return a target updater that copies the network after every ``updates`` steps, exactly.

    TorchRL's ``HardUpdate(loss, value_network_update_interval=N)`` copies after ``N + 1`` steps, then after ``N + 1``
    more. This one is the same class with an interval of one less, so whatever mirrors it is exact as well.

    Args:
        loss_module: a loss with target parameters.
        updates: steps of the updater between two copies, at least 1.

    Raises:
        ValueError: a number below 1.

    Examples:
        >>> from torch import nn
        >>> from torchrl_rtpd.objectives import StudentDQNLoss
        >>> loss = StudentDQNLoss(nn.Linear(4, 2))
        >>> updater = hard_update_every(loss, updates=3)
        >>> parameter = next(iter(loss.parameters()))
        >>> target = next(iter(loss.target_student_network_params.values(True, True)))
        >>> copied = []
        >>> for step in range(1, 8):
        ...     _ = parameter.data.fill_(step)
        ...     updater.step()
        ...     copied.append(int(target.flatten()[0]) == step)
        >>> [step for step, done in enumerate(copied, 1) if done]
        [3, 6]
    """
    check_integers(1, "1 copies at every step", updates=updates)
    return HardUpdate(loss_module, value_network_update_interval=updates - 1)


def updater_like(updater: TargetNetUpdater | None, loss_module: LossModule) -> TargetNetUpdater:
    """Return a target updater for a student, of the kind and interval of the teacher's.

    A ``HardUpdate(N)`` is mirrored as it is: teacher and student both copy after every ``N + 1`` updates.

    Raises:
        RuntimeError: an updater that is neither a HardUpdate nor a SoftUpdate.
    """
    if isinstance(updater, HardUpdate):
        return HardUpdate(loss_module, value_network_update_interval=updater.value_network_update_interval)
    if isinstance(updater, SoftUpdate):
        return SoftUpdate(loss_module, eps=updater.eps)
    raise RuntimeError(
        "students with target parameters need a target updater, and the trainer has no HardUpdate or SoftUpdate to "
        f"copy: got {type(updater).__name__}; pass "
        "target_updater=partial(hard_update_every, updates=1000)."
    )


def step_target(updater: Any) -> None:
    """Step a target updater; of a hard one that is not due only the count: it would look at every parameter first."""
    if type(updater) is HardUpdate and updater.counter < updater.value_network_update_interval:
        updater.counter += 1
    else:
        updater.step()
