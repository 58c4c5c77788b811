"""Recycling of a network's dormant units.

A unit is a channel of a convolution or a neuron of a linear layer that feeds a ReLU. Its *incoming* weights are its row
of the layer's weight, with its bias; its *outgoing* weights are the columns of it in the layers that read the ReLU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import set_recurrent_mode

from torchrl_rtpd.functional.checks import check_within
from torchrl_rtpd.networks.dormancy import dormant_units, recorded_activations
from torchrl_rtpd.networks.running import eval_mode
from torchrl_rtpd.networks.sequences import single_steps

__all__ = ["UnitRecycler", "check_recyclable", "recycle_dormant"]

Initialiser = Callable[..., Any]
"""Fills a weight in place, as the functions of :mod:`torch.nn.init` do; called with ``generator=``."""

HE_NORMAL: Initialiser = partial(nn.init.kaiming_normal_, nonlinearity="relu")


@torch.no_grad()
def recycle_dormant(
    network: TensorDictModule,
    tensordict: TensorDictBase,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    generator: torch.Generator,
    threshold: float = 0.025,
    initialise: Initialiser = HE_NORMAL,
    reset_step: bool = False,
) -> dict[str, int]:
    """Give dormant units a new start, in place: ReDo, Algorithm 1 of Sokar et al. 2023.

    https://arxiv.org/abs/2302.12902. A unit is dormant when its mean activation over the batch is at most ``threshold``
    times the mean over its layer. Its incoming weights are drawn from scratch. Its bias and its outgoing
    weights become 0, so that the output does not jump. The optimiser forgets its running averages of exactly these
    entries.
    Weights between two recycled units are drawn rather than zeroed: otherwise two dead layers in a row would stay
    dead.

    Recycled are :class:`~torch.nn.Conv2d` and :class:`~torch.nn.Linear` layers whose output goes straight into a
    :class:`~torch.nn.ReLU`, read by such layers only, at most flattened between; a pass with marked activations finds
    them. Other layers (behind a residual sum, normalised, pooled, shared, grouped) are left alone.

    Args:
        network: for a loss ``loss.student_network``, whose parameters are the loss's own. Its target parameters follow
            by their updater.
        tensordict: a batch ``[*B]`` with the network's ``in_keys``. Not changed.
        optimizer: of the network's parameters. Its averages of each entry (Adam: ``exp_avg``, ``exp_avg_sq``) are
            zeroed there.

    Keyword Args:
        generator: draws the new weights, on the CPU. No other generator is used.
        threshold: relative activation at or below which a unit is dormant. Default: 0.025, with 0.1 one of
            the two the paper compares.
        initialise: draws a layer's new weight. Default: He-normal, the layers' original one in
            :class:`~torchrl_rtpd.networks.NatureTower`; for PyTorch's layers as they come
            ``partial(nn.init.kaiming_uniform_, a=5**0.5)``.
        reset_step: let Adam's count of steps, one for a whole tensor, begin again in the tensors written to. The
            paper's code leaves it (the default): late in a run, with Adam's usual betas, the steps of recycled entries
            then grow to 6.5 learning rates within a dozen updates. Begun again, they are no longer than a learning
            rate, and the other entries of these tensors take shorter ones for a few hundred updates.

    Returns:
        Recycled units by name of the layer, 0 included. About three forward passes and one device
        synchronisation a layer: call it now and then, not every update.

    Raises:
        ValueError: no layer that can be recycled, or a negative threshold.

    Examples:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule as Mod
        >>> layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> _ = nn.init.constant_(layers[0].weight, 1.0)
        >>> _ = layers[0].bias.data.copy_(torch.tensor([0.0, 0.0, 0.0, -9.0]))  # the last unit never fires
        >>> network = Mod(layers, in_keys=["obs"], out_keys=["action_value"])
        >>> recycle_dormant(network, TensorDict({"obs": torch.ones(5, 3)}, [5]), generator=torch.Generator())
        {'module.0': 1}
    """
    check_within("[0, inf)", "0 recycles units that never fire", threshold=threshold)
    links = _links(network, tensordict)
    with _as_measured(network), recorded_activations(network) as activations:
        network(single_steps(network, tensordict))
    dormant = {
        link: dormant_units(activation, -3 if isinstance(link.producer, nn.Conv2d) else -1, threshold).cpu()
        for link, activation in zip(links, activations, strict=True)
        if link.sound
    }
    averages = _Averages(optimizer, reset_step)
    # All outgoing weights first: those into a recycled unit are drawn afterwards.
    for link, units in dormant.items():
        for consumer in link.consumers:
            columns = units.repeat_interleave(consumer.weight.shape[1] // len(units))
            _rewrite(consumer.weight, columns.expand(consumer.weight.shape[:2]), 0.0, averages)
    for link, units in dormant.items():
        if units.any():
            _restart(link.producer, units, partial(initialise, generator=generator), averages)
    names = {module: name for name, module in network.named_modules()}
    return {names[link.producer]: int(units.sum()) for link, units in dormant.items()}


def check_recyclable(network: TensorDictModule, tensordict: TensorDictBase) -> None:
    """Refuse, before it has learned anything, a network of which :func:`recycle_dormant` could recycle no layer.

    Args:
        network: as there.
        tensordict: a batch ``[*B]`` with the network's ``in_keys``. Not changed. One forward and one backward pass.

    Raises:
        ValueError: no layer that can be recycled.

    Examples:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule as Mod
        >>> network = Mod(nn.Linear(3, 2), in_keys=["obs"], out_keys=["action_value"])
        >>> check_recyclable(network, TensorDict({"obs": torch.ones(5, 3)}, [5]))
        Traceback (most recent call last):
        ...
        ValueError: recycling needs Conv2d or Linear layers that feed a torch.nn.ReLU read by such layers only: ...
    """
    _links(network, tensordict)


def _links(network: TensorDictModule, tensordict: TensorDictBase) -> list[_Link]:
    """Links of the network's ReLU calls, at least one of them sound."""
    with _as_measured(network):
        links = _Tracer().links(network, single_steps(network, tensordict))
    if not any(link.sound for link in links):
        raise ValueError(
            "recycling needs Conv2d or Linear layers that feed a torch.nn.ReLU read by such layers only: "
            f"{type(network).__name__} has none among {len(links)} ReLU calls; build one with make_actor, or train "
            "this network without recycling."
        )
    return links


