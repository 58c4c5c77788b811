"""Learning on: a student that was distilled becomes the one that learns by reinforcement."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from tensordict import TensorDictParams
from torch import Tensor, nn
from torchrl.objectives import LossModule
from torchrl.trainers import Trainer

from torchrl_rtpd.functional.checks import check_integers
from torchrl_rtpd.networks.running import bare_network
from torchrl_rtpd.objectives.base import PolicyDistillationLoss
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.trainers._torchrl import is_over, runs_elsewhere, send_weights
from torchrl_rtpd.trainers.critic_warmup import CriticWarmup
from torchrl_rtpd.trainers.policies import acts_by_values, policy_of
from torchrl_rtpd.trainers.student import Student

__all__ = ["learn_on"]

_STATE_OPTIONS = ("amsgrad", "centered", "momentum")  # on which depends what an optimiser remembers
Pairs = list[tuple[nn.Parameter, nn.Parameter]]


def learn_on(
    student: Student | PolicyDistillationLoss,
    trainer: Trainer,
    *,
    optimizer: Literal["kept", "fresh"] = "kept",
    critic_warmup_updates: int = 0,
) -> None:
    """Let a trainer go on from a distilled student: by its weights, its optimiser's moments and a warm critic.

    To be called once distillation is over and before ``trainer.train()``. The trainer's loss (DQN, PQN, PPO, SAC, TD3)
    is built on the student's network itself, or on one of the same layout, into which the weights are copied. Target
    networks start from the networks they follow, and the collector is sent the weights. Other parameters, such as those
    of a critic, are left alone. A run that is restored from a checkpoint calls this again before it loads.

    Args:
        student: ``hook.learners[name]`` of a :class:`.RealTimeDistillTrainer`, or the student's loss, which knows no
            optimiser. Not changed, except that a network that both share goes on.
        trainer: learns by reinforcement, in this process. Changed.

    Keyword Args:
        optimizer: ``"kept"`` gives the moments of the student's optimiser to the trainer's, which must be of the same
            kind; rates and other options stay the trainer's. ``"fresh"`` lets the trainer's begin without any, as
            suits a loss whose gradients are of another size.
        critic_warmup_updates: minibatches from which only the critic learns, by a :class:`.CriticWarmup`, for losses
            with an actor. Default: 0, none.

    Warning: a student learns on as what it is. One that was distilled by a KL alone has no action values for DQN, and
    one that was distilled at a temperature other than 1 acts differently as a PPO or SAC actor, which has none. Both
    are reported, and so is a student that has not learned at all, such as that of a hook whose trainer never ran or
    ran in other processes.

    Raises:
        TypeError: a student that is neither of the two, or a trainer's loss without an acting network.
        ValueError: another word for ``optimizer``, no number of updates, networks of different layout, or optimisers
            that do not fit.
        RuntimeError: a trainer that learns in other processes, one that has ended, or one without an optimiser to give
            moments to.

    Examples:
        >>> from types import SimpleNamespace
        >>> from torchrl.data import Categorical
        >>> from torchrl.modules import QValueActor
        >>> from torchrl.objectives import DQNLoss
        >>> from torchrl_rtpd import StudentDQNLoss
        >>> actor = lambda: QValueActor(nn.Linear(4, 3), in_keys=["observation"], spec=Categorical(3))
        >>> distilled, learner = StudentDQNLoss(actor()), DQNLoss(actor())
        >>> trainer = SimpleNamespace(loss_module=learner, optimizer=None)  # in place of a DQNTrainer
        >>> learn_on(distilled, trainer, optimizer="fresh")
        >>> weights = learner.value_network.state_dict(), distilled.student_network.state_dict()
        >>> all(torch.equal(*pair) for pair in zip(*(state.values() for state in weights)))
        True
    """
    loss = student.loss if isinstance(student, Student) else student
    if not isinstance(loss, PolicyDistillationLoss):
        raise TypeError(
            f"a student is a hook's learner or a distillation loss: got {type(student).__name__}; pass "
            "hook.learners[name]."
        )
    if optimizer not in ("kept", "fresh"):
        raise ValueError(f"optimizer must be 'kept' or 'fresh': got {optimizer!r}; 'fresh' forgets all moments.")
    check_integers(0, "0 is none", critic_warmup_updates=critic_warmup_updates)
    if runs_elsewhere(trainer):
        raise RuntimeError(
            "learning on changes the networks of this process, but learner_backend='ray' has others; save the "
            "student's weights and build the trainer's loss on them."
        )
    if is_over(trainer):
        raise RuntimeError(
            "learning on needs a trainer that is still to train: got one whose collector is closed or has all its "
            "frames, as after train(); build the trainer again, or with more total_frames."
        )
    rl_loss: Any = trainer.loss_module
    pairs, buffers = _matched(loss, rl_loss)
    if optimizer == "kept":
        _check_optimizers(student, trainer, pairs)
    if critic_warmup_updates != 0:
        CriticWarmup(critic_warmup_updates).register(trainer)
    # Nothing is refused from here on.
    if isinstance(student, Student) and not student.has_learned:
        warnings.warn(
            f"student {student.name!r} has learned nothing in this process: its weights are those it was built with, "
            "and its optimiser has no moments. Train its hook first, or load the hook's state; ignore this where the "
            "trainer's own checkpoint is loaded next.",
            stacklevel=2,
        )
    _warn_of_scale(loss, rl_loss)
    if optimizer == "kept" and isinstance(student, Student):
        _keep_moments(student.optimizer, trainer.optimizer, pairs)
    elif trainer.optimizer is not None:
        for _, learner in pairs:
            trainer.optimizer.state.pop(learner, None)
    with torch.no_grad():
        for value, place in [*pairs, *buffers]:
            if place is not value:
                place.copy_(value)
    _start_targets(rl_loss)
    send_weights(trainer)


def _matched(loss: PolicyDistillationLoss, rl_loss: LossModule) -> tuple[Pairs, list[tuple[Tensor, Tensor]]]:
    """Parameters and buffers of the student, each with the one of the trainer's network that goes on from it."""
    network = policy_of(rl_loss)
    own = list(loss.student_network.parameters())
    shared = {id(parameter) for parameter in own} & {id(parameter) for parameter in network.parameters()}
    if len(shared) == len(own):
        return [(parameter, parameter) for parameter in own], []
    if shared:
        raise ValueError(
            "the trainer's network must share all of the student's parameters, or none: got "
            f"{len(shared)} of {len(own)} shared; build the trainer's loss on the student's network itself."
        )
    student, learner = bare_network(loss.student_network), bare_network(network)
    parameters = _by_name(student.named_parameters(), learner.named_parameters())
    return parameters, _by_name(student.named_buffers(), learner.named_buffers())


