"""Students with a memory: exported step by step, and played against the actor that they come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import GRUModule, LSTMModule, QValueModule

from torchrl_rtpd.deploy.check import check_file, onnx_session
from torchrl_rtpd.deploy.export import export_student

pytest.importorskip("onnx", reason="needs the export extra")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the export extra")

KINDS = {"lstm": LSTMModule, "gru": GRUModule}


def actor(kind: str, **kwargs) -> TensorDictSequential:
    torch.manual_seed(0)
    memory = KINDS[kind](input_size=3, hidden_size=5, in_key="seen", out_key="features", **kwargs)
    head = TensorDictModule(nn.Linear(5, 4), ["features"], ["action_value"])
    return TensorDictSequential(memory, head, QValueModule(spec=Categorical(4)))


def played(student: TensorDictSequential, seen: torch.Tensor, begins: torch.Tensor) -> tuple[list, list]:
    """Values and actions ``[T, B, ...]`` of the actor itself, which hands on its memory."""
    states = list(student[0].in_keys[1:-1])
    layers = student[0].lstm if isinstance(student[0], LSTMModule) else student[0].gru
    memory = {key: torch.zeros(seen.shape[1], layers.num_layers, layers.hidden_size) for key in states}
    values, actions = [], []
    for step in range(len(seen)):
        out = student(TensorDict({"seen": seen[step], "is_init": begins[step], **memory}, [seen.shape[1]]))
        memory = {key: out["next", key] for key in states}
        values.append(out["action_value"].tolist())
        actions.append(out["action"].tolist())
    return values, actions


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_file_plays_as_the_actor_does_and_forgets_where_games_begin(
    tmp_path: Path, kind: str, num_layers: int
) -> None:
    """Six steps of three games, the second of which begins again after the third step."""
    student = actor(kind, num_layers=num_layers)
    report = export_student(student, tmp_path / "student", example={"seen": torch.zeros(1, 3)})
    seen, begins = torch.randn(6, 3, 3), torch.zeros(6, 3, 1, dtype=torch.bool)
    begins[0], begins[3, 1] = True, True
    values, actions = played(student, seen, begins)
    session = onnx_session(onnxruntime, report.files["onnx"].path)
    names = [entry.name for entry in session.get_outputs()]
    states = [entry.name for entry in session.get_inputs() if entry.name.startswith("recurrent_state")]
    memory = {name: torch.zeros(3, num_layers, 5).numpy() for name in states}
    for step in range(6):
        given = {"seen": seen[step].numpy(), "is_init": begins[step].numpy(), **memory}
        out = dict(zip(names, session.run(None, given), strict=True))
        memory = {name: out[f"next_{name}"] for name in states}
        torch.testing.assert_close(torch.tensor(out["action_value"]), torch.tensor(values[step]))
        assert out["action"].tolist() == actions[step]


def test_a_program_of_a_recurrent_student_passes_its_self_check(tmp_path: Path) -> None:
    report = export_student(actor("lstm"), tmp_path / "student", formats=["pt2"], example={"seen": torch.zeros(1, 3)})
    (outcome,) = check_file(report.files["pt2"].path)
    assert outcome.problems == []


def test_the_student_is_left_as_it_is(tmp_path: Path) -> None:
    student = actor("gru")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    export_student(student, tmp_path / "student", example={"seen": torch.zeros(1, 3)})
    assert isinstance(student[0], GRUModule)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_layers_that_read_a_sequence_backwards_are_refused(tmp_path: Path) -> None:
    """``LSTMModule`` refuses both directions itself, so that the layer is set by hand."""
    student = actor("lstm")
    student[0].lstm.bidirectional = True
    with pytest.raises(ValueError, match="step by step: got a LSTMModule that is bidirectional or has a projection"):
        export_student(student, tmp_path / "student", example={"seen": torch.zeros(1, 3)})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["onnx_int8", "c", "numpy"])
def test_formats_of_our_own_kernels_refuse_a_memory(tmp_path: Path, form: str) -> None:
    with pytest.raises(ValueError, match=f"format {form} holds chains of .*; export it as onnx or pt2"):
        export_student(actor("gru"), tmp_path / "student", formats=[form], example={"seen": torch.zeros(1, 3)})


class Cell(nn.Module):
    """A step of a memory that its user wrote, and an action in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(3, 5), nn.Linear(5, 2)

    def forward(self, seen: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h, c = self.cell(seen, (h, c))
        return self.head(h).tanh(), h, c


@torch.no_grad()
def test_a_cell_that_writes_an_action_has_its_memory_once_in_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = TensorDictModule(Cell(), ["seen", "h", "c"], ["action", ("next", "h"), ("next", "c")])
    given = {"seen": torch.randn(3, 3), "h": torch.randn(3, 5), "c": torch.randn(3, 5)}
    report = export_student(student, tmp_path / "student", example=given)
    session = onnx_session(onnxruntime, report.files["onnx"].path)
    assert [entry.name for entry in session.get_outputs()] == ["action", "next_h", "next_c"]
    found = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
    for own, other in zip(student.module(*given.values()), found, strict=True):
        torch.testing.assert_close(torch.from_numpy(other), own)
