"""Weights and programs as files: whole, checked, without code, and of use without this package."""

from __future__ import annotations

import os
import pickle
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
from torchrl_rtpd.files.weights import load_weights, save_weights
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


class Touches:
    """A pickled object that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


# Weights


def test_saved_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    """Also those in channels-last order, and into folders that do not exist yet."""
    saved, loaded = student(seed=0), student(seed=1)
    path = save_weights(saved, tmp_path / "some" / "where" / "net17.safetensors")
    load_weights(loaded, path)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(bare_network(loaded)(pixels(2)), bare_network(saved)(pixels(2)))
    assert [entry.name for entry in path.parent.iterdir()] == ["net17.safetensors"]


def test_saving_replaces_the_earlier_file(tmp_path: Path) -> None:
    path = save_weights(student(seed=0), tmp_path / "net17.safetensors")
    save_weights(student(seed=1), path)
    loaded = student(seed=2)
    load_weights(loaded, path)
    assert torch.equal(loaded.state_dict()["module.0.module.head.weight"], bare_network(student(seed=1)).head.weight)


def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    """Tensors that share memory cannot be written."""
    path = save_weights(nn.Linear(3, 3), tmp_path / "weights.safetensors")
    before = path.read_bytes()
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(RuntimeError, match="share memory"):
        save_weights(tied, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_weights_of_another_architecture_are_refused_and_change_nothing(tmp_path: Path) -> None:
    path = save_weights(student(), tmp_path / "net17.safetensors")
    other = student(seed=1, name="net5")  # 16 instead of 8 filters in the second convolution
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=r"net17\.safetensors holds another architecture: 3 tensors differ, "
        r"first module\.0\.module\.trunk\.2\.bias: the file has \[8\], the network \[16\]; "
        r"build the network with the sizes and actions it was saved with\.",
    ):
        load_weights(other, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_weights_for_another_number_of_actions_are_refused(tmp_path: Path) -> None:
    path = save_weights(student(num_actions=6), tmp_path / "net17.safetensors")
    with pytest.raises(ValueError, match=r"head\.bias: the file has \[6\], the network \[18\]"):
        load_weights(student(num_actions=18), path)


def test_a_tensor_that_the_file_lacks_is_named(tmp_path: Path) -> None:
    path = save_weights(nn.Linear(3, 2, bias=False), tmp_path / "linear.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors differ, first bias: the file has None, the network \[2\]"):
        load_weights(nn.Linear(3, 2), path)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_under_a_false_name_is_refused_and_executes_nothing(tmp_path: Path, writer: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "net17.safetensors"
    content = {**student().state_dict(), "extra": Touches(marker)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"net17\.safetensors must be a safetensors file written by save_weights"):
        load_weights(student(), path)
    assert not marker.exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_weights(student(), tmp_path / "nowhere.safetensors")


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
