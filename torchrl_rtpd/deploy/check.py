"""Run the self-check of an exported student, with the file's own runtime alone: no torch unless it is a ``.pt2``."""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import io
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torchrl_rtpd.deploy.selfcheck import C_COUNT, compare, make_inputs

__all__ = ["Outcome", "check_file", "main", "open_file"]

TOLERANCE = {"onnx_int8": 0.05, "c_int8": 0.05}
_FLOAT_TOLERANCE = 1e-3
_STRICT = ("-std=c99", "-march=native", "-Wall", "-Wextra", "-Werror")

_NOT_RUN = (OSError, ImportError, RuntimeError)  # a runtime or a compiler is missing, or is not fit
_SAID = (*_NOT_RUN, ValueError)  # whose words stand alone

Run = Callable[..., tuple[np.ndarray, ...]]


class Outcome(NamedTuple):
    """The self-check of one format.

    Attributes:
        format: "onnx", "c_int8" and the like.
        problems: sentences; none if the check passed.
        latency_ms: median for one observation on one thread.
        first_action_seconds: from the file on disk to the first action, the runtime's own import included.
        peak_memory_mb: of the process so far; None where /proc does not tell.
    """

    format: str
    problems: list[str]
    latency_ms: float
    first_action_seconds: float
    peak_memory_mb: float | None


