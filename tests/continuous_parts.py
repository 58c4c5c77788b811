"""What the tests of the continuous loss share: policies, batches, numbers by hand."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence
from torchrl.modules import ProbabilisticActor, TanhNormal

# Two states, one action dimension. The KLs of the first are 0.443147 forward, 1.306853 reverse, those of the second
# (4 - 1 - ln 4) / 2 = 0.806853 and (1/4 - 1 + ln 4) / 2 = 0.318147.
TEACHER = {"loc": [[1.0], [0.5]], "scale": [[1.0], [2.0]]}
STUDENT = {"loc": [[0.0], [0.5]], "scale": [[2.0], [1.0]]}
PER_STATE = {
    "forward_kl": [0.443147, 0.806853],
    "reverse_kl": [1.306853, 0.318147],
    "mse": [1.0, 0.0],
    "nll": [1.737086, 0.918939],  # ln 2 + ln(2 pi) / 2 + 1/8; ln(2 pi) / 2
}
ACTOR_KEYS = ["loc", "scale"]


class Table(nn.Module):
    """Means and standard deviations of states that are observed as one-hot rows."""

    def __init__(self, loc: list[list[float]], scale: list[list[float]]) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(loc))
        self.log_scale = nn.Parameter(torch.tensor(scale).log())

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        return observation @ self.loc, (observation @ self.log_scale).exp()


def table(values: dict[str, list[list[float]]]) -> TensorDictModule:
    return TensorDictModule(Table(**values), in_keys=["observation"], out_keys=["loc", "scale"])


def two_states(**kwargs: Any) -> TensorDict:
    values = {name: torch.tensor(value) for name, value in TEACHER.items()}
    values["action"] = values["loc"].clone()
    return TensorDict({"observation": torch.eye(2), "teacher": values, **kwargs}, [2])


def actor(
    kind: type = TanhNormal, *, dims: int = 2, noisy: bool = False, keys: Any = None, **distribution_kwargs: Any
) -> ProbabilisticActor:
    """A random actor of 4 features, with Dropout and BatchNorm if ``noisy``."""
    layers = [nn.Linear(4, 16), *([nn.BatchNorm1d(16), nn.Dropout(0.5)] if noisy else []), nn.Tanh()]
    layers += [nn.Linear(16, 2 * dims), NormalParamExtractor()]
    keys = ACTOR_KEYS if keys is None else keys
    return ProbabilisticActor(
        TensorDictModule(nn.Sequential(*layers), in_keys=["observation"], out_keys=keys),
        in_keys=dict(zip(ACTOR_KEYS, keys, strict=True)),
        distribution_class=kind,
        distribution_kwargs=distribution_kwargs,
    )


def deterministic(kind: type | None = None, *, dims: int = 2, **kwargs: Any) -> TensorDictModule:
    """A TD3 policy: a plain module, or an actor of ``Delta`` or ``TanhDelta``."""
    if kind is None:
        network = nn.Sequential(nn.Linear(4, dims), nn.Tanh())
        return TensorDictModule(network, in_keys=["observation"], out_keys=["action"])
    module = TensorDictModule(nn.Linear(4, dims), in_keys=["observation"], out_keys=["param"])
    return ProbabilisticActor(module, in_keys=["param"], distribution_class=kind, distribution_kwargs=kwargs)


def observations(size: int = 8, seed: int = 0) -> TensorDict:
    return TensorDict({"observation": torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))}, [size])


def reference_kl(teacher: ProbabilisticActor, student: ProbabilisticActor, batch: TensorDict) -> Tensor:
    """KL(teacher || student) of the Gaussians inside two actors, by TorchRL's distributions and torch's KL."""

    def gaussian(policy: ProbabilisticActor) -> Independent:
        inside = policy.get_dist(batch.copy())
        while not isinstance(inside, Normal):
            inside = inside.base_dist
        return Independent(inside, 1)

    return kl_divergence(gaussian(teacher), gaussian(student))
