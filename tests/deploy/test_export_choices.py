"""Actions in exported files: those of the actor, whatever its choice is made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.data import Bounded, Categorical
from torchrl.modules import (
    Actor,
    DistributionalQValueActor,
    IndependentNormal,
    MaskedCategorical,
    ProbabilisticActor,
    QValueModule,
    TanhDelta,
    TanhModule,
    TanhNormal,
)

from torchrl_rtpd.deploy.check import check_file, onnx_session
from torchrl_rtpd.deploy.export import export_student
from torchrl_rtpd.deploy.latency import measure_deployment
from torchrl_rtpd.deploy.selfcheck import compare

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


class Negated(nn.Module):
    """Values of the opposite sign, by a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.layer(obs)

    def values(self, obs: torch.Tensor) -> torch.Tensor:
        return -self.layer(obs)


def values(outputs: int = 6) -> TensorDictModule:
    return TensorDictModule(linear(outputs), ["obs"], ["action_value"])


def policy(distribution: type, key: str, outputs: int, **options: object) -> TensorDictModuleBase:
    network = TensorDictModule(linear(outputs), ["obs"], [key])
    return ProbabilisticActor(network, in_keys=[key], distribution_class=distribution, distribution_kwargs=options)


def gaussian(distribution: type, **options: object) -> TensorDictModuleBase:
    """A policy of one part that writes location and scale."""
    network = TensorDictModule(nn.Sequential(linear(4), NormalParamExtractor()), ["obs"], ["loc", "scale"])
    return ProbabilisticActor(
        network, in_keys=["loc", "scale"], distribution_class=distribution, distribution_kwargs=options
    )


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
    "another method of the network": (
        lambda: TensorDictSequential(
            TensorDictModule(Negated(), ["obs"], ["action_value"], method="values"), QValueModule(spec=Categorical(6))
        ),
        [4, 3, 0],
    ),
    "a continuous action": (
        lambda: policy(TanhDelta, "param", 2, low=-1.0, high=1.0, safe=False),
        [[0.761594, 0.0], [0.0, 0.761594], [-0.761594, -0.761594]],  # tanh(1)
    ),
    "a continuous action, clamped below 1": (
        lambda: policy(TanhDelta, "param", 2, low=-1.0, high=1.0),
        [[0.761594, 0.0], [0.0, 0.761594], [-0.761594, -0.761594]],
    ),
    "the middle of a Gaussian": (lambda: gaussian(IndependentNormal), [[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]),
    "the middle of a Gaussian behind tanh, in [-2, 2]": (
        lambda: gaussian(TanhNormal, low=-2.0, high=2.0, tanh_loc=False),
        [[1.523188, 0.0], [0.0, 1.523188], [-1.523188, -1.523188]],
    ),
    "an action that the network writes": (
        lambda: Actor(linear(2), in_keys=["obs"], spec=Bounded(-2, 2, (2,))),
        [[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]],
    ),
    "an action that is kept in its bounds": (
        lambda: Actor(linear(2), in_keys=["obs"], spec=Bounded(-0.5, 0.5, (2,)), safe=True),
        [[0.5, 0.0], [0.0, 0.5], [-0.5, -0.5]],
    ),
    "an action that a part writes behind tanh": (
        lambda: TensorDictSequential(
            TensorDictModule(linear(2), ["obs"], ["param"]),
            TanhModule(in_keys=["param"], out_keys=["action"], spec=Bounded(-1, 1, (2,))),
        ),
        [[0.761594, 0.0], [0.0, 0.761594], [-0.761594, -0.761594]],
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


def test_an_action_that_a_network_writes_is_the_only_output_and_is_checked(tmp_path: Path) -> None:
    actor = Actor(linear(2), in_keys=["obs"], spec=Bounded(-2, 2, (2,)))
    file = export_student(actor, tmp_path / "student", example=OBSERVATIONS).files["onnx"].path
    session = onnx_session(onnxruntime, file)
    assert [(output.name, output.type) for output in session.get_outputs()] == [("action", "tensor(float)")]
    assert measure_deployment(actor, OBSERVATIONS).latency.runtime == "onnxruntime"
    assert compare([[[0.5, 0.5]]], [np.array([[0.5, 0.75]])], ["action"], 0.001) == ["action differs by up to 0.25"]
    with pytest.raises(ValueError, match=r"format c holds chains of .*: its action is no choice of one of its values"):
        export_student(actor, tmp_path / "other", formats=["c"], example=OBSERVATIONS)


def test_of_nearly_equal_values_a_file_may_choose_either() -> None:
    assert compare([[1]], [np.array([0])], ["action"], 0.001) == []


# Keys that are also names of outputs, of one another, or of what our writer of ONNX calls its own nodes.
KEYS = {
    "action": ["action_2"],
    "action_value": ["action_value_2"],
    "layer0": ["layer0"],
    "weight0": ["weight0"],
    "pixels_float": ["pixels_float"],
    "a b.c/ü": ["a b.c/ü"],
}


@pytest.mark.parametrize("key", KEYS)
def test_an_input_of_any_name_is_told_from_all_else_in_the_file(tmp_path: Path, key: str) -> None:
    actor = TensorDictModule(nn.Sequential(linear(), nn.ReLU(), nn.Linear(6, 2)), [key], ["action_value"])
    report = export_student(actor, tmp_path / "student", formats=["onnx", "numpy"], example={key: OBSERVATIONS})
    session = onnx_session(onnxruntime, report.files["onnx"].path)
    assert [entry.name for entry in session.get_inputs()] == KEYS[key]
    (found,) = session.run(["action_value"], {KEYS[key][0]: OBSERVATIONS.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), actor.module(OBSERVATIONS).detach())


class Sum(nn.Module):
    """Values of two observations, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear(), linear()

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.first(left) + 2 * self.second(right).tanh()


def test_two_inputs_of_one_name_are_told_apart_by_a_number(tmp_path: Path) -> None:
    """And an actor of one part keeps its weights, of which there are 24."""
    actor = TensorDictModule(Sum(), [("obs", "a"), "obs_a"], ["action_value"])
    example = {("obs", "a"): OBSERVATIONS, "obs_a": OBSERVATIONS.flip(0)}
    report = export_student(actor, tmp_path / "student", example=example)
    session = onnx_session(onnxruntime, report.files["onnx"].path)
    given = {"obs_a": OBSERVATIONS.numpy(), "obs_a_2": OBSERVATIONS.flip(0).numpy()}
    wanted = actor.module(*example.values()).detach()
    torch.testing.assert_close(torch.from_numpy(session.run(["action_value"], given)[0]), wanted)
    assert json.loads(report.card.read_text())["parameters"] == 24
    assert [outcome.problems for outcome in check_file(report.card)] == [[]]
