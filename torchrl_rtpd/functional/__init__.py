"""Pure maths of distillation on tensors: no TorchRL, no state."""

from torchrl_rtpd.functional.discrete import (
    entropy,
    forward_kl,
    greedy_agreement,
    greedy_nll,
    jensen_shannon,
    policy_log_probs,
    q_huber,
    q_mse,
    reverse_kl,
    teacher_regret,
    value_spread,
)
from torchrl_rtpd.functional.returns import categorical_q_values, discounted_target, imitation_value, quantile_q_values
from torchrl_rtpd.functional.scores import normalised_score

__all__ = [
    "categorical_q_values",
    "discounted_target",
    "entropy",
    "forward_kl",
    "greedy_agreement",
    "greedy_nll",
    "imitation_value",
    "jensen_shannon",
    "normalised_score",
    "policy_log_probs",
    "q_huber",
    "q_mse",
    "quantile_q_values",
    "reverse_kl",
    "teacher_regret",
    "value_spread",
]