@contextmanager
def _as_measured(network: nn.Module) -> Iterator[None]:
    """Nothing random: neither dropout nor sampling."""
    with eval_mode(network), set_exploration_type(ExplorationType.DETERMINISTIC), set_recurrent_mode(True):
        yield


@dataclass(frozen=True)
class UnitRecycler:
    """Interval and manner of recycling a student's dormant units: an option of the trainer hook.

    It holds no state: the weights drawn after a number of updates depend on that number and ``seed`` alone, so that a
    resumed run draws the same and students do not disturb each other.

    Args:
        every_updates: updates between two recyclings. Default: 1,000, which suits runs of 10,000 and more; ours.
        threshold: see :func:`recycle_dormant`.
        until_updates: the last update at which units are recycled, so that a run can end settled; None is never.
        initialise, reset_step: see :func:`recycle_dormant`.
        seed: of the new weights.

    Raises:
        ValueError: a number out of range.

    Examples:
        >>> recycler = UnitRecycler(every_updates=500, until_updates=1_000)
        >>> [updates for updates in range(0, 2_001, 250) if recycler.due(updates)]
        [500, 1000]
    """

    every_updates: int = 1_000
    threshold: float = 0.025
    until_updates: int | None = None
    initialise: Initialiser = field(default=HE_NORMAL, repr=False)
    reset_step: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_within("[1, inf)", every_updates=self.every_updates)
        check_within("[0, inf)", "0 recycles units that never fire", threshold=self.threshold)
        check_within("[0, inf)", "None recycles to the end", until_updates=self.until_updates)

    def due(self, updates: int) -> bool:
        """Return True if units are recycled after this many updates; never before the first."""
        ended = self.until_updates is not None and updates > self.until_updates
        return updates > 0 and updates % self.every_updates == 0 and not ended

    def __call__(
        self,
        network: TensorDictModule,
        tensordict: TensorDictBase,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        updates: int,
    ) -> dict[str, int]:
        """Recycle now, due or not; see :func:`recycle_dormant`."""
        generator = torch.Generator().manual_seed((1_000_003 * self.seed + updates) % 2**63)
        return recycle_dormant(
            network,
            tensordict,
            optimizer,
            generator=generator,
            threshold=self.threshold,
            initialise=self.initialise,
            reset_step=self.reset_step,
        )


@dataclass(eq=False)
class _Link:
    """One call of a ReLU: the layer it reads and the layers that read it."""

    producer: Any
    mark: Tensor
    consumers: list[Any] = field(default_factory=list)
    sound: bool = False


