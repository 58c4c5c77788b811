"""Networks measured as they will be deployed: by onnxruntime where it is, in floats and in 8-bit integers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor, QValueModule

from torchrl_rtpd.deploy import deployed_latency, export_student, measure_deployment
from torchrl_rtpd.evaluation.scores import latency_ms
from torchrl_rtpd.networks.towers import make_actor

pytest.importorskip("onnx", reason="needs the export extra")
pytest.importorskip("onnxruntime", reason="needs the export extra")


def student(num_actions: int = 6) -> QValueActor:
    return make_actor("net17", Categorical(num_actions), seed=0)


def states(count: int = 512) -> torch.Tensor:
    """Coarse patterns ``[count, 4, 84, 84]``."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (count, 4, 12, 12), dtype=torch.uint8, generator=generator)
    return coarse.repeat_interleave(7, 2).repeat_interleave(7, 3)


def test_a_small_student_is_faster_where_it_is_deployed_than_in_eager_torch() -> None:
    """Several times as fast, so that a busy machine does not hide it."""
    latency = deployed_latency(student())
    assert latency.runtime == "onnxruntime"
    assert 0 < latency.milliseconds < latency_ms(student(), states(1))


def test_integers_are_those_of_the_exported_file(tmp_path: Path) -> None:
    """Agreement and regret are what the export finds by integer arithmetic of its own, up to single states."""
    found = measure_deployment(student(), None, states()).integers
    report = export_student(student(), tmp_path / "net17", formats=["onnx_int8"], calibration=states())
    wanted = report.files["onnx_int8"]
    assert found is not None and wanted.agreement is not None and wanted.regret is not None
    assert found.milliseconds > 0
    assert found.agreement == pytest.approx(wanted.agreement, abs=0.02) and found.agreement < 1
    assert found.regret == pytest.approx(wanted.regret, abs=0.002) and found.regret > 0
    assert 0.95 * wanted.bytes < found.bytes < wanted.bytes  # without metadata


@pytest.mark.parametrize(
    "given", [None, states(511), states().float(), states()[..., :42]], ids=["none", "few", "floats", "other size"]
)
def test_without_states_that_fit_there_are_no_integers(given: torch.Tensor | None) -> None:
    measured = measure_deployment(student(), None, given)
    assert measured.integers is None and measured.latency.runtime == "onnxruntime"


def test_a_network_of_floats_has_no_integers() -> None:
    network = QValueActor(nn.Linear(4, 3), in_keys=["observation"], spec=Categorical(3))
    assert measure_deployment(network, torch.zeros(1, 4), torch.zeros(512, 4)).integers is None


def test_several_parts_and_inputs_are_timed_as_one() -> None:
    both = TensorDictModule(nn.Bilinear(4, 2, 8), ["seen", "goal"], ["features"])
    head = TensorDictModule(nn.Linear(8, 3), ["features"], ["action_value"])
    network = TensorDictSequential(both, head, QValueModule(spec=Categorical(3)))
    example = TensorDict({"seen": torch.randn(1, 4), "goal": torch.randn(1, 2)}, [1])
    latency = deployed_latency(network, example)
    assert latency.runtime == "onnxruntime" and latency.milliseconds > 0


def test_without_onnxruntime_the_runtime_is_torch_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    threads = torch.get_num_threads()
    measured = measure_deployment(student(), None, states())
    assert measured.latency.runtime == "torch" and measured.latency.milliseconds > 0
    assert measured.integers is None and torch.get_num_threads() == threads