def _by_name(student: Iterable[tuple[str, Any]], learner: Iterable[tuple[str, Any]]) -> list[tuple[Any, Any]]:
    sources, targets = dict(student), dict(learner)
    shapes = [{name: list(value.shape) for name, value in found.items()} for found in (sources, targets)]
    if shapes[0] != shapes[1]:
        layouts = [{f"{name} {shape}" for name, shape in found.items()} for found in shapes]
        more, other = (
            ", ".join(sorted(one)) or "no more" for one in (layouts[0] - layouts[1], layouts[1] - layouts[0])
        )
        raise ValueError(
            f"the trainer's network must have the layout of the student's: the student's has {more}, and the trainer's "
            f"has {other}; build the trainer's loss on the student's network itself, or on a network made the same way."
        )
    return [(source, targets[name]) for name, source in sources.items()]


def _check_optimizers(student: Student | PolicyDistillationLoss, trainer: Trainer, pairs: Pairs) -> None:
    """Refuse optimisers of which one cannot go on from the other."""
    if not isinstance(student, Student):
        raise ValueError(
            f"optimizer='kept' needs the student's optimiser: got {type(student).__name__}, a loss, which has none; "
            "pass hook.learners[name], or optimizer='fresh'."
        )
    if trainer.optimizer is None:
        raise RuntimeError(
            "optimizer='kept' needs an optimiser of the trainer: got optimizer=None; pass one to the trainer, or "
            "optimizer='fresh'."
        )
    groups, trained = _groups(student.optimizer), _groups(trainer.optimizer)
    missing = [learner for _, learner in pairs if id(learner) not in trained]
    if missing:
        raise ValueError(
            f"the trainer's optimiser must train the student's parameters: got one that lacks {len(missing)} of "
            f"{len(pairs)}; build it from loss_module.parameters()."
        )
    for source, learner in pairs:
        _refuse_other_kind(student.optimizer, trainer.optimizer, groups[id(source)], trained[id(learner)])


