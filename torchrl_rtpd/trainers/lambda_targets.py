"""Returns of whole rollouts, written before the rollouts are shuffled.

``N`` is the number of games side by side, ``T`` of steps in a rollout, ``A`` of actions.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import unravel_key
from torch import Tensor
from torchrl.data.replay_buffers.samplers import Sampler, SamplerWithoutReplacement
from torchrl.objectives.value.functional import td_lambda_return_estimate
from torchrl.trainers import Trainer

from torchrl_rtpd.functional.checks import at_least_single, check_within
from torchrl_rtpd.networks.keys import names_in
from torchrl_rtpd.networks.running import eval_mode
from torchrl_rtpd.objectives.pqn import PQNLoss
from torchrl_rtpd.trainers._torchrl import learned_weights, runs_elsewhere
from torchrl_rtpd.trainers.rollout_replay import RolloutReplay
from torchrl_rtpd.trainers.stateless import StatelessHook

__all__ = ["LambdaTargets"]


class LambdaTargets(StatelessHook):
    r"""Hook that writes the targets of :class:`~torchrl_rtpd.objectives.PQNLoss`, once a rollout.

    :math:`G_t = r_t + \gamma (1 - d_t) ((1 - \lambda) \max_a Q(s_{t+1}, a) + \lambda G_{t+1})` (Gallici et al. 2024,
    Eq. 6), by TorchRL's ``td_lambda_return_estimate``. The mixture ends with a game. A terminated game is worth nothing
    more, one that was truncated is worth the greedy value of the state that it ended in, and so is the end of the
    rollout: the only states that are run through the network once more.

    Values of the rollout's states are those in its ``"action_value"``, if the collector keeps them
    (``DualNetworkCollector(keep=["action_value"])``): the ones that acted. Otherwise they are computed here, in one
    forward of the rollout. Epochs over the rollout all see the same targets.

    The replay is written once a rollout, where TorchRL's trainer alone writes the same rollout again before each epoch,
    and may be a :class:`~torchrl_rtpd.replay.FrameStackStorage`, which keeps each frame once. Of rollouts of single
    frames (``AtariVecEnv(frame_stack=1)``) it rebuilds the stacks; they need the values that acted.

    With remote learners (``learner_backend="ray"``) the weights that have just been learned are fetched once a rollout,
    and the targets are written before the rollout goes to the learners' replay.

    Entries have the names that the trainer's loss has for them. ``OnPolicyTrainer`` sets three of them itself: with its
    ``terminated_key="end_of_life"`` a lost life ends bootstrapping, where ``set_keys()`` of the loss would be undone.
    The network runs in eval mode, and returns are summed in single precision at least.

    Args:
        gamma: discount of a step.
        lmbda: 0 bootstraps at every step, 1 only where the rollout ends.

    Keys read: ``"action_value"`` ``[N, T, A]`` if present, and under ``"next"`` the network's inputs, ``"reward"``,
    ``"done"`` and ``"terminated"`` ``[N, T, 1]``.

    Keys written: ``"value_target"`` ``[N, T, 1]``.

    Raises:
        ValueError: numbers out of range; at ``register``, a trainer without a replay or with a sampler whose passes do
            not end, or one that has renamed entries of its loss; at a rollout, padding after trajectories, numbers of
            another shape, a replay of another size, which would mix rollouts, or minibatches that do not divide it.
        TypeError: at ``register``, a trainer of another loss.
        RuntimeError: at ``register``, a trainer with a fixed number of updates an epoch: TorchRL's then skips epochs.
            One with remote learners needs such a number; at the first rollout, another one than an epoch has.
        KeyError: at a rollout without one of the entries.

    Examples:
        >>> hook = LambdaTargets(gamma=0.99, lmbda=0.65)  # then hook.register(trainer)
    """

    def __init__(self, *, gamma: float = 0.99, lmbda: float = 0.65) -> None:
        check_within("[0, 1]", "0.99 and 0.65 are the paper's", gamma=gamma, lmbda=lmbda)
        self.gamma, self.lmbda = float(gamma), float(lmbda)
        self._loss: Any = None
        self._replay: RolloutReplay | None = None
        self._elsewhere: Trainer | None = None  # a trainer whose learners are remote, and write for themselves

    def register(self, trainer: Trainer, name: str = "lambda_targets") -> None:
        """Attach to a trainer whose loss is a ``PQNLoss``; one with ``add_gae=False``."""
        if not isinstance(trainer.loss_module, PQNLoss):
            raise TypeError(
                f"targets of whole rollouts are for PQNLoss: got a trainer of {type(trainer.loss_module).__name__}."
            )
        self._elsewhere = trainer if runs_elsewhere(trainer) else None
        _refuse_lost_names(trainer.loss_module)
        if trainer.optim_steps_per_batch is not None and self._elsewhere is None:
            raise RuntimeError(
                "an epoch is a pass over the whole rollout: got optim_steps_per_batch="
                f"{trainer.optim_steps_per_batch}, at which the trainer's epochs end early or are skipped; pass None."
            )
        if self._elsewhere is None:
            _check_passes(getattr(trainer, "replay_buffer", None))
        self._loss, self._replay = trainer.loss_module, None if self._elsewhere else RolloutReplay(trainer)
        self._loss.gamma = self.gamma  # for students that follow the teacher's loss
        trainer.register_op("batch_process", self.write)
        trainer.register_module(name, self)

    def write(self, rollout: TensorDictBase) -> TensorDictBase:
        """Write the targets into a rollout ``[N, T]``, time last, and return it."""
        self._check_replay(rollout)
        if self._elsewhere is not None:
            self._loss.value_network_params.data.update_(learned_weights(self._elsewhere))
        names = self._loss.tensor_keys
        if self._replay is not None:
            self._replay.begin(rollout, names.value_target)
        reward, done, terminated = (self._next(rollout, key) for key in (names.reward, names.done, names.terminated))
        done = done | terminated
        target = td_lambda_return_estimate(
            self.gamma,
            self.lmbda,
            self._next_values(rollout, done, terminated),
            reward,
            done=done,
            terminated=terminated,
        )
        return rollout.set(names.value_target, target)

    def _next(self, rollout: TensorDictBase, key: Any) -> Tensor:
        found = rollout.get(unravel_key(("next", key)), None)
        if found is None:
            raise KeyError(
                f"targets of a rollout need {unravel_key(('next', key))!r}: it has {names_in(rollout)}; name another "
                "entry with set_keys() of the trainer's loss."
            )
        if found.shape != (*rollout.batch_size, 1):
            raise ValueError(
                f"{unravel_key(('next', key))!r} must be [N, T, 1]: got {list(found.shape)} in a rollout "
                f"{list(rollout.batch_size)}; let the environment write one number a step, in a dimension of its own."
            )
        return found

    @torch.no_grad()
    def _next_values(self, rollout: TensorDictBase, done: Tensor, terminated: Tensor) -> Tensor:
        """Greedy value ``[N, T, 1]`` of each next state: that of the step after it, or computed where there is none."""
        loss, replay = self._loss, self._replay
        acted = rollout.get(loss.tensor_keys.action_value, None)
        if acted is None and replay is not None and replay.stacks_frames:
            raise KeyError(
                f"targets of single frames need the values that acted: got no {loss.tensor_keys.action_value!r} in the "
                "rollout; collect with keep=['action_value']."
            )
        with eval_mode(loss.value_network):  # no noise in targets, and no statistics moved by them
            return self._bootstrap(rollout, acted, done, terminated)

    def _bootstrap(self, rollout: TensorDictBase, acted: Tensor | None, done: Tensor, terminated: Tensor) -> Tensor:
        loss, replay = self._loss, self._replay
        values = loss.greedy_value(rollout, acted)
        values = values.to(at_least_single(values.dtype))  # a return is a long sum
        following = torch.zeros_like(values)
        following[..., :-1] = values[..., 1:]
        last = torch.zeros_like(done[..., 0])
        last[..., -1] = True
        alone = (last | done[..., 0]) & ~terminated[..., 0]
        if alone.any():
            states = rollout.get("next")[alone] if replay is None else replay.next_states(rollout, alone)
            following[alone] = loss.greedy_value(states).to(following.dtype)
        return following.unsqueeze(-1)

    def _check_replay(self, rollout: TensorDictBase) -> None:
        mask = rollout.get(("collector", "mask"), None)
        if mask is not None and not mask.all():
            raise ValueError(
                f"targets need whole rollouts: got {int((~mask).sum())} steps of padding after trajectories; "
                "collect with split_trajs=False."
            )
        buffer = self._replay.buffer if self._replay is not None else getattr(self._elsewhere, "replay_buffer", None)
        if buffer is None:
            return
        kept = None if self._replay is None else self._replay.max_size
        steps, size = rollout.numel(), buffer.batch_size
        if kept not in (None, steps):
            raise ValueError(
                f"a replay of PQN holds one rollout, since targets of an older one are out of date: got room for "
                f"{kept} and rollouts of {steps}; build its storage with max_size={steps}."
            )
        if size is None:
            raise ValueError(
                f"a replay of PQN hands out minibatches: got one without batch_size; give it one that divides {steps}."
            )
        if steps % size:
            raise ValueError(
                f"minibatches must divide the rollout: got {size} and {steps} steps; change batch_size or "
                "frames_per_batch."
            )
        if self._elsewhere is not None and self._elsewhere.optim_steps_per_batch * size != steps:
            raise RuntimeError(
                "an epoch is a pass over the whole rollout, which remote learners count: got optim_steps_per_batch="
                f"{self._elsewhere.optim_steps_per_batch} of {size} for {steps} steps; pass {steps // size}."
            )


def _refuse_lost_names(loss: PQNLoss) -> None:
    """Refuse a loss whose trainer has named its entries anew, as ``OnPolicyTrainer`` does with three of them."""
    if loss.names_lost:
        name, key = next(iter(loss.names_lost.items()))
        raise ValueError(
            f"the trainer must keep the names that set_keys() gave its loss: got {name}="
            f"{getattr(loss.tensor_keys, name)!r} instead of {key!r}, as it sets its own; give it {name}_key={key!r}."
        )


def _check_passes(buffer: Any) -> None:
    """Refuse a replay that an epoch never comes to the end of."""
    if buffer is None:
        raise ValueError(
            "PQN learns from a replay of one rollout: got a trainer without one, whose epochs have no end; give it "
            "replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(<steps of a rollout>), "
            "sampler=SamplerWithoutReplacement(), batch_size=<minibatch>)."
        )
    sampler = getattr(buffer, "sampler", None)
    if isinstance(sampler, Sampler) and not isinstance(sampler, SamplerWithoutReplacement):
        raise ValueError(
            f"an epoch of PQN is one pass over the rollout: got a {type(sampler).__name__}, whose passes have no end; "
            "give the replay sampler=SamplerWithoutReplacement()."
        )
    if getattr(buffer.storage, "ndim", 1) != 1:
        raise ValueError(
            f"a rollout is stored as single steps: got a storage of {buffer.storage.ndim} dimensions; leave ndim out."
        )
