"""Students as files: all of them, checked by their own runtimes, and nothing written where one is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Categorical, LazyTensorStorage, OneHot, TensorDictReplayBuffer
from torchrl.modules import EGreedyModule, ProbabilisticActor, QValueActor, QValueModule

from torchrl_rtpd.deploy.check import check_file, main, onnx_session
from torchrl_rtpd.deploy.export import ExportReport, export_student
from torchrl_rtpd.networks.running import bare_network
from torchrl_rtpd.networks.towers import make_actor

pytest.importorskip("onnx", reason="needs the export extra")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the export extra")
needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

ALL = ("onnx", "onnx_int8", "pt2", "c", "numpy")


def student(seed: int = 0, num_actions: int = 6) -> QValueActor:
    return make_actor("net17", Categorical(num_actions), seed=seed)


def states(count: int = 512) -> torch.Tensor:
    """Coarse patterns ``[count, 4, 84, 84]``, which tell actions apart better than noise does."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (count, 4, 12, 12), dtype=torch.uint8, generator=generator)
    return coarse.repeat_interleave(7, 2).repeat_interleave(7, 3)


def run_onnx(path: Path, **inputs: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnx_session(onnxruntime, path)
    names = [output.name for output in session.get_outputs()]
    given = {name: tensor.numpy() for name, tensor in inputs.items()}
    return dict(zip(names, session.run(None, given), strict=True))


class Noisy(nn.Module):
    """A network whose values are never twice the same."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return observation + torch.rand_like(observation)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """All formats of ``net17``, made once."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    metadata = {"game": "pong", "frame_skip": 4, "action_meanings": ["NOOP", "FIRE"], "score": 17.5, "commit": "abc"}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # a run of the files must leave nothing beside them
        return export_student(student(), folder / "net17", formats=ALL, calibration=states(), metadata=metadata)


def test_all_formats_of_a_student_lie_beside_their_card(exported: ExportReport) -> None:
    suffixes = (".onnx", ".int8.onnx", ".pt2", ".h", ".c", ".npz", "_numpy.py", ".json", ".md")
    assert {entry.name for entry in exported.card.parent.iterdir()} == {f"net17{suffix}" for suffix in suffixes}
    assert list(exported.files) == ["onnx", "onnx_int8", "pt2", "c", "c_int8", "numpy"]
    for entry in exported.files.values():
        assert entry.path.stat().st_size == entry.bytes
        assert entry.path.parent == exported.card.parent
    assert exported.files["onnx_int8"].bytes <= 50_000
    assert exported.files["pt2"].bytes < 217_381  # before, with the example's storage inside


def test_files_of_floats_choose_the_students_actions_and_integers_nearly_all(exported: ExportReport) -> None:
    for name, entry in exported.files.items():
        if name.endswith("int8"):
            assert entry.agreement is not None and entry.agreement >= 0.9
            assert entry.regret is not None and entry.regret <= 0.02
        else:
            assert (entry.agreement, entry.regret) == (1.0, 0.0)


def test_the_card_says_what_goes_in_and_comes_out(exported: ExportReport) -> None:
    card = json.loads(exported.card.read_text())
    assert card["inputs"] == [
        {
            "name": "pixels",
            "shape": [4, 84, 84],
            "dtype": "uint8",
            "scaling": "inside the file: give raw numbers, 0..255",
        }
    ]
    assert card["outputs"] == [
        {"name": "action_value", "shape": [6], "dtype": "float32"},
        {"name": "action", "shape": [], "dtype": "int64"},
    ]
    assert card["frame_order"] == "oldest first, newest last"
    assert card["parameters"] == 29_214
    # 400 places of 8 filters of 256, 81 of 128, 49 of 72, and the dense layers
    assert card["multiply_adds"] == 400 * 8 * 256 + 81 * 8 * 128 + 49 * 8 * 72 + 392 * 64 + 64 * 6
    assert card["metadata"]["score"] == 17.5
    assert np.shape(card["self_check"]["outputs"]["onnx"]["action_value"]) == (16, 6)
    page = exported.card.with_suffix(".md").read_text()
    assert "- Game: pong\n- Frame skip: 4\n- Actions: ['NOOP', 'FIRE']\n- Score of the float network: 17.5\n" in page
    assert "| onnx_int8 | net17.int8.onnx |" in page


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("form", ["onnx", "numpy", "pt2"])
def test_a_file_computes_the_students_values_at_any_batch_size(exported: ExportReport, form: str, batch: int) -> None:
    observations = states()[:batch]
    wanted = bare_network(student())(observations).detach()
    path = exported.files[form].path
    if form == "onnx":
        found = run_onnx(path, pixels=observations)
        assert found["action"].dtype == np.int64
        assert found["action"].tolist() == wanted.argmax(-1).tolist()
        values = torch.from_numpy(found["action_value"])
    elif form == "numpy":
        namespace: dict = {"__file__": str(path.with_name("net17_numpy.py"))}
        exec(path.with_name("net17_numpy.py").read_text(), namespace)
        values = torch.from_numpy(namespace["values"](observations.numpy()))
        assert namespace["action"](observations.numpy()).tolist() == wanted.argmax(-1).tolist()
    else:
        values, _ = torch.export.load(path).module()(observations)
    torch.testing.assert_close(values.detach(), wanted, atol=1e-5, rtol=1e-5)


def test_the_onnx_file_is_one_that_old_runtimes_read_and_tells_nothing_of_this_machine(exported: ExportReport) -> None:
    import onnx

    for form in ("onnx", "onnx_int8"):
        path = exported.files[form].path
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model, full_check=True)
        assert [entry.version for entry in model.opset_import] == [13]
        assert model.ir_version == 7
        assert not any(tensor.external_data for tensor in model.graph.initializer)
        (pixels,) = model.graph.input
        assert pixels.type.tensor_type.shape.dim[0].dim_param == "batch"
    for entry in exported.card.parent.iterdir():
        assert str(Path.cwd()).encode() not in entry.read_bytes(), entry.name
        assert str(exported.card.parent).encode() not in entry.read_bytes(), entry.name


