"""Number of choices that a network over discrete actions makes at once, and of actions in each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tensordict.nn import ProbabilisticTensorDictModule
from torch import Tensor, nn
from torch.distributions import Bernoulli
from torchrl.data import Binary, Composite, MultiCategorical, MultiOneHot
from torchrl.modules import QValueModule

from torchrl_rtpd.networks.keys import last_part

__all__ = ["declared_actions", "declared_var_nums"]


def declared_var_nums(network: nn.Module) -> tuple[int, ...] | int | None:
    """Return the actions of each choice, as a network's QValueModule or action spec declares them.

    Args:
        network: any module.

    Returns:
        Actions of each choice; an integer where all choices have that many, whatever their number; None for a single
        choice or a network that declares nothing.

    Raises:
        ValueError: yes-or-no choices with one value or logit each, over which no softmax goes.

    Examples:
        >>> network = nn.Sequential(nn.Linear(4, 8), QValueModule(action_space="mult_one_hot", var_nums=[5, 3]))
        >>> declared_var_nums(network)
        (5, 3)
    """
    for module in network.modules():
        if isinstance(module, QValueModule) and module.action_space == "mult_one_hot" and module.var_nums is not None:
            return module.var_nums if isinstance(module.var_nums, int) else tuple(module.var_nums)
        kind = module.distribution_class if isinstance(module, ProbabilisticTensorDictModule) else None
        if isinstance(kind, type) and issubclass(kind, Bernoulli):
            raise _binary_error(kind.__name__)
    for spec in _action_specs(network):
        if isinstance(spec, Binary) and type(spec) is Binary:
            raise _binary_error(str(list(spec.shape)))
        if isinstance(spec, MultiOneHot):
            return tuple(box.n for box in spec.space.boxes)
        if isinstance(spec, MultiCategorical):
            nums: Tensor = spec.nvec
            return tuple(nums.reshape(-1, nums.shape[-1])[0].tolist())  # all rows of a batch are alike
    return None


def declared_actions(network: nn.Module | None) -> int | None:
    """Return the number of actions of a single choice that a network's spec declares, None where it declares none."""
    for spec in () if network is None else _action_specs(network):
        num: Any = getattr(getattr(spec, "space", None), "n", None)  # categorical and one-hot alike
        return num
    return None


def _action_specs(network: nn.Module) -> Iterator[Any]:
    """Specs of a network's action: those under an "action" of any group of agents, or the spec itself."""
    spec = getattr(network, "spec", None)
    if not isinstance(spec, Composite):
        yield from () if spec is None else (spec,)
        return
    for key in spec.keys(True, True):
        if last_part(key) == "action" and spec[key] is not None:
            yield spec[key]


def _binary_error(declared: str) -> ValueError:
    return ValueError(
        f"yes-or-no choices with one value each cannot be distilled as a softmax: got Binary or Bernoulli, {declared}; "
        "give each choice two values, var_nums=[2, 2, ...], as MultiOneHot and MultiCategorical do."
    )
