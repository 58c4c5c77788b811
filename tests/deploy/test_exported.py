"""An exported student plays as the network that it was made from."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import GRUModule, QValueModule

from torchrl_rtpd import AtariVecEnv, Evaluator, export_student, make_actor
from torchrl_rtpd.deploy import load_exported

FORMATS = {"onnx": ".onnx", "numpy": ".npz", "pt2": ".pt2"}


@pytest.mark.parametrize("form", FORMATS)
def test_the_file_plays_the_games_of_its_network(tmp_path: Path, form: str) -> None:
    """The same scores on the same seeds, random actions included, and no thread of torch's fewer afterwards."""
    if form == "onnx":
        pytest.importorskip("onnxruntime", reason="needs the export extra")
    evaluator = Evaluator(partial(AtariVecEnv, "ms_pacman", 2, max_frames=400), episodes=2)
    student = make_actor("net17", evaluator.env.action_spec, seed=3)
    export_student(student, tmp_path / "net17", formats=[form])
    threads = torch.get_num_threads()
    policy = load_exported(tmp_path / f"net17{FORMATS[form]}")
    assert evaluator(policy, seed=5).scores == evaluator(student, seed=5).scores
    assert list(policy.in_keys) == ["pixels"] and list(policy.out_keys) == ["action_value", "action"]
    assert torch.get_num_threads() == threads and not list(policy.parameters())
    evaluator.close()


def test_values_are_those_of_the_network(tmp_path: Path) -> None:
    student = make_actor("net1", Categorical(6), seed=0)
    export_student(student, tmp_path / "net1", formats=["numpy"])
    states = TensorDict({"pixels": torch.randint(256, (5, 4, 84, 84), dtype=torch.uint8)}, [5])
    found, own = load_exported(tmp_path / "net1.npz")(states.clone()), student(states.clone())
    torch.testing.assert_close(found["action_value"], own["action_value"], rtol=1e-4, atol=1e-4)
    assert found["action"].equal(own["action"]) and found["action"].dtype == torch.int64


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no exported student at .*net9\.onnx: give a file"):
        load_exported(tmp_path / "net9.onnx")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "net1.txt").write_text("no student")
    with pytest.raises(ValueError, match=r"the file must end in one of .*: got net1\.txt"):
        load_exported(tmp_path / "net1.txt")


def test_students_that_remember_are_refused(tmp_path: Path) -> None:
    """What a memory is called in the file, nobody hands on from step to step."""
    pytest.importorskip("onnxruntime", reason="needs the export extra")
    memory = GRUModule(input_size=3, hidden_size=5, in_key="seen", out_key="features")
    head = TensorDictModule(nn.Linear(5, 4), ["features"], ["action_value"])
    student = TensorDictSequential(memory, head, QValueModule(spec=Categorical(4)))
    export_student(student, tmp_path / "gru", example={"seen": torch.zeros(1, 3)})
    with pytest.raises(
        ValueError, match=r"got \['action_value', 'action', .*\] in gru\.onnx, of a student that remembers"
    ):
        load_exported(tmp_path / "gru.onnx")
