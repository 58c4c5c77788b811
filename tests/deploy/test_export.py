"""Students as programs: whole, checked, and of use without this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_rtpd.deploy.export import export_student
from torchrl_rtpd.networks.running import bare_network
from torchrl_rtpd.networks.towers import make_actor


def pixels(batch: int, seed: int = 0) -> torch.Tensor:
    """Random stacks ``[batch, 4, 84, 84]`` uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, 4, 84, 84), dtype=torch.uint8, generator=generator)


def student(seed: int = 0, num_actions: int = 6, name: str = "net17") -> QValueActor:
    return make_actor(name, Categorical(num_actions), seed=seed)


class Noisy(nn.Module):
    """A network whose values are never twice the same."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return observation + torch.rand_like(observation)


# Programs


def test_an_exported_student_runs_without_this_package_at_any_batch_size(tmp_path: Path) -> None:
    """A fresh process that can import neither torchrl_rtpd nor torchrl nor tensordict gets the same values."""
    network = student()
    path = export_student(network, pixels(2), tmp_path / "out" / "net17.pt2")
    assert [entry.name for entry in path.parent.iterdir()] == ["net17.pt2"]
    inputs = [pixels(batch, seed=batch) for batch in (1, 2, 7)]
    torch.save(inputs, tmp_path / "inputs.pt")
    program = """
import sys
for name in ("torchrl_rtpd", "torchrl", "tensordict"):
    sys.modules[name] = None
import torch
network = torch.export.load(sys.argv[1]).module()
torch.save([network(pixels).detach() for pixels in torch.load(sys.argv[2])], sys.argv[3])
assert not any(name.startswith(("torchrl.", "tensordict.")) for name in sys.modules)
"""
    arguments = [str(path), str(tmp_path / "inputs.pt"), str(tmp_path / "outputs.pt")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", program, *arguments]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=120)
    for given, found in zip(inputs, torch.load(tmp_path / "outputs.pt"), strict=True):
        assert found.shape == (len(given), 6)
        torch.testing.assert_close(found, bare_network(network)(given).detach(), atol=1e-5, rtol=0)


def test_exporting_leaves_the_student_as_it_was(tmp_path: Path) -> None:
    """Dropout is exported switched off, and stays switched on in the student."""
    network = TensorDictModule(
        nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), in_keys=["observation"], out_keys=["action_value"]
    )
    observation = torch.ones(5, 4)
    program = torch.export.load(export_student(network, observation, tmp_path / "student.pt2")).module()
    assert all(module.training for module in network.modules())
    torch.testing.assert_close(program(observation), network.module[0](observation))


def test_a_program_that_computes_other_values_is_not_kept(tmp_path: Path) -> None:
    """The file on disk stays the earlier one."""
    path = export_student(nn.Linear(4, 3), torch.ones(2, 4), tmp_path / "student.pt2")
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match=r"they differ by up to \d.*; a student that draws random numbers"):
        export_student(Noisy(), torch.ones(2, 4), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_example_of_one_observation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least 2 observations: got 1; repeat it"):
        export_student(student(), pixels(1), tmp_path / "student.pt2")
    assert not any(tmp_path.iterdir())


def test_the_bare_network_is_found_inside_any_actor() -> None:
    linear = nn.Linear(4, 2)
    actor = QValueActor(linear, in_keys=["observation"], spec=Categorical(2))
    exploration = EGreedyModule(Categorical(2))
    plain = TensorDictModule(linear, in_keys=["observation"], out_keys=["action_value"])
    for network in (linear, actor, plain, TensorDictSequential(actor, exploration)):
        assert bare_network(network) is linear
