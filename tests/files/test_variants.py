"""Weights that read their input otherwise: scale and order are told by the file, the user, or recorded actions."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchrl.data import Categorical

from torchrl_rtpd.files.pretrained import load_pretrained
from torchrl_rtpd.networks.running import bare_network
from torchrl_rtpd.networks.towers import make_actor

SAYS_NOTHING = r"does not tell if its dense layer reads channels first or last"


def teacher(seed: int = 1) -> nn.Module:
    """Network ``net17`` whose greedy action is not always the same."""
    network = bare_network(make_actor("net17", Categorical(6), seed=seed))
    with torch.no_grad():
        network.head.weight.mul_(10)
    return network


def frames(count: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (count, 4, 12, 12), dtype=torch.uint8, generator=generator)
    return coarse.repeat_interleave(7, 2).repeat_interleave(7, 3)


def foreign(network: nn.Module, *, unscaled: bool = False, channels_last: bool = False) -> dict[str, torch.Tensor]:
    """Its weights under other names, as a network has them that reads 0..255 or flattens channels last."""
    names = iter(("conv1", "conv1", "conv2", "conv2", "conv3", "conv3", "fc", "fc", "q", "q"))
    state = {f"{next(names)}.{name.rpartition('.')[2]}": t.clone() for name, t in network.state_dict().items()}
    if unscaled:
        state["conv1.weight"] /= 255
    if channels_last:
        state["fc.weight"] = state["fc.weight"].unflatten(1, (8, 49)).transpose(1, 2).flatten(1).contiguous()
    return {name: tensor.contiguous() for name, tensor in state.items()}


def same_values(first: nn.Module, second: nn.Module) -> None:
    torch.testing.assert_close(first(frames()), second(frames()))


def loaded(path: Path, **arguments: object) -> tuple[nn.Module, str]:
    network = make_actor("net17", Categorical(6), seed=9)
    said = load_pretrained(network, path, **arguments)
    return bare_network(network), said


@pytest.mark.filterwarnings(f"ignore:.*{SAYS_NOTHING}:UserWarning")
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_first_layer_for_unscaled_pixels_is_recognised_folded_and_said(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"teacher.{suffix}"
    (torch.save if suffix == "pt" else save_file)(foreign(teacher(), unscaled=True), path)
    network, said = loaded(path)
    assert "by layers; pixels in 0..255 were folded into the first layer (times 255), from" in said
    same_values(network, teacher())


@pytest.mark.filterwarnings(f"ignore:.*{SAYS_NOTHING}:UserWarning")
@pytest.mark.parametrize("unscaled", [False, True])
def test_the_user_says_what_the_network_reads(tmp_path: Path, unscaled: bool) -> None:
    """Weights trained on 0..255 from PyTorch's own start are as large as those of scaled pixels."""
    torch.save(foreign(teacher(), unscaled=unscaled), tmp_path / "teacher.pt")
    network, _ = loaded(tmp_path / "teacher.pt", reads_bytes=unscaled)
    same_values(network, teacher())


def test_a_scale_between_the_two_is_doubted(tmp_path: Path) -> None:
    network = teacher()
    with torch.no_grad():
        network.trunk[0].weight.mul_(0.05)
    torch.save(foreign(network), tmp_path / "teacher.pt")
    with pytest.warns(UserWarning, match=r"channels first or last and if its pixels were in \[0, 1\] or in 0..255"):
        loaded(tmp_path / "teacher.pt")


def test_a_network_that_scales_no_pixels_takes_no_scale(tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "linear.pt")
    with pytest.raises(ValueError, match=r"reads_bytes must be None or False .*: got True for Linear"):
        load_pretrained(nn.Linear(4, 3), tmp_path / "linear.pt", reads_bytes=True)


def test_the_order_of_channels_is_a_warning(tmp_path: Path) -> None:
    save_file(foreign(teacher(), channels_last=True), tmp_path / "port.safetensors")
    with pytest.warns(
        UserWarning, match=rf"port\.safetensors {SAYS_NOTHING}: .* read as channels first, .*check_frames"
    ):
        loaded(tmp_path / "port.safetensors", reads_bytes=False)


