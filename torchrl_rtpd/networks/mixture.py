"""Several teachers as one policy, the weighted mean of theirs.

``*B`` are batch dimensions, ``A`` the number of actions, ``K`` the number of teachers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn

from torchrl_rtpd.functional.checks import at_least_single, check_within
from torchrl_rtpd.functional.discrete import policy_log_probs
from torchrl_rtpd.networks.choices import declared_var_nums
from torchrl_rtpd.networks.keys import VALUE_NAMES, last_part, selected
from torchrl_rtpd.networks.several import PLACE, Teachers

__all__ = ["TeacherMixture"]

_ROUNDING = 1e-3  # by which weights in half precision may miss a sum of 1


class TeacherMixture(Teachers):
    r"""Weighted mixture of teachers over discrete actions: the mean of their softened policies.

    :math:`p(a|s) = \sum_k w_k \, \mathrm{softmax}(q_k(s) / \tau)_a`, for ``teacher_network=`` of a distillation loss.
    Its forward KL has the gradient of the weighted sum :math:`\sum_k w_k \, KL(p_k \| p_S)` of the teachers' own, the
    distillation of an ensemble (Hinton et al. 2015, https://arxiv.org/abs/1503.02531), and its value differs by what
    no student can change. Other divergences differ from such a sum.

    The loss softens what it reads by its own ``teacher_temperature``. So ``logits`` are written as
    :math:`\tau \ln p`, from which a loss with the same temperature makes ``p`` again. A loss with another one, or with
    ``"auto"``, is refused: it would sharpen or flatten the mixture a second time.

    One temperature softens all teachers. Warning: where the values of one are ten times as large as those of another,
    its policy is ten times as sharp.

    Args:
        teachers: networks that write action values or logits ``[*B, A]``, see
            :class:`~torchrl_rtpd.networks.TeacherByKey`; frozen ones, or networks that are trained, here or elsewhere.
        temperature: :math:`\tau`, in units of the teachers' values; that of the loss.
        weights: one a teacher, with a sum of 1; or the key of an entry ``[*B, K]`` with those of each state. None
            weighs all alike.
        action_mask_key: boolean entry ``[*B, A]``, True where an action is allowed. Each teacher's policy is then one
            over the allowed actions. Give it where the loss reads a mask.

    Attributes:
        weights: the weights ``[K]``, a buffer; None where the data hold them.

    Raises:
        TypeError: a teacher that is no module.
        ValueError: teachers of continuous actions or of several choices, a temperature that is not positive, weights
            that are negative, do not add up to 1 or are not one a teacher; and whatever
            :class:`~torchrl_rtpd.networks.TeacherByKey` refuses. Weights in the data are looked at in every call on a
            CPU and, since looking waits for the device, in the 1st, 2nd, 4th, 8th ... call on a GPU, never inside
            ``torch.compile``.
        KeyError: at a call, an entry that the data lack.

    Examples:
        >>> from tensordict import TensorDict
        >>> teachers = [nn.Linear(1, 2, bias=False) for _ in range(2)]
        >>> with torch.no_grad():  # policies of (3/4, 1/4) and (1/4, 3/4) where 1 is observed
        ...     _ = teachers[0].weight.copy_(torch.tensor([[3.0], [1.0]]).log())
        ...     _ = teachers[1].weight.copy_(torch.tensor([[1.0], [3.0]]).log())
        >>> mixture = TeacherMixture(teachers, temperature=1.0, weights=[0.8, 0.2])
        >>> mixture(TensorDict({"observation": torch.ones(1, 1)}, [1]))["logits"].exp()  # 0.8 * 3/4 + 0.2 * 1/4
        tensor([[0.6500, 0.3500]], grad_fn=<ExpBackward0>)
    """

    weights: Tensor | None

    def __init__(
        self,
        teachers: Sequence[nn.Module] | Mapping[str, nn.Module],
        *,
        temperature: float,
        weights: Sequence[float] | Tensor | NestedKey | None = None,
        action_mask_key: NestedKey | None = None,
    ) -> None:
        super().__init__(teachers)
        self._check_discrete()
        check_within("(0, inf)", "pass that of the loss", temperature=temperature)
        self.temperature = float(temperature)
        self.action_mask_key = None if action_mask_key is None else unravel_key(action_mask_key)
        self.weights_key = unravel_key(weights) if _is_key(weights) else None
        self.register_buffer("weights", None if _is_key(weights) else self._fixed(weights))
        more = [key for key in (self.weights_key, self.action_mask_key) if key is not None]
        self.in_keys = [*self._inputs, *more]
        self.out_keys = ["logits"]

    def _check_discrete(self) -> None:
        written = [last_part(key) for key in self._outputs]
        if len(written) != 1 or written[0] not in VALUE_NAMES:
            raise ValueError(
                "a mixture is one of policies over discrete actions, whose teachers write action_value, logits or "
                f"probs: got {', '.join(written)}; the mean of continuous policies is none of their kind, so give each "
                "state a teacher of its own by TeacherByKey."
            )
        choices = declared_var_nums(self)
        if choices is not None:
            raise ValueError(
                f"a mixture is one over a single choice: got teachers of the choices {choices}; give each state a "
                "teacher of its own by TeacherByKey."
            )

    def _fixed(self, weights: Sequence[float] | Tensor | None) -> Tensor:
        count = len(self.teachers)
        fixed = torch.full((count,), 1 / count) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
        if fixed.shape != (count,):
            raise ValueError(f"weights must be one a teacher, [{count}]: got {list(fixed.shape)}; 0 leaves one out.")
        self._check_weights(fixed)
        return fixed.clone()

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the mixture's ``logits`` ``[*B, A]`` into the batch; see the class for the keys."""
        seen = selected(tensordict, self.in_keys, "teacher", PLACE)
        inputs = {key: seen.get(key) for key in self._inputs}
        results = {name: self._run(name, inputs) for name in self.teachers}
        values = [own for (own,) in results.values()]
        self._check_shapes(results, values[0].ndim - 1)
        if last_part(self._outputs[0]) == "probs":
            values = [own.clamp_min(torch.finfo(own.dtype).tiny).log() for own in values]
        mask = None if self.action_mask_key is None else seen.get(self.action_mask_key)
        log_probs = torch.stack([policy_log_probs(own, self.temperature, mask) for own in values], -2)  # [*B, K, A]
        weights = self._weights(seen, values[0].shape[:-1])
        mixture = (log_probs + weights.log().unsqueeze(-1)).logsumexp(-2)
        tensordict.set("logits", self.temperature * mixture)
        return tensordict

    def _weights(self, seen: TensorDictBase, batch: torch.Size) -> Tensor:
        """Weights ``[K]``, or those of each state ``[*B, K]``."""
        if self.weights is not None:
            return self.weights
        weights, shape = seen.get(self.weights_key), (*batch, len(self.teachers))
        if weights.shape != shape:
            raise ValueError(
                f"weights must be one a state and teacher, {list(shape)}: {self.weights_key!r} is "
                f"{list(weights.shape)}; 0 leaves a teacher out."
            )
        if self._rhythm.due(waits=not weights.is_cpu):
            self._check_weights(weights)
        return weights.to(at_least_single(weights.dtype))

    def _check_weights(self, weights: Tensor) -> None:
        """Refuse weights of which a row is no distribution."""
        totals = weights.detach().float().sum(-1)
        wrong = (weights < 0).any(-1) | ~((totals - 1).abs() <= _ROUNDING)
        if wrong.any():
            raise ValueError(
                f"weights must be at least 0 and add up to 1: got {weights[wrong][0].tolist()}; divide them by their "
                "sum."
            )


def _is_key(weights: object) -> bool:
    return isinstance(weights, str) or (
        isinstance(weights, tuple) and bool(weights) and all(isinstance(part, str) for part in weights)
    )
