"""Weights of a teacher and its students on the way to whatever collects: a process, workers or Ray actors."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase

from torchrl_rtpd.collectors.policy import TeacherStudentPolicy
from torchrl_rtpd.schedules import RunState

__all__ = ["PolicyWeights"]


class PolicyWeights:
    """Weight updates of our collectors: they may be sent in parts, and students are sent by the trainer's hook.

    Attributes:
        dual_policy: the policy as it was built here, of the very networks that were given; workers have copies.
    """

    dual_policy: TeacherStudentPolicy

    def update_policy_weights_(
        self, policy_or_weights: Any = None, *, weights_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Update what is given, and leave the rest.

        That may be a whole policy or its weights, parts of them (:meth:`TeacherStudentPolicy.weights`), or the teacher
        alone by its network or weights, which is what TorchRL's ``DQNTrainer`` sends without exploration, and its
        on-policy trainers with ``weight_update_map={"policy": "loss_module.actor_network"}``. Everything else is as in
        TorchRL's collectors.
        """
        if weights_dict is not None:
            kwargs["weights_dict"] = {
                name: self._placed(given) if name == "policy" else given for name, given in weights_dict.items()
            }
        super().update_policy_weights_(self._placed(policy_or_weights), **kwargs)  # type: ignore[misc]

    def _placed(self, weights: Any) -> Any:
        """The weights where the whole policy has them, if they are the teacher's."""
        if isinstance(weights, TensorDictModuleBase):
            weights = TensorDict.from_module(weights)
        if isinstance(weights, TensorDictBase):
            own = TensorDict.from_module(self.dual_policy.teacher)
            if set(weights.keys(True, True)) == set(own.keys(True, True)):
                weights = TensorDict({"module": TensorDict({"0": weights})})
        return weights

    def update_students(self, state: RunState, *, dropped: Collection[str] = ()) -> dict[str, float]:
        """Set who acts from now on and send the students' weights to the process that collects.

        TorchRL's trainers send the teacher's. Called by :class:`~torchrl_rtpd.trainers.RealTimeDistillTrainer` once a
        batch. Where no student may act or be recorded it does nothing.

        Args:
            state: the run now, for an ``acting`` that depends on it.
            dropped: students that learn no more, and act no more.

        Returns:
            The probability of each student that may act, by name.
        """
        policy = self.dual_policy
        probabilities = policy.update_acting(state, dropped=dropped) if policy.mixed else {}
        if policy.mixed or policy.record:
            self.update_policy_weights_(policy.weights("students"))
        return probabilities