def test_first_layers_of_a_usual_size_are_a_warning_unless_the_library_scales_pixels(tmp_path: Path) -> None:
    """Weights trained on 0..255 from PyTorch's own start are as large as those of scaled pixels."""
    for file in ("teacher.pt", "teacher.cleanrl_model"):
        torch.save(foreign(teacher()), tmp_path / file)
    with pytest.warns(UserWarning, match=r"last and if its pixels were in \[0, 1\] or in 0\.\.255: .* \[0, 1\]; pass"):
        loaded(tmp_path / "teacher.pt")
    _, said = loaded(tmp_path / "teacher.cleanrl_model")
    assert "pixels are taken to be in [0, 1], as CleanRL has them unless told otherwise" in said
    _, said = loaded(tmp_path / "teacher.cleanrl_model", reads_bytes=False)
    assert "taken to be" not in said


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("unscaled", [False, True])
def test_recorded_actions_tell_order_and_scale(tmp_path: Path, unscaled: bool, channels_last: bool) -> None:
    path = tmp_path / "port.safetensors"
    save_file(foreign(teacher(), unscaled=unscaled, channels_last=channels_last), path)
    actions = teacher()(frames()).argmax(-1)
    assert len(actions.unique()) > 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network, said = loaded(path, check_frames=(frames(), actions))
    assert "100.0% of check_frames agree" in said
    assert ("turned from channels last to channels first" in said) == channels_last
    same_values(network, teacher())


def test_other_actions_than_recorded_are_refused_and_change_nothing(tmp_path: Path) -> None:
    save_file(foreign(teacher()), tmp_path / "port.safetensors")
    network = make_actor("net17", Categorical(6), seed=9)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    actions = (teacher()(frames()).argmax(-1) + 1) % 6
    with pytest.raises(
        ValueError, match=r"at least 99 % of the actions in check_frames: got 0.0% as channels first, pix"
    ):
        load_pretrained(network, tmp_path / "port.safetensors", check_frames=(frames(), actions))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_recording_of_another_length_is_refused(tmp_path: Path) -> None:
    save_file(foreign(teacher()), tmp_path / "port.safetensors")
    with pytest.raises(ValueError, match=r"got \[64, 4, 84, 84\] and \[3\]; record one greedy action for each"):
        loaded(tmp_path / "port.safetensors", check_frames=(frames(), torch.zeros(3)))


def zipped(folder: Path, policy_kwargs: object, *, unscaled: bool, members: tuple[str, ...] = ("policy.pth",)) -> Path:
    """A zip as stable-baselines3 writes it, with the names of its CnnPolicy."""
    prefixes = ("cnn.0", "cnn.2", "cnn.4", "linear.0")
    names = [f"features_extractor.{prefix}" for prefix in prefixes]
    shapes = list(foreign(teacher(), unscaled=unscaled).values())
    state: dict[str, torch.Tensor] = {}
    for net, change in (("q_net", 0), ("q_net_target", 1)):
        for place, name in enumerate([*names, "q_net.0"]):
            state[f"{net}.{name}.weight"] = shapes[2 * place] + change
            state[f"{net}.{name}.bias"] = shapes[2 * place + 1] + change
    torch.save(state, folder / "policy.pth")
    with zipfile.ZipFile(folder / "dqn.zip", "w") as archive:
        archive.writestr("data", json.dumps({"policy_kwargs": policy_kwargs}))
        archive.writestr("_stable_baselines3_version", "2.9.0")
        for member in members:
            archive.write(folder / "policy.pth", member)
    return folder / "dqn.zip"


def test_settings_of_pixels_say_nothing_of_a_network_without_pixels(tmp_path: Path) -> None:
    torch.save({"q_net.q_net.0.weight": torch.ones(3, 4), "q_net.q_net.0.bias": torch.zeros(3)}, tmp_path / "mlp.pth")
    with zipfile.ZipFile(tmp_path / "mlp.zip", "w") as archive:
        archive.writestr("data", json.dumps({"policy_kwargs": {"normalize_images": False}}))
        archive.writestr("_stable_baselines3_version", "2.9.0")
        archive.write(tmp_path / "mlp.pth", "policy.pth")
    layer = nn.Linear(4, 3)
    load_pretrained(layer, tmp_path / "mlp.zip")
    assert layer.weight.sum() == 12


@pytest.mark.parametrize("unscaled", [False, True])
def test_a_zip_of_stable_baselines_says_its_scale(tmp_path: Path, unscaled: bool) -> None:
    """Its online network is taken; its names are PyTorch's, so that the order of channels is no question."""
    path = zipped(tmp_path, {"normalize_images": not unscaled}, unscaled=unscaled)
    network, said = loaded(path)
    assert "by layers; 'q_net.' was taken, not 'q_net_target.'" in said
    same_values(network, teacher())
    network, _ = loaded(tmp_path / "policy.pth")
    same_values(network, teacher())


def test_settings_that_are_serialised_objects_are_not_run(tmp_path: Path) -> None:
    path = zipped(tmp_path, {":type:": "dict", ":serialized:": "gASVAAAA"}, unscaled=False)
    same_values(loaded(path)[0], teacher())


def pickled(folder: Path, scaler: str, *, unscaled: bool, value: object = None) -> Path:
    """A file as d3rlpy's ``save`` writes it: the settings are JSON and the weights a file of torch.save."""
    file = io.BytesIO()
    state = foreign(teacher(), unscaled=unscaled)
    torch.save({"q_funcs": {f"0._encoder._cnn_layers.{name}": tensor for name, tensor in state.items()}}, file)
    config = json.dumps({"config": {"params": {"observation_scaler": {"type": scaler, "params": {}}}}})
    path = folder / "dqn.d3"
    path.write_bytes(pickle.dumps({"torch": file.getvalue(), "config": config, "version": value or "2.8.1"}))
    return path


