"""The self-check of exported files that are damaged, or lie beside a card of another export."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from torchrl_rtpd.deploy.check import main
from torchrl_rtpd.deploy.export import export_student

pytest.importorskip("onnxruntime", reason="needs the export extra")

EXAMPLE = torch.zeros(2, 4)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export_student(network(), folder / "net", formats=["onnx", "pt2", "c", "numpy"], example=EXAMPLE)
    return folder


@pytest.mark.parametrize("damage", ["half", "nothing", "other"])
@pytest.mark.parametrize("name", ["net.onnx", "net.npz", "net_numpy.py", "net.c", "net.json", "net.pt2"])
def test_a_damaged_file_is_said_to_be_not_checked(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    if name == "net.c" and shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    folder = shutil.copytree(exported, tmp_path / "damaged")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes({"half": content[: len(content) // 2], "nothing": b"", "other": b"\x01" * 99}[damage])
    assert main(["check", str(folder / name)]) == 2
    assert capsys.readouterr().out.startswith(f"{folder / name}: not checked: ")


def test_a_changed_weight_that_hardly_shows_is_found_by_the_card(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(exported, tmp_path / "changed")
    content = bytearray((folder / "net.onnx").read_bytes())
    weight = network()[0].weight.detach().numpy().tobytes()
    content[content.index(weight)] ^= 1  # the last bit of a fraction
    (folder / "net.onnx").write_bytes(bytes(content))
    assert main(["check", str(folder / "net.onnx")]) == 1
    assert "its bytes are not those that net.json lists; " in capsys.readouterr().out


@pytest.mark.parametrize(("name", "form"), [("net.pt2", "pt2"), ("net.c", "c")])
def test_a_card_of_another_export_checks_nothing(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, form: str
) -> None:
    folder = shutil.copytree(exported, tmp_path / "mixed")
    export_student(network(1), folder / "net", formats=["numpy"], example=EXAMPLE)
    assert main(["check", str(folder / name)]) == 2
    assert f"the card holds no self-check of format {form}: it is that of another export." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["quote'\"s", "back\\slash", "two words", "{braces}", "übung"])
def test_files_of_any_name_are_checked_and_c_refuses_what_it_cannot_include(tmp_path: Path, name: str) -> None:
    report = export_student(network(), tmp_path / name, formats=["numpy"], example=EXAMPLE)
    assert main(["check", str(report.card)]) == 0
    if '"' in name or "\\" in name:
        with pytest.raises(ValueError, match="format c needs a name without quotes, backslashes and line breaks"):
            export_student(network(), tmp_path / name, formats=["c"], example=EXAMPLE)