def test_integers_read_raw_bytes_and_multiply_by_seven_bits(exported: ExportReport) -> None:
    """Larger weights saturate on processors with AVX2 but without VNNI."""
    import onnx

    model = onnx.load(exported.files["onnx_int8"].path)
    constants = {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}
    assert constants["in_scale0"] == 1
    assert constants["weight_scale0"].shape == (8,)
    for place in range(4):
        assert constants[f"weight{place}"].dtype == np.int8
        assert np.abs(constants[f"weight{place}"]).max() == 63
    assert constants["head_weight"].dtype == np.float32


# Checks in a process of its own


def without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m torchrl_rtpd.deploy`` where nothing of torch can be imported."""
    program = """
import runpy, sys
for name in ("torch", "torchrl", "tensordict", "safetensors", "gymnasium"):
    sys.modules[name] = None
sys.argv = ["torchrl_rtpd.deploy", *sys.argv[1:]]
runpy.run_module("torchrl_rtpd.deploy", run_name="__main__")
"""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", ["net17.onnx", "net17.int8.onnx", "net17.npz", "net17_numpy.py"])
def test_a_file_is_checked_without_torch(exported: ExportReport, name: str) -> None:
    done = without_torch("check", str(exported.card.with_name(name)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "self-check passed" in done.stdout


@needs_compiler
def test_c_is_compiled_with_warnings_as_errors_and_checked_without_torch(exported: ExportReport) -> None:
    done = without_torch("check", "--json", str(exported.files["c"].path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [json.loads(line)["format"] for line in done.stdout.splitlines()] == ["c", "c_int8"]


def test_a_program_of_torch_needs_torch(exported: ExportReport) -> None:
    done = without_torch("check", str(exported.files["pt2"].path))
    assert done.returncode == 2
    assert "needs torch" in done.stdout


def test_a_file_that_was_changed_fails(exported: ExportReport, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for entry in exported.card.parent.iterdir():
        shutil.copy(entry, tmp_path)
    arrays = dict(np.load(tmp_path / "net17.npz"))
    np.savez(tmp_path / "net17.npz", **{**arrays, "bias4": arrays["bias4"] + 1})
    assert main(["check", str(tmp_path / "net17.npz")]) == 1
    assert "action_value differs by up to 1" in capsys.readouterr().out


def test_files_that_cannot_be_checked_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "student.txt").touch()
    assert main(["check", str(tmp_path / "nowhere.onnx"), str(tmp_path / "student.txt")]) == 2
    out = capsys.readouterr().out
    assert "no file at" in out
    assert "must end in one of .onnx, .npz, .py, .c, .h, .pt2 or .json: got student.txt" in out


def test_a_card_checks_all_files_that_it_lists(exported: ExportReport, tmp_path: Path) -> None:
    for name in ("net17.npz", "net17_numpy.py", "net17.onnx"):
        shutil.copy(exported.card.with_name(name), tmp_path)
    card = json.loads(exported.card.read_text())
    card["files"] = {name: card["files"][name] for name in ("onnx", "numpy")}
    (tmp_path / "net17.json").write_text(json.dumps(card))
    outcomes = list(check_file(tmp_path / "net17.json"))
    assert [outcome.format for outcome in outcomes] == ["onnx", "numpy"]
    assert not any(outcome.problems for outcome in outcomes)


# Networks of other kinds


def parts(kind: str) -> tuple[nn.Module, TensorDict]:
    """Actors of several parts, and an example."""
    torch.manual_seed(0)
    first = TensorDictModule(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), ["obs"], ["h"])
    head = TensorDictModule(nn.Linear(8, 3), ["h"], ["action_value"])
    choice = QValueModule(spec=Categorical(3))
    example = TensorDict({"obs": torch.randn(5, 4), "goal": torch.randn(5, 2), "h": torch.randn(5, 8)}, [5])
    if kind == "encoder and head":
        return TensorDictSequential(first, head, choice), example
    if kind == "normaliser and network":
        norm = nn.BatchNorm1d(4)
        norm(torch.randn(100, 4) * 3 + 1)
        network = TensorDictModule(nn.Linear(4, 3), ["normed"], ["action_value"])
        return TensorDictSequential(TensorDictModule(norm, ["obs"], ["normed"]), network, choice), example
    if kind == "exploration behind":
        return TensorDictSequential(first, head, choice, EGreedyModule(Categorical(3), eps_init=1.0)), example
    if kind == "one-hot actions":
        return QValueActor(nn.Linear(4, 3), in_keys=["obs"], spec=OneHot(3)), example
    if kind == "two inputs":
        both = TensorDictModule(nn.Bilinear(4, 2, 8), ["obs", "goal"], ["h"])
        return TensorDictSequential(both, head, choice), example
    if kind == "policy":
        logits = TensorDictSequential(first, TensorDictModule(nn.Linear(8, 3), ["h"], ["logits"]))
        distribution = torch.distributions.Categorical
        return ProbabilisticActor(logits, in_keys=["logits"], distribution_class=distribution), example
    memory = TensorDictModule(nn.GRUCell(4, 8), ["obs", "h"], [("next", "h")])
    values = TensorDictModule(nn.Linear(8, 3), [("next", "h")], ["action_value"])
    return TensorDictSequential(memory, values, choice), example


KINDS = {
    "encoder and head": (["obs"], ["action_value", "action"]),
    "normaliser and network": (["obs"], ["action_value", "action"]),
    "exploration behind": (["obs"], ["action_value", "action"]),
    "one-hot actions": (["obs"], ["action_value", "action"]),
    "two inputs": (["obs", "goal"], ["action_value", "action"]),
    "policy": (["obs"], ["logits", "action"]),
    "recurrent": (["obs", "h"], ["action_value", "action", "next_h"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_several_parts_is_exported_whole(tmp_path: Path, kind: str) -> None:
    network, example = parts(kind)
    network.eval()
    formats = ("onnx", "pt2") if kind in ("two inputs", "recurrent") else ("onnx",)
    report = export_student(network, tmp_path / "student", example=example, formats=formats)
    in_names, out_names = KINDS[kind]
    found = run_onnx(report.files["onnx"].path, **{name: example[name] for name in in_names})
    assert list(found) == out_names
    wanted = TensorDictSequential(*list(network)[:-1])(example.clone()) if kind == "exploration behind" else None
    wanted = network(example.clone()) if wanted is None else wanted
    torch.testing.assert_close(torch.from_numpy(found[out_names[0]]), wanted[out_names[0]].detach())
    assert found["action"].tolist() == wanted[out_names[0]].argmax(-1).tolist()
    if kind == "recurrent":
        torch.testing.assert_close(torch.from_numpy(found["next_h"]), wanted["next", "h"].detach())
    if "pt2" not in formats:
        return
    program = torch.export.load(report.files["pt2"].path).module()
    torch.testing.assert_close(program(*(example[name] for name in in_names))[0], torch.from_numpy(found[out_names[0]]))


@needs_compiler
@pytest.mark.parametrize("kind", ["encoder and head", "normaliser and network", "policy"])
def test_parts_that_form_a_chain_become_c_and_numpy(tmp_path: Path, kind: str) -> None:
    network, example = parts(kind)
    report = export_student(network, tmp_path / "17 parts", example=example, formats=("c", "numpy"))
    assert report.notes == ["c holds no 8-bit integers: no calibration states."]
    assert all(entry.latency_ms is not None for entry in report.files.values())  # so the self-check ran


def test_what_a_format_cannot_hold_is_refused_before_a_file_is_written(tmp_path: Path) -> None:
    network, example = parts("recurrent")
    for form in ("c", "numpy", "onnx_int8"):
        with pytest.raises(
            ValueError, match=rf"format {form} holds chains of .*: it has 2 inputs; export it as onnx or"
        ):
            export_student(network, tmp_path / "student", example=example, formats=("onnx", form))
    padded = nn.Sequential(nn.Conv2d(4, 2, 3, padding=1), nn.Flatten(), nn.Linear(200, 3))
    with pytest.raises(ValueError, match="it has a convolution with padding"):
        export_student(padded, tmp_path / "student", example=torch.zeros(2, 4, 10, 10), formats=["c"])
    assert not any(tmp_path.iterdir())


def test_other_activations_and_branches_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"aten\.tanh\.default is neither a convolution, a dense layer nor ReLU"):
        export_student(
            nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)),
            tmp_path / "student",
            example=torch.zeros(2, 4),
            formats=["numpy"],
        )


def test_a_network_that_draws_random_numbers_is_refused_and_the_earlier_file_stays(tmp_path: Path) -> None:
    report = export_student(nn.Linear(4, 3), tmp_path / "student", example=torch.ones(2, 4))
    before = {entry: entry.read_bytes() for entry in tmp_path.iterdir()}
    assert report.files["onnx"].path in before
    with pytest.raises(RuntimeError, match=r"they differ by up to \d.*; a student that draws random numbers"):
        export_student(Noisy(), tmp_path / "student", example=torch.ones(2, 4))
    assert {entry: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_exporting_leaves_the_student_as_it_was(tmp_path: Path) -> None:
    """Dropout is exported switched off, and stays switched on in the student."""
    layers = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    network = TensorDictModule(layers, in_keys=["observation"], out_keys=["action_value"])
    observation = torch.ones(1, 4)
    report = export_student(network, tmp_path / "student", example=observation)
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    found = run_onnx(report.files["onnx"].path, observation=observation)
    torch.testing.assert_close(torch.from_numpy(found["action_value"]), layers[0](observation).detach())


@pytest.mark.parametrize("precision", ["bfloat16", "float64", "autocast", "compiled", "compiled inside"])
def test_students_of_any_precision_compiled_or_not_are_exported_in_single(tmp_path: Path, precision: str) -> None:
    autocast = torch.bfloat16 if precision == "autocast" else None
    network = make_actor("net17", Categorical(6), seed=0, autocast_dtype=autocast)
    plain = make_actor("net17", Categorical(6), seed=0)
    if precision in ("bfloat16", "float64"):
        network.to(getattr(torch, precision))
        plain.to(getattr(torch, precision)).float()
    elif precision == "compiled":
        network = torch.compile(network)
    elif precision == "compiled inside":
        network.module[0].module = torch.compile(network.module[0].module)
    report = export_student(network, tmp_path / "net17", formats=("onnx", "numpy"))
    values = run_onnx(report.files["onnx"].path, pixels=states()[:3])["action_value"]
    wanted = bare_network(plain)(states()[:3]).detach()
    torch.testing.assert_close(torch.from_numpy(values), wanted, atol=1e-5, rtol=1e-5)


def test_an_example_brings_nothing_of_its_storage_into_the_file(tmp_path: Path) -> None:
    rollout = torch.zeros(2000, 64)
    report = export_student(nn.Linear(64, 3), tmp_path / "student", example=rollout[:2], formats=["pt2"])
    assert report.files["pt2"].bytes < 20_000


@pytest.mark.parametrize("source", ["states", "replay"])
def test_ranges_come_from_states_or_a_replay(tmp_path: Path, source: str) -> None:
    calibration: object = states()
    if source == "replay":
        calibration = TensorDictReplayBuffer(storage=LazyTensorStorage(600), batch_size=32)
        calibration.extend(TensorDict({"pixels": states(600)}, [600]))
    report = export_student(student(), tmp_path / "net17", formats=["onnx_int8"], calibration=calibration)
    assert report.files["onnx_int8"].latency_ms is not None


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"formats": ["tflite"]}, ValueError, r"formats must be some of onnx, .*: got \['tflite'\]"),
        ({"formats": []}, ValueError, r"formats must be some of onnx, .*: got \[\]"),
        ({"metadata": {"game": object}}, ValueError, "metadata must be of JSON's types"),
        ({"metadata": {"score": float("nan")}}, ValueError, "metadata must be of JSON's types: Out of range float"),
        ({"metadata": {"game": "\ud800"}}, ValueError, r"metadata must be of JSON's types: .* surrogates not allowed"),
        ({"metadata": ["pong"]}, TypeError, "metadata must be a dictionary: got list"),
        ({"example": [states(2)]}, TypeError, "example must be observations or several by key: got list"),
        ({"example": {"pixels": np.zeros((2, 4, 84, 84))}}, TypeError, "must hold tensors: got ndarray for 'pixels'"),
        ({"formats": ["onnx_int8"]}, ValueError, "calibration must give states for 8-bit integers: got None"),
        (
            {"formats": ["onnx_int8"], "calibration": torch.zeros(4, 4, 84, 84, dtype=torch.uint8)},
            ValueError,
            "at least 512 states of whole games: got 4",
        ),
        ({"formats": ["onnx_int8"], "calibration": "pong"}, TypeError, "or an environment: got str"),
        (
            {"formats": ["onnx_int8"], "calibration": torch.zeros(512, 4)},
            ValueError,
            r"calibration must hold uint8 of shape \[4, 84, 84\]: got float32 of \[4\]",
        ),
    ],
)
def test_bad_arguments_are_refused_before_a_folder_is_made(
    tmp_path: Path, arguments: dict, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        export_student(student(), tmp_path / "out" / "net17", **arguments)
    assert not any(tmp_path.iterdir())


def test_inputs_that_no_example_tells_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"observations that the student reads, \['observation'\]: got None"):
        export_student(nn.Linear(4, 3), tmp_path / "student")
    network, example = parts("two inputs")
    with pytest.raises(ValueError, match=r"got none of \['goal'\]"):
        export_student(network, tmp_path / "student", example=example.exclude("goal"))
    with pytest.raises(TypeError, match="student must be a network: got str"):
        export_student("net17", tmp_path / "student")


def test_two_threads_export_at_once(tmp_path: Path) -> None:
    """:func:`torch.export.export` serves one thread at a time."""
    with ThreadPoolExecutor(2) as pool:
        made = [
            pool.submit(export_student, nn.Linear(4, 3), tmp_path / name, formats=["numpy"], example=torch.zeros(2, 4))
            for name in ("one", "two")
        ]
    assert [work.result().files["numpy"].path.name for work in made] == ["one.npz", "two.npz"]


def test_a_path_needs_a_name_and_one_that_no_folder_has(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must name the files: got '\.'; give a folder and a name"):
        export_student(student(), "")
    (tmp_path / "net17.npz").mkdir()
    with pytest.raises(IsADirectoryError, match=r"files must not have the name of a folder: got \['net17.npz'\]"):
        export_student(student(), tmp_path / "net17", formats=["numpy"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["net17.npz"]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    network = nn.Linear(4, 3)
    network.weight.data[1, 2] = torch.nan
    with pytest.raises(ValueError, match="the student's weights must be finite: 'weight' is not"):
        export_student(network, tmp_path / "student", example=torch.zeros(2, 4))


def test_an_action_mask_is_refused(tmp_path: Path) -> None:
    network = QValueActor(nn.Linear(4, 3), in_keys=["obs"], spec=Categorical(3), action_mask_key="mask")
    with pytest.raises(ValueError, match="an action mask cannot be exported: got a QValueModule that reads 'mask'"):
        export_student(network, tmp_path / "student", example=torch.zeros(2, 4))


# Imports without torch


def test_the_package_alone_needs_no_torch_and_has_every_public_name() -> None:
    program = """
import sys
import torchrl_rtpd, torchrl_rtpd.deploy
assert "torch" not in sys.modules and "numpy" not in sys.modules
for name in torchrl_rtpd.__all__:
    assert getattr(torchrl_rtpd, name) is not None, name
assert torchrl_rtpd.functional.__name__ == "torchrl_rtpd.functional"
assert set(torchrl_rtpd.__all__) <= set(dir(torchrl_rtpd))
try:
    torchrl_rtpd.nothing
except AttributeError as error:
    assert "no attribute 'nothing'" in str(error)
else:
    raise AssertionError
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=120)