@pytest.mark.parametrize("unscaled", [False, True])
def test_a_file_of_d3rlpy_says_its_scale(tmp_path: Path, unscaled: bool) -> None:
    network, _ = loaded(pickled(tmp_path, "none" if unscaled else "pixel", unscaled=unscaled))
    same_values(network, teacher())


def test_a_file_of_d3rlpy_that_standardises_its_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold tensors .*: its observation_scaler 'standard' is no layer"):
        loaded(pickled(tmp_path, "standard", unscaled=False))


def test_a_file_of_d3rlpy_that_names_a_function_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing that runs: it names builtins\.print"):
        loaded(pickled(tmp_path, "pixel", unscaled=False, value=print))


@pytest.mark.parametrize("change", ["cut", "longer than memory", "without settings"])
def test_a_damaged_file_of_d3rlpy_is_refused(tmp_path: Path, change: str) -> None:
    """A frame of the pickle says how long it is."""
    path = pickled(tmp_path, "pixel", unscaled=False)
    content = path.read_bytes()
    if change == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif change == "longer than memory":
        path.write_bytes(content[:3] + b"\xff" * 8 + content[11:])
    else:
        path.write_bytes(pickle.dumps({"torch": b""}))
    with pytest.raises(ValueError, match=r"dqn\.d3 (must hold tensors|is damaged)"):
        loaded(path)


def test_the_folder_of_an_agent_of_pfrl_is_read(tmp_path: Path) -> None:
    """Beside the network lie its target and the optimiser."""
    torch.save(foreign(teacher()), tmp_path / "model.pt")
    torch.save(foreign(teacher(seed=2)), tmp_path / "target_model.pt")
    with pytest.warns(UserWarning, match=SAYS_NOTHING):
        network, _ = loaded(tmp_path)
    same_values(network, teacher())


def test_a_zip_without_tensors_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path, {}, unscaled=False, members=("policy.pkl",))
    with pytest.raises(ValueError, match=r"without policy\.pth, as sbx writes it, holds pickled code"):
        loaded(path)


def test_padded_convolutions_are_named(tmp_path: Path) -> None:
    state = foreign(teacher())
    torch.save({**state, "fc.weight": torch.zeros(64, 7744)}, tmp_path / "dopamine.pt")
    with pytest.raises(ValueError, match="7,744 inputs are those of padded"):
        loaded(tmp_path / "dopamine.pt")


def test_layers_named_kernel_are_refused(tmp_path: Path) -> None:
    """A square one would fit, transposed."""
    state = {"dense.kernel": torch.eye(3), "dense.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "flax.pt")
    with pytest.raises(ValueError, match=r"Layers named kernel are TensorFlow's or JAX's, \[in, out\]"):
        load_pretrained(nn.Linear(3, 3), tmp_path / "flax.pt")


def test_actions_in_a_column_are_refused_since_they_agree_with_all_by_broadcasting(tmp_path):
    path = tmp_path / "layer.pt"
    torch.save({"weight": torch.eye(3), "bias": torch.zeros(3)}, path)
    frames, actions = torch.eye(3), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"observations \[N, ...\] and actions \[N\]: got \[3, 3\] and \[3, 1\]"):
        load_pretrained(nn.Linear(3, 3), path, check_frames=(frames, actions[:, None]))
    with pytest.raises(TypeError, match="must be two tensors, observations and actions: got Tensor"):
        load_pretrained(nn.Linear(3, 3), path, check_frames=frames)
    assert "100.0% of check_frames agree" in load_pretrained(
        nn.Linear(3, 3), path, check_frames=(frames.numpy(), actions.numpy())
    )


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), range(2, -1, -2), [2, 0]])
def test_rows_may_be_any_whole_numbers(tmp_path, rows):
    torch.save({"weight": torch.eye(3), "bias": torch.zeros(3)}, tmp_path / "layer.pt")
    network = nn.Linear(3, 2)
    load_pretrained(network, tmp_path / "layer.pt", rows=rows)
    assert network.weight.tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]


@pytest.mark.parametrize("rows", ["20", [True, False], [2.0, 0.0]])
def test_rows_that_are_no_whole_numbers_are_refused(tmp_path, rows):
    torch.save({"weight": torch.eye(3), "bias": torch.zeros(3)}, tmp_path / "layer.pt")
    with pytest.raises(TypeError, match=r"rows must be whole numbers: got .*; count the file's actions from 0"):
        load_pretrained(nn.Linear(3, 2), tmp_path / "layer.pt", rows=rows)
