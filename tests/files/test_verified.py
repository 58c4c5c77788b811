"""Checkpoints as files: what comes back, what a crash leaves, how much memory it takes."""

import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchrl.checkpoint import CheckpointError, GlobalRNGState

from torchrl_rtpd.files.tensorfile import write_tensors
from torchrl_rtpd.files.verified import VerifiedCheckpoint

ROOT = Path(__file__).parents[2]


class Part:
    """Something with a state."""

    def __init__(self, state=None):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state_dict):
        self.state = state_dict


def test_every_kind_of_value_comes_back(tmp_path):
    """Nested as it was, types and memory order included; numpy numbers as Python's."""
    state = {
        "plain": [None, True, 3, 0.5, "text", (1, (2,))],
        7: {"empty": {}, ("tuple", 1): []},
        "infinite": [math.inf, -math.inf],
        "numpy": np.float64(0.25),
        "scalar": torch.tensor(3, dtype=torch.int16),
        "nothing": torch.zeros(0, 4, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "channels_last": torch.arange(120.0).view(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "expanded": torch.tensor([1.0]).expand(3),
    }
    VerifiedCheckpoint(part=Part(state)).save(tmp_path / "checkpoint")
    part = Part()
    VerifiedCheckpoint(part=part).load(tmp_path / "checkpoint")
    assert part.state.keys() == state.keys()
    for key, value in state.items():
        found = part.state[key]
        if isinstance(value, torch.Tensor):
            assert found.dtype == value.dtype and torch.equal(found, value), key
        else:
            assert found == value, key
    for key in ("channels_last", "transposed"):
        assert part.state[key].stride() == state[key].stride()


def test_random_generators_come_back(tmp_path):
    """Python's, numpy's and torch's."""
    import random

    VerifiedCheckpoint(random=GlobalRNGState()).save(tmp_path / "checkpoint")
    wanted = random.random(), np.random.rand(), torch.rand(3).tolist()
    VerifiedCheckpoint(random=GlobalRNGState()).load(tmp_path / "checkpoint")
    assert (random.random(), np.random.rand(), torch.rand(3).tolist()) == wanted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_tensors_and_generator_come_back(tmp_path):
    """Streamed from the device piece by piece."""
    weights = torch.rand(10_000_000, device="cuda")
    VerifiedCheckpoint(random=GlobalRNGState(), part=Part({"weights": weights})).save(tmp_path / "checkpoint")
    wanted = torch.rand(3, device="cuda")
    part = Part()
    VerifiedCheckpoint(random=GlobalRNGState(), part=part).load(tmp_path / "checkpoint")
    assert torch.equal(torch.rand(3, device="cuda"), wanted)
    assert torch.equal(part.state["weights"], weights.cpu())


@pytest.mark.parametrize("size", [0, 1, 7, 5_000_000])
def test_tensors_are_read_by_the_library_that_defines_the_format(tmp_path, size):
    """Bit for bit, across the pieces in which they are written."""
    tensors = {"a": torch.rand(size), "b": torch.randint(0, 255, (size, 2), dtype=torch.uint8), "c": torch.tensor(1.0)}
    write_tensors(tensors, tmp_path / "file.safetensors")
    found = load_file(tmp_path / "file.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_type_the_format_lacks_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"hold F64, .*: got torch\.complex64 for 'z'"):
        write_tensors({"z": torch.zeros(1, dtype=torch.complex64)}, tmp_path / "file.safetensors")


def test_saving_takes_little_memory(tmp_path):
    """400 MB of tensors, on the CPU and out of order, are saved in less than 100 MB more than they take themselves."""
    script = """
import resource, sys, torch
from torchrl_rtpd.files.tensorfile import write_tensors
tensors = {str(i): torch.ones(25_000_000) for i in range(4)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_tensors(tensors, sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "large.safetensors")]
    megabytes = float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert megabytes < 100


def test_a_failed_save_leaves_the_checkpoint_before_and_nothing_else(tmp_path):
    """At every size of file at which the disk may be full; real errors of the system, by a limit on file sizes."""
    old, new = nn.Linear(30, 30), nn.Linear(30, 30)
    path = tmp_path / "checkpoint"
    VerifiedCheckpoint(network=old).save(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(file.stat().st_size for file in path.rglob("*") if file.is_file())
    failed = 0
    for size in range(0, largest + 200, 97):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            VerifiedCheckpoint(network=new).save(path)
        except OSError:
            failed += 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        found = nn.Linear(30, 30)
        VerifiedCheckpoint(network=found).load(path)
        assert torch.equal(found.weight, old.weight if size < largest else new.weight)
        assert list(tmp_path.iterdir()) == [path]
    assert failed > 30


def test_a_checkpoint_replaces_one_of_its_name(tmp_path):
    """Nothing of the old one is left beside it."""
    for value in (1.0, 2.0):
        VerifiedCheckpoint(part=Part({"value": value})).save(tmp_path / "checkpoint")
    part = Part()
    VerifiedCheckpoint(part=part).load(tmp_path / "checkpoint")
    assert part.state == {"value": 2.0}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_folder_of_another_kind_is_refused(tmp_path):
    """So is one of TorchRL's own, which has no checksums."""
    from torchrl.checkpoint import Checkpoint

    Checkpoint(network=nn.Linear(1, 1)).save(tmp_path / "torchrl")
    for path in (tmp_path, tmp_path / "torchrl", tmp_path / "missing"):
        with pytest.raises(CheckpointError, match=r"must be a checkpoint folder with sealed\.json"):
            VerifiedCheckpoint.verify(path)


def test_a_network_of_another_size_is_refused_by_the_name_of_its_part(tmp_path):
    VerifiedCheckpoint(network=nn.Linear(2, 3)).save(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"(?s)component 'network'.*size mismatch for weight"):
        VerifiedCheckpoint(network=nn.Linear(2, 4)).load(tmp_path / "checkpoint")


def test_the_names_in_a_seal_stay_whatever_our_modules_are_called(tmp_path):
    """Or older checkpoints could not be read."""
    path = VerifiedCheckpoint(network=nn.Linear(2, 3)).save(tmp_path / "checkpoint")
    assert json.loads((path / "sealed.json").read_text())["format"] == "torchrl_rtpd.checkpoint"
    assert json.loads((path / "manifest.json").read_text())["components"]["network"]["adapter"] == "torchrl_rtpd.state"