def _groups(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """The group of each parameter, by the parameter's id."""
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}


def _keep_moments(old: torch.optim.Optimizer, new: torch.optim.Optimizer, pairs: Pairs) -> None:
    """Give an optimiser what another one remembers of each parameter."""
    trained = _groups(new)
    for source, learner in pairs:
        if source in old.state:
            new.state[learner] = _moved(old.state[source], learner, trained[id(learner)])


def _refuse_other_kind(old: Any, new: Any, old_group: dict[str, Any], new_group: dict[str, Any]) -> None:
    differing = [name for name in _STATE_OPTIONS if bool(old_group.get(name)) != bool(new_group.get(name))]
    if type(old) is not type(new) or differing:
        raise ValueError(
            f"optimizer='kept' needs two optimisers of one kind: got {type(old).__name__} of the student and "
            f"{type(new).__name__} of the trainer{''.join(f', of different {name}' for name in differing)}; use the "
            "student's kind, or optimizer='fresh'."
        )


def _moved(state: dict[str, Any], learner: nn.Parameter, group: dict[str, Any]) -> dict[str, Any]:
    """A copy of a parameter's state on the device of the parameter that goes on; steps are counted on the CPU."""
    on_device = group.get("capturable") or group.get("fused")
    return {
        name: value.detach().clone().to("cpu" if name == "step" and not on_device else learner.device)
        if isinstance(value, Tensor)
        else value
        for name, value in state.items()
    }


def _warn_of_scale(loss: PolicyDistillationLoss, rl_loss: LossModule) -> None:
    """Warn of outputs that mean one thing to the student's loss and another to the trainer's."""
    if not isinstance(loss, DistillationLoss):
        return
    if acts_by_values(rl_loss):
        if "loss_td" not in loss.out_keys and loss.divergence not in ("mse", "huber"):
            warnings.warn(
                f"{type(rl_loss).__name__} goes on from action values, and a student distilled by {loss.divergence!r} "
                "has none, only preferences: its first errors may be large. Distil it by StudentDQNLoss, or by "
                "divergence='mse'.",
                stacklevel=3,
            )
        return
    temperature = loss.teacher_temperature if loss.student_temperature is None else loss.student_temperature
    if loss.divergence not in ("mse", "huber") and not torch.isclose(temperature, torch.ones_like(temperature)):
        warnings.warn(
            f"{type(rl_loss).__name__} draws actions by the student's outputs at temperature 1, and they were "
            f"distilled at {temperature.item():.4g}: the policy is another one. Distil at student_temperature=1.0.",
            stacklevel=3,
        )


def _start_targets(rl_loss: LossModule) -> None:
    """Set target networks to the networks they follow."""
    for name, target in rl_loss.named_children():
        if name.startswith("target_") and isinstance(target, TensorDictParams):
            source = getattr(rl_loss, name.removeprefix("target_"))
            target.data.update_(source.data)
