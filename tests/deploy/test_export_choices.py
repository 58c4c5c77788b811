"""Actions in exported files: those of the actor, whatever its choice is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import (
    DistributionalQValueActor,
    MaskedCategorical,
    ProbabilisticActor,
    QValueModule,
    TanhDelta,
)

from torchrl_rtpd.deploy.check import onnx_session
from torchrl_rtpd.deploy.export import export_student

pytest.importorskip("onnx", reason="needs the export extra")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the export extra")

WEIGHTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, -2.0], [-2.0, 2.0], [0.5, 0.5]])
"""Values of six actions by an observation of two numbers."""
OBSERVATIONS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
"""Observations whose values are the columns of the weights, and minus their sum."""


def linear(outputs: int = 6) -> nn.Linear:
    layer = nn.Linear(2, outputs, bias=False)
    layer.weight.data.copy_(WEIGHTS[:outputs])
    return layer


def values(outputs: int = 6) -> TensorDictModule:
    return TensorDictModule(linear(outputs), ["obs"], ["action_value"])


def policy(distribution: type, key: str, outputs: int, **options: object) -> TensorDictModuleBase:
    network = TensorDictModule(linear(outputs), ["obs"], [key])
    return ProbabilisticActor(network, in_keys=[key], distribution_class=distribution, distribution_kwargs=options)


def distributional() -> TensorDictModuleBase:
    """Three actions with the returns -1 and 1; the log-odds of 1 are the second half of the values less the first."""
    layers = nn.Sequential(linear(), nn.Unflatten(-1, (2, 3)), nn.LogSoftmax(-2))
    support = torch.tensor([-1.0, 1.0])
    return DistributionalQValueActor(layers, in_keys=["obs"], spec=Categorical(3), support=support)


# By the values [1, 0, -1, 2, -2, 0.5], [0, 1, -1, -2, 2, 0.5] and [-1, -1, 2, 0, 0, -1] of the three observations.
ACTORS = {
    "choices of two sizes": (
        lambda: TensorDictSequential(values(), QValueModule(action_space="mult_one_hot", var_nums=[4, 2])),
        [[3, 1], [1, 0], [2, 0]],
    ),
    "choices of one size": (
        lambda: TensorDictSequential(values(), QValueModule(action_space="mult_one_hot", var_nums=3)),
        [[0, 0], [1, 1], [2, 0]],
    ),
    # The first of the largest log-odds in [1, -2, 1.5], [-2, 1, 1.5] and [1, 1, -3].
    "a distribution of returns": (distributional, [2, 2, 0]),
    "yes or no": (lambda: policy(torch.distributions.Bernoulli, "logits", 3), [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "a continuous action": (
        lambda: policy(TanhDelta, "param", 2, low=-1.0, high=1.0, safe=False),
        [[0.761594, 0.0], [0.0, 0.761594], [-0.761594, -0.761594]],  # tanh(1)
    ),
}


@pytest.mark.parametrize("kind", ACTORS)
def test_a_file_chooses_what_the_actor_chooses(tmp_path: Path, kind: str) -> None:
    """All of them are one dense layer, which our own writer of ONNX would end with one choice."""
    make, wanted = ACTORS[kind]
    report = export_student(make(), tmp_path / "student", example=TensorDict({"obs": OBSERVATIONS}, [3]))
    session = onnx_session(onnxruntime, report.files["onnx"].path)
    (found,) = session.run(["action"], {"obs": OBSERVATIONS.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), torch.tensor(wanted).to(torch.from_numpy(found).dtype))


def test_a_mask_that_a_distribution_reads_is_refused(tmp_path: Path) -> None:
    network = TensorDictModule(linear(3), ["obs"], ["logits"])
    keys = {"logits": "logits", "mask": "allowed"}
    masked = ProbabilisticActor(network, in_keys=keys, distribution_class=MaskedCategorical)
    with pytest.raises(ValueError, match=r"an action mask cannot be exported: got a \w+ that reads 'allowed'"):
        export_student(masked, tmp_path / "student", example=OBSERVATIONS)
