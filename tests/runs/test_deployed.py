"""Latency in a run's report: of any network, and never the end of the report."""

from __future__ import annotations

import pytest
import torch
from drop_in_dqn import make_actor, make_env
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Unbounded
from torchrl.envs import EnvBase, TensorDictPrimer
from torchrl.modules import QValueModule

from torchrl_rtpd import AtariVecEnv
from torchrl_rtpd import make_actor as make_tower
from torchrl_rtpd.networks import num_parameters
from torchrl_rtpd.runs.deployed import deployed_row, first_step

pytest.importorskip("onnx", reason="needs the export extra")
pytest.importorskip("onnxruntime", reason="needs the export extra")


@pytest.fixture
def env():
    env = make_env(2)
    yield env
    env.close()


class Noisy(nn.Module):
    """A network whose values are never twice the same."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return observation[..., :2] + torch.rand_like(observation[..., :2])


class Joined(nn.Module):
    """Two inputs side by side."""

    def forward(self, observation: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        return torch.cat([observation, score], -1)


def actor(env: EnvBase, *parts: TensorDictModule) -> TensorDictSequential:
    return TensorDictSequential(*parts, QValueModule(spec=env.action_spec_unbatched))


def test_a_network_is_timed_by_onnxruntime(env: EnvBase) -> None:
    row = deployed_row("small", make_actor(4, env, seed=0), env)
    assert row.keys() == {"latency_ms", "latency_runtime", "file_bytes"}
    assert row["latency_runtime"] == "onnxruntime" and row["latency_ms"] > 0


def test_networks_in_several_parts_and_of_several_inputs_are_timed(env: EnvBase) -> None:
    both = TensorDictModule(Joined(), ["observation", "episode_reward"], ["all"])
    head = TensorDictModule(nn.Linear(5, 2), ["all"], ["action_value"])
    row = deployed_row("both", actor(env, both, head), env)
    assert row["latency_runtime"] == "onnxruntime" and row["latency_ms"] > 0


def test_a_recurrent_network_is_timed_with_its_memory(env: EnvBase) -> None:
    env = env.append_transform(TensorDictPrimer({"h": Unbounded((8,))}, expand_specs=True))
    cell = TensorDictModule(nn.GRUCell(4, 8), ["observation", "h"], [("next", "h")])
    network = actor(env, cell, TensorDictModule(nn.Linear(8, 2), [("next", "h")], ["action_value"]))
    assert first_step(network, env)["h"].shape == (1, 8)
    row = deployed_row("recurrent", network, env)
    assert row["latency_runtime"] == "onnxruntime" and row["latency_ms"] > 0


def test_a_network_that_cannot_be_exported_has_eager_latency_and_says_so(env: EnvBase) -> None:
    """One that draws random numbers computes other values each time."""
    noisy = TensorDictModule(Noisy(), ["observation"], ["action_value"])
    said = "'noisy' has the latency of eager PyTorch, since it cannot be exported: the exported program must compute"
    with pytest.warns(UserWarning, match=said):
        row = deployed_row("noisy", actor(env, noisy), env)
    assert row["latency_runtime"] == "torch" and row["latency_ms"] > 0


def test_a_network_that_cannot_be_run_on_one_observation_has_no_latency(env: EnvBase) -> None:
    unknown = TensorDictModule(nn.Linear(4, 2), ["unknown"], ["action_value"])
    with (
        pytest.warns(UserWarning, match="'unknown' has the latency of eager PyTorch"),
        pytest.warns(UserWarning, match="the report has no latency of 'unknown': "),
    ):
        row = deployed_row("unknown", actor(env, unknown), env)
    assert row == {"latency_ms": None, "latency_runtime": None}


def test_a_network_of_bytes_has_integers_beside_its_floats() -> None:
    """On states that the teacher met; a student that reads another entry has none."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (512, 4, 12, 12), dtype=torch.uint8, generator=generator)
    pixels = coarse.repeat_interleave(7, 2).repeat_interleave(7, 3)
    env = AtariVecEnv("pong", 1, seed=0)
    states = env.reset().select("pixels").expand(512).clone().set("pixels", pixels)
    network = make_tower("net17", env.action_spec, seed=0)
    row = deployed_row("net17", network, env, states)
    assert row["latency_int8_ms"] > 0 and 0.9 <= row["agreement_int8"] < 1 and 0 < row["regret_int8"] <= 0.01
    assert num_parameters(network) < row["file_bytes_int8"] < 2 * num_parameters(network) < row["file_bytes"] / 1.9
    assert "latency_int8_ms" not in deployed_row("net17", network, env, states.rename_key_("pixels", "others"))
    env.close()