class _Tracer:
    """Finds the links of a network in one forward pass.

    Every ReLU's output is replaced by a mark, random numbers that are recognised in the inputs of the layers that read
    it. The pass is cut into pieces: marks and outputs of layers are leaves of the autograd graph. A leaf with a
    gradient from one of the ends (the network's outputs, inputs that are no plain mark) is used in another way.
    """

    def __init__(self) -> None:
        self.found: list[_Link] = []
        self.calls: list[Any] = []
        self.ends: list[Tensor] = []
        self.sources: dict[int, tuple[Any, Tensor, Tensor]] = {}  # layer, output and leaf, by the output's id
        self.generator = torch.Generator().manual_seed(0)

    def links(self, network: TensorDictModule, inputs: TensorDictBase) -> list[_Link]:
        """Links of the network's ReLU calls, in order."""
        with torch.enable_grad(), ExitStack() as hooks:
            for module in network.modules():
                if isinstance(module, nn.ReLU):
                    hooks.callback(module.register_forward_hook(self._after_relu).remove)
                elif isinstance(module, (nn.Conv2d, nn.Linear)):
                    hooks.callback(module.register_forward_pre_hook(self._before_layer).remove)
                    hooks.callback(module.register_forward_hook(self._after_layer).remove)
            outputs = network(inputs.copy())
        self.ends += [outputs.get(key) for key in network.out_keys]
        leaves = [leaf for _, _, leaf in self.sources.values()] + [link.mark for link in self.found]
        misused = _with_gradient(leaves, self.ends)
        misused_layers = {layer for layer, _, leaf in self.sources.values() if id(leaf) in misused}
        producers = [link.producer for link in self.found]
        for link in self.found:
            layers = [link.producer, *link.consumers]
            once = producers.count(link.producer) == 1 and all(self.calls.count(layer) == 1 for layer in layers)
            ungrouped = all(getattr(layer, "groups", 1) == 1 for layer in link.consumers)
            used_well = id(link.mark) not in misused and link.producer not in misused_layers
            link.sound = len(layers) > 1 and once and ungrouped and used_well
        return self.found

    def _after_relu(self, _relu: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
        producer = self.sources.get(id(args[0]), (None,))[0]
        if producer is None:
            self.ends.append(args[0])
        mark = torch.randn(output.shape, generator=self.generator).to(output).requires_grad_()
        self.found.append(_Link(producer, mark))
        return mark.clone()

    def _before_layer(self, layer: Any, args: tuple[Tensor]) -> None:
        self.calls.append(layer)
        readers = [link for link in self.found if _reads(layer, args[0], link)]
        for link in readers:
            link.consumers.append(layer)
        if not readers:
            self.ends.append(args[0])

    def _after_layer(self, layer: Any, _args: Any, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        passed = leaf.clone()  # an in-place ReLU may not change a leaf
        self.sources[id(passed)] = (layer, passed, leaf)
        return passed


def _with_gradient(leaves: list[Tensor], ends: list[Tensor]) -> set[int]:
    """Ids of the leaves that one of the ends depends on."""
    ends = [end for end in ends if end.requires_grad]
    if not ends or not leaves:
        return set()
    gradients = torch.autograd.grad(ends, leaves, [torch.ones_like(end) for end in ends], allow_unused=True)
    return {id(leaf) for leaf, gradient in zip(leaves, gradients, strict=True) if gradient is not None}


def _reads(layer: nn.Module, given: Tensor, link: _Link) -> bool:
    """Return True if a layer is given a link's mark, with the units in the order of its weight's columns."""
    shape = link.mark.shape
    if isinstance(link.producer, nn.Conv2d) and isinstance(layer, nn.Linear):
        shape = torch.Size((*shape[:-3], shape[-3:].numel()))  # flattened: a block of columns for each channel
    elif link.producer is None or isinstance(link.producer, nn.Conv2d) != isinstance(layer, nn.Conv2d):
        return False
    return given.shape == shape and torch.equal(given.detach().flatten(), link.mark.detach().flatten().to(given))


def _restart(layer: Any, units: Tensor, initialise: Initialiser, averages: _Averages) -> None:
    weight = torch.empty(layer.weight.shape)
    initialise(weight)
    _rewrite(layer.weight, units.unsqueeze(1).expand(layer.weight.shape[:2]), weight, averages)
    if layer.bias is not None:
        _rewrite(layer.bias, units, 0.0, averages)


def _rewrite(parameter: Tensor, where: Tensor, values: Tensor | float, averages: _Averages) -> None:
    """Write a parameter, and forget its averages, ``where`` ``[rows]`` or ``[rows, columns]`` is True."""
    if where.any():
        where = where.reshape(where.shape + (1,) * (parameter.ndim - where.ndim)).to(parameter.device)
        parameter.copy_(torch.where(where, torch.as_tensor(values).to(parameter), parameter))
        averages.forget(parameter, where)


@dataclass(frozen=True)
class _Averages:
    """Running averages that an optimiser keeps for each entry of a parameter."""

    optimizer: torch.optim.Optimizer | None
    reset_step: bool

    def forget(self, parameter: Tensor, where: Tensor) -> None:
        """Set the averages of a parameter's entries to zero ``where`` they start again, boolean of its shape."""
        if self.optimizer is None or parameter not in self.optimizer.state:  # no step yet
            return
        state = self.optimizer.state[parameter]
        for value in state.values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.masked_fill_(where, 0.0)
        if self.reset_step and isinstance(state.get("step"), Tensor):
            state["step"].zero_()
