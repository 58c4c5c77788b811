"""The C source on a microcontroller, and where no compiler is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torchrl.data import Categorical

from torchrl_rtpd.deploy.export import ExportReport, export_student
from torchrl_rtpd.networks.towers import make_actor

BOARD = Path(__file__).parent / "board"
CROSS = [
    *["arm-none-eabi-gcc", "-Os", "-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"],
    *["-std=gnu99", "-Wall", "-Wextra", "-Werror", "-nostartfiles"],
]
EMULATOR = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-semihosting", "-kernel"]
needs_board = pytest.mark.skipif(
    any(shutil.which(command[0]) is None for command in (CROSS, EMULATOR)),
    reason="needs Debian's gcc-arm-none-eabi and qemu-system-arm",
)


def export(path: Path, *formats: str) -> ExportReport:
    states = torch.randint(256, (512, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return export_student(make_actor("net17", Categorical(6), seed=0), path, formats=formats, calibration=states)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export(tmp_path_factory.mktemp("c") / "net17", "c")


def wrong_values(source: Path, folder: Path, *defines: str) -> int:
    """Number of values of the source's own table that an emulated Cortex-M4 with 64 kB of RAM computes otherwise."""
    program = folder / "board.elf"
    files = [str(source), str(BOARD / "board.c"), f"-I{source.parent}"]
    linked = ["-T", str(BOARD / "board.ld"), "-o", str(program)]
    subprocess.run([*CROSS, "-DNET17_SELF_CHECK", *defines, *files, *linked], check=True)
    return subprocess.run([*EMULATOR, str(program)], timeout=60, check=False).returncode


@needs_board
@pytest.mark.parametrize("defines", [[], ["-DNET17_INT8"]], ids=["float", "int8"])
def test_a_microcontroller_computes_the_recorded_values(
    exported: ExportReport, tmp_path: Path, defines: list[str]
) -> None:
    assert wrong_values(exported.files["c"].path, tmp_path, *defines) == 0


@needs_board
def test_a_microcontroller_finds_a_changed_table(exported: ExportReport, tmp_path: Path) -> None:
    """All biases of the head are moved: each of the 4 x 6 values is another."""
    source = exported.files["c"].path
    shutil.copy(source.with_suffix(".h"), tmp_path)
    text = source.read_text()
    begin = text.index("static const float bias4[6] = {\n", text.index("#else"))
    end = text.index("};", begin)
    moved = "static const float bias4[6] = {\n  9.0f, 9.0f, 9.0f, 9.0f, 9.0f, 9.0f\n"
    (tmp_path / "net17.c").write_text(text[:begin] + moved + text[end:])
    assert wrong_values(tmp_path / "net17.c", tmp_path) == 24


def test_without_a_compiler_all_formats_are_written_and_only_c_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No program at all can be found by its name."""
    monkeypatch.setenv("PATH", "")
    assert shutil.which("gcc") is None
    report = export(tmp_path / "net17", "onnx", "onnx_int8", "pt2", "c", "numpy")
    assert report.notes == ["c, c_int8 was not run here: a C source needs a compiler: install gcc."]
    timed = {name for name, entry in report.files.items() if entry.latency_ms is not None}
    assert timed == {"onnx", "onnx_int8", "pt2", "numpy"}
    assert all(entry.path.stat().st_size == entry.bytes for entry in report.files.values())