def main(arguments: list[str] | None = None) -> int:
    """Check files by the command line; return 0 if all pass, 1 if one fails, 2 if one cannot be run."""
    parser = argparse.ArgumentParser(prog="python -m torchrl_rtpd.deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("check", help="re-run the self-check of exported files")
    command.add_argument("files", nargs="+", type=Path)
    command.add_argument("--json", action="store_true", help="print one JSON object a format")
    given = parser.parse_args(arguments)
    status = 0
    for path in given.files:
        try:
            for outcome in check_file(path):
                status = max(status, bool(outcome.problems))
                print(json.dumps(outcome._asdict()) if given.json else _sentence(path, outcome))
        except Exception as error:  # runtimes raise of many kinds where a file is damaged
            reason = f"{type(error).__name__}: {error}" if not isinstance(error, _SAID) else str(error)
            answer = {"error": reason, "not_run": isinstance(error, _NOT_RUN)}
            print(json.dumps(answer) if given.json else f"{path}: not checked: {reason}")
            status = 2
    return status


def check_file(path: Path) -> Iterator[Outcome]:
    """Run a file's self-check.

    Args:
        path: a file of :func:`~torchrl_rtpd.deploy.export_student`, or its card, for all files that it lists.

    Yields:
        An outcome for each format that the file holds.

    Raises:
        FileNotFoundError: no such file, or no card beside a C source or a ``.pt2``.
        ValueError: a file without a card, or a suffix that is none of an exported student.
        ImportError: its runtime is not installed.
        RuntimeError: no C compiler.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file at {path}: give one that export_student wrote.")
    if path.suffix == ".json":
        listed = json.loads(path.read_text())["files"].values()
        for name in dict.fromkeys(entry["path"] for entry in listed):
            yield from check_file(path.parent / name)
        return
    start, changed = time.perf_counter(), _changed(path)
    for name, card, run in open_file(path):
        outcome = _checked(name, card, run, start)
        yield outcome._replace(problems=[*changed, *outcome.problems])
        start = time.perf_counter()


def _changed(path: Path) -> list[str]:
    """Return a sentence if the card beside a file lists other bytes: a few wrong weights need not show in values."""
    card = path.with_name(f"{path.stem.removesuffix('.int8')}.json")
    listed = _card_beside(card)["files"].values() if card.exists() else ()
    digests = [entry["sha256"] for entry in listed if entry["path"] == path.name]
    if not digests or hashlib.sha256(path.read_bytes()).hexdigest() in digests:
        return []
    return [f"its bytes are not those that {card.name} lists"]


def open_file(path: Path) -> Iterator[tuple[str, dict[str, Any], Run]]:
    """Open a file with its own runtime, on one thread.

    Args:
        path: a file of :func:`~torchrl_rtpd.deploy.export_student`.

    Yields:
        For each format that it holds: the name, the card and a function from the inputs to the outputs, arrays with a
        batch dimension.

    Raises:
        ValueError: a suffix that is none of an exported student; as :func:`check_file`.
    """
    opened: dict[str, Callable[[Path], Iterator[tuple[str, dict[str, Any], Run]]]] = {
        ".onnx": _open_onnx,
        ".npz": _open_arrays,
        ".py": _open_arrays,
        ".c": _open_c,
        ".h": _open_c,
        ".pt2": _open_pt2,
    }
    if path.suffix not in opened:
        raise ValueError(f"the file must end in one of {', '.join(opened)} or .json: got {path.name}.")
    yield from opened[path.suffix](path)


def _checked(name: str, card: dict[str, Any], run: Run, start: float) -> Outcome:
    recorded = card["self_check"]["outputs"].get(name)
    if recorded is None:
        raise ValueError(f"the card holds no self-check of format {name}: it is that of another export.")
    inputs = make_inputs(card["inputs"], card["self_check"]["count"])
    single = [array[:1] for array in inputs]
    run(*single)
    first = time.perf_counter() - start
    names = list(recorded)
    found = run(*inputs)[: len(names)]
    problems = compare([recorded[key] for key in names], found, names, TOLERANCE.get(name, _FLOAT_TOLERANCE))
    return Outcome(name, problems, _latency(run, single), first, _peak_memory_mb())


def _latency(run: Run, inputs: list[np.ndarray], seconds: float = 0.3) -> float:
    """Median milliseconds of a call."""
    for _ in range(5):
        run(*inputs)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 20:
        start = time.perf_counter()
        run(*inputs)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def _open_onnx(path: Path) -> Iterator[tuple[str, dict[str, Any], Run]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("an .onnx file needs onnxruntime: pip install onnxruntime.") from error
    session = onnx_session(onnxruntime, path)
    text = session.get_modelmeta().custom_metadata_map.get("card")
    if text is None:
        raise ValueError(f"{path} holds no card: give a file that export_student wrote.")
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(session.run(None, dict(zip(names, inputs, strict=True))))

    card = json.loads(text)
    yield next(iter(card["self_check"]["outputs"])), card, run


def onnx_session(onnxruntime: Any, source: Path | bytes) -> Any:
    """Return a session on one thread of the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    model = source if isinstance(source, bytes) else str(source)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _open_arrays(path: Path) -> Iterator[tuple[str, dict[str, Any], Run]]:
    stem = path.stem.removesuffix("_numpy") if path.suffix == ".py" else path.stem
    archive, source = path.with_name(f"{stem}.npz"), path.with_name(f"{stem}_numpy.py")
    if not source.exists():
        raise FileNotFoundError(f"no {source.name} beside {path}: keep both files together.")
    with np.load(io.BytesIO(archive.read_bytes())) as arrays:  # of a damaged file np.load leaves the handle open
        card = json.loads(str(arrays["card"]))
    names: dict[str, Any] = {"__name__": "exported_student", "__file__": str(source)}
    exec(compile(source.read_bytes(), str(source), "exec"), names)  # an import would leave __pycache__ beside the file

    def run(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        values = names["values"](*inputs)
        return values, values.argmax(-1)

    yield "numpy", card, run


def _open_c(path: Path) -> Iterator[tuple[str, dict[str, Any], Run]]:
    card = _card_beside(path)
    if "c_name" not in card:
        raise ValueError("the card holds no self-check of format c: it is that of another export.")
    name, inputs, outputs = card["c_name"], card["inputs"][0], card["outputs"][0]
    kind = np.uint8 if inputs["dtype"] == "uint8" else np.float32
    for variant in ("c", "c_int8"):
        if variant == "c_int8" and variant not in card["self_check"]["outputs"]:
            continue
        library = compiled(path.with_suffix(".c"), name, integers=variant == "c_int8")
        wrong = getattr(library, f"{name}_self_check")()
        if wrong:
            raise ValueError(f"{wrong} of {C_COUNT * outputs['shape'][0]} values of its own table differ")
        yield variant, card, run_compiled(library, name, outputs["shape"], kind)


def run_compiled(library: ctypes.CDLL, name: str, shape: Sequence[int], kind: Any) -> Run:
    """Return a function from observations to values and actions.

    Args:
        library: as :func:`compiled` loads it.
        name: its name in C.
        shape: of the values of one observation.
        kind: type of an observation's numbers.
    """
    function = getattr(library, f"{name}_values")

    def run(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        observations = np.ascontiguousarray(arrays[0], kind)
        values = np.empty((len(observations), *shape), np.float32)
        for observation, result in zip(observations, values, strict=True):
            function(ctypes.c_void_p(observation.ctypes.data), ctypes.c_void_p(result.ctypes.data))
        return values, values.argmax(-1)

    return run


def compiled(source: Path, name: str, *, integers: bool, optimise: Sequence[str] = ("-O3",)) -> ctypes.CDLL:
    """Compile a C source, warnings as errors, and load it.

    Args:
        source: the file.
        name: its name in C.
        integers: True for 8-bit integers.
        optimise: flags of the compiler.

    Raises:
        RuntimeError: no compiler, or one that complains.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise RuntimeError("a C source needs a compiler: install gcc.")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "student.so"
        defines = [f"-D{name.upper()}_SELF_CHECK", *([f"-D{name.upper()}_INT8"] if integers else [])]
        command = [compiler, *_STRICT, *optimise, *defines, "-shared", "-fPIC", "-o", str(library), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler} does not compile {source}: {done.stderr.strip()[:500]}")
        return ctypes.CDLL(str(library))


def _open_pt2(path: Path) -> Iterator[tuple[str, dict[str, Any], Run]]:
    try:
        import torch
    except ImportError as error:
        raise ImportError("a .pt2 file needs torch: pip install torch.") from error
    torch.set_num_threads(1)
    module = torch.export.load(path).module()

    def run(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.no_grad():
            return tuple(output.numpy() for output in module(*map(torch.from_numpy, inputs)))

    yield "pt2", _card_beside(path), run


def _card_beside(path: Path) -> dict[str, Any]:
    card = path.with_suffix(".json")
    if not card.exists():
        raise FileNotFoundError(f"no card {card.name} beside {path}: keep both files together.")
    return json.loads(card.read_text())


def _peak_memory_mb() -> float | None:
    """High-water mark of this program, which ``getrusage`` mixes with that of the process that started it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)


def _sentence(path: Path, outcome: Outcome) -> str:
    state = "; ".join(outcome.problems) if outcome.problems else "self-check passed"
    memory = "" if outcome.peak_memory_mb is None else f", peak memory {outcome.peak_memory_mb:.0f} MB"
    return (
        f"{path} ({outcome.format}): {state}; {outcome.latency_ms:.3f} ms an action on one thread, first action after "
        f"{outcome.first_action_seconds:.2f} s{memory}"
    )
