"""Write students as files for devices: ONNX, 8-bit ONNX, C, NumPy and PyTorch programs, with a card beside them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchrl_rtpd.deploy.c_source import c_header, c_identifier, c_source
from torchrl_rtpd.deploy.card import contract_of, contract_text, file_entry, page
from torchrl_rtpd.deploy.chain import Chain, chain_of
from torchrl_rtpd.deploy.formats import FORMATS, FormatError, checked_formats
from torchrl_rtpd.deploy.numpy_source import numpy_source, write_arrays
from torchrl_rtpd.deploy.onnx_file import chain_model, program_model, quantised_model, write
from torchrl_rtpd.deploy.program import Example, Program, multiply_adds, outputs_of, plain_copy, traced
from torchrl_rtpd.deploy.quantised import ONNX_BITS, QuantisedChain, quantise, reason_against
from torchrl_rtpd.deploy.selfcheck import COUNT, make_inputs
from torchrl_rtpd.deploy.states import LEAST_STATES, states_of
from torchrl_rtpd.envs.streams import streams_kept
from torchrl_rtpd.functional.discrete import teacher_regret
from torchrl_rtpd.networks.running import as_tensordict_module
from torchrl_rtpd.networks.towers import NatureTower

__all__ = ["FORMATS", "ExportReport", "FileReport", "export_student"]

_SUFFIXES = (".onnx", ".pt2", ".c", ".h", ".npz", ".json")
_CHAINS = ("onnx_int8", "c", "numpy")  # formats with kernels of our own


@dataclass
class FileReport:
    """One format of an exported student.

    Attributes:
        path: the file; of C the source.
        bytes: its size.
        latency_ms: median for one observation on one thread, in a process of its own; None where its runtime (or a
            compiler) is not installed.
        peak_memory_mb: of that process.
        agreement: share of states with the float network's greedy action; None without states.
        regret: mean of what the action costs by the float network's values, in their standard deviations over actions.
    """

    path: Path
    bytes: int
    latency_ms: float | None
    peak_memory_mb: float | None
    agreement: float | None
    regret: float | None


@dataclass
class ExportReport:
    """Report of the files that :func:`export_student` wrote.

    Attributes:
        files: by format; 8-bit integers of a C source are "c_int8".
        card: the JSON beside them.
        notes: sentences on what was left out.
    """

    files: dict[str, FileReport]
    card: Path
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = []
        for name, entry in self.files.items():
            numbers = {"ms": entry.latency_ms, "agreement": entry.agreement, "regret": entry.regret}
            known = [f"{key} {value:.3f}" for key, value in numbers.items() if value is not None]
            lines.append(", ".join([f"{name}: {entry.path}", f"{entry.bytes:,} bytes", *known]))
        return "\n".join([*lines, *self.notes])


@streams_kept()
def export_student(
    student: nn.Module,
    path: str | os.PathLike,
    *,
    formats: Sequence[str] = ("onnx",),
    calibration: Any = None,
    example: Example = None,
    metadata: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write a student as files that run without this package, and check each in a process of its own.

    All that the student does before it draws an action is inside: encoder, normaliser, scaling of pixels. Inputs bear
    the names of the entries that it reads, outputs are its values (``action_value``, ``logits``, ...), ``action`` and,
    of a recurrent network, ``next_`` and the name of each entry that goes back in. Nothing is written, and files of an
    earlier call stay as they were, if one format cannot be.

    Formats:

    - ``"onnx"``: ``<path>.onnx`` in float32 for onnxruntime and others, any batch size.
    - ``"onnx_int8"``: ``<path>.int8.onnx``, the same in 8-bit integers with a float head.
    - ``"c"``: ``<path>.h`` and ``<path>.c`` in C99 without heap or library, in float; compiled with
      ``<NAME>_INT8`` defined in 8-bit integers, for students of bytes and if there are states.
    - ``"numpy"``: ``<path>.npz`` and ``<path>_numpy.py``, thirty lines.
    - ``"pt2"``: ``<path>.pt2`` for :func:`torch.export.load` and ExecuTorch, without sample inputs.

    Beside them are a card, ``<path>.json`` and ``<path>.md``. ``python -m torchrl_rtpd.deploy check FILE`` runs the
    self-check of a file without torch.

    Warning: the working memory of the C source is static, so that two threads must not call it at once.

    Args:
        student: an actor of any number of parts, a policy, or a plain module; compiled or not, in any precision, on any
            device. It is not changed.
        path: without suffix; folders are made.
        formats: some of the five.
        calibration: for 8-bit integers: states ``[N, ...]`` uint8 of whole games, ``N >= 512``; a replay buffer; or an
            environment to play in. None plays the game in ``metadata["game"]``. States also tell agreement and regret.
        example: observations ``[B, ...]``, or several by key; not needed for a
            :class:`~torchrl_rtpd.networks.towers.NatureTower`.
        metadata: for the card, such as game, score, command, commit; JSON's types only.

    Returns:
        Sizes, latencies, agreement and regret of each file.

    Raises:
        ValueError: an unknown format; a network that a format cannot hold, with the reason; no example or too few
            states; weights that are not finite; metadata that JSON cannot hold, NaN among it; a path without a name.
        TypeError: something that is no network, no tensor or no dictionary.
        ImportError: the export extra is not installed.
        RuntimeError: a file does not compute the student's values.
        IsADirectoryError: a folder has the name of one of the files.

    Examples:
        >>> import tempfile
        >>> from torchrl.data import Categorical
        >>> from torchrl_rtpd.networks import make_actor
        >>> student = make_actor("net17", Categorical(6), seed=0)
        >>> report = export_student(student, tempfile.mkdtemp() + "/net17", formats=["numpy"])
        >>> sorted(entry.name for entry in report.card.parent.iterdir())
        ['net17.json', 'net17.md', 'net17.npz', 'net17_numpy.py']
    """
    path = _stem(path)
    work = _Export(student, path, checked_formats(formats), calibration, example, _checked_metadata(metadata))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        return work.write(Path(folder))


def _stem(path: str | os.PathLike) -> Path:
    if not (path := Path(path)).name:
        raise ValueError(f"path must name the files: got {str(path)!r}; give a folder and a name, without suffix.")
    return path.with_suffix("") if path.suffix in _SUFFIXES else path


def _checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(metadata, Mapping | None):
        raise TypeError(f"metadata must be a dictionary: got {type(metadata).__name__}.")
    try:
        json.dumps(found := dict(metadata or {}), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be of JSON's types: {error}; convert it to numbers and strings.") from error
    return found


class _Export:
    """One call: all refusals in the constructor, all files in :meth:`write`."""

    def __init__(
        self, student: nn.Module, path: Path, formats: list[str], calibration: Any, example: Example, metadata: dict
    ) -> None:
        self.path, self.formats = path, formats
        towers = isinstance(student, nn.Module) and any(isinstance(part, NatureTower) for part in student.modules())
        if example is None and isinstance(calibration, Tensor) and not towers:
            example = calibration[:2]
        self.program = Program(student, example)
        self.graph = traced(self.program)
        first = self.program.inputs[0]
        chain = chain_of(self.graph, first.shape, first.dtype)
        self._refuse(chain)
        self.chain = chain if isinstance(chain, Chain) else None
        self.notes: list[str] = []
        self.states = self._states(student, calibration, metadata)
        self.quantised = self._quantise()
        sizes = {
            "parameters": sum(parameter.numel() for parameter in self.program.parameters()),
            "multiply_adds": multiply_adds(self.program),
        }
        self.contract = contract_of(path.name, self.program.inputs, self.program.outputs, sizes, metadata)
        self.contract["self_check"] = {"generator": "xorshift32, seeds from 1", "count": COUNT, "outputs": {}}

    def _refuse(self, chain: Chain | str) -> None:
        """Refuse formats that cannot hold the network."""
        for name in self.formats:
            if name not in _CHAINS:
                continue
            reason = chain if isinstance(chain, str) else reason_against(chain) if name == "onnx_int8" else None
            if reason is None and not self.program.chooses_one:
                reason = "its action is no choice of one of its values"
            if reason is not None:
                raise FormatError(
                    name,
                    f"format {name} holds chains of convolutions without padding, dense layers and ReLU: {reason}; "
                    "export it as onnx or pt2.",
                )

    def _states(self, student: nn.Module, calibration: Any, metadata: Mapping[str, Any]) -> Tensor | None:
        """States to take ranges from and to compare on, if they are needed or given."""
        if self.chain is None or (calibration is None and "onnx_int8" not in self.formats):
            return None
        actor = as_tensordict_module(plain_copy(student), ["action_value"])
        states = states_of(calibration, actor, actor.in_keys[0], metadata)
        if states.shape[1:] != self.program.example[0].shape[1:] or states.dtype != self.program.example[0].dtype:
            raise ValueError(
                f"calibration must hold {self.program.inputs[0].dtype} of shape {list(self.program.inputs[0].shape)}: "
                f"got {str(states.dtype).removeprefix('torch.')} of {list(states.shape[1:])}."
            )
        return states

    def _quantise(self) -> dict[str, QuantisedChain]:
        """The chain in integers, by format."""
        if self.chain is None or self.states is None or reason_against(self.chain) is not None:
            if "c" in self.formats:
                why = (
                    "no calibration states" if self.states is None else reason_against(self.chain or Chain((), "", []))
                )
                self.notes.append(f"c holds no 8-bit integers: {why}.")
            return {}
        # Every other state is held out if there are enough.
        ranges = self.states[::2] if len(self.states) >= 2 * LEAST_STATES else self.states
        return {name: quantise(self.chain, ranges, bits) for name, bits in (("onnx_int8", ONNX_BITS), ("c_int8", 8))}

    def write(self, folder: Path) -> ExportReport:
        """Write all formats into a folder, check them there, then put them in place."""
        writers = {
            "onnx": self._write_onnx,
            "onnx_int8": self._write_quantised,
            "pt2": self._write_program,
            "c": self._write_c,
            "numpy": self._write_arrays,
        }
        written = {name: file for form in self.formats for name, file in writers[form](folder).items()}
        card = folder / f"{self.path.name}.json"
        entries = {name: file_entry(file) for name, file in written.items()}
        card.write_text(json.dumps({**self.contract, **self._machine(), "files": entries}))
        files = {}
        for name, outcome in self._checked(written).items():
            entries[name] |= outcome
            agreement = {"agreement": outcome["agreement"], "regret": outcome["regret"]}
            measured = {key: outcome[key] for key in ("latency_ms", "peak_memory_mb")}
            place = self.path.parent / written[name].name
            files[name] = FileReport(place, entries[name]["bytes"], **measured, **agreement)
        content = {**self.contract, **self._machine(), "files": entries, "notes": self.notes}
        card.write_text(json.dumps(content, indent=1) + "\n")
        card.with_suffix(".md").write_text(page(content))
        places = {file: self.path.parent / file.name for file in sorted(folder.iterdir())}
        if taken := [place.name for place in places.values() if place.is_dir()]:
            raise IsADirectoryError(f"files must not have the name of a folder: got {taken}; give another path.")
        for file, place in places.items():
            os.replace(file, place)
        return ExportReport(files, self.path.parent / card.name, self.notes)

    def _machine(self) -> dict[str, Any]:
        compared = 0 if self.states is None else len(self._held_out())
        held_out = self.states is not None and len(self.states) >= 2 * LEAST_STATES
        return {
            "machine": f"{platform.machine()}, {platform.system()}",
            "compared_on_states": compared,
            "compared_on": "held out" if held_out else "those of the calibration",
        }

    def _held_out(self) -> Tensor:
        assert self.states is not None
        return self.states[1::2] if len(self.states) >= 2 * LEAST_STATES else self.states

    def _record(self, name: str, outputs: Sequence[Tensor]) -> str:
        """Put a format's self-check into the contract; return the contract with nothing but this one's."""
        named = zip(self.program.outputs, outputs, strict=True)
        recorded = {port.name: np.round(output.double().numpy(), 7).tolist() for port, output in named}
        self.contract["self_check"]["outputs"][name] = recorded
        check = {**self.contract["self_check"], "outputs": {name: recorded}}
        return json.dumps({**self.contract, "self_check": check})

    def _inputs(self) -> list[Tensor]:
        return [torch.from_numpy(array) for array in make_inputs(self.contract["inputs"])]

    def _float_outputs(self) -> tuple[Tensor, ...]:
        return self.program.run(*self._inputs())

    def _quantised_outputs(self, name: str) -> tuple[Tensor, Tensor]:
        values = self.quantised[name].run(self._inputs()[0])
        return values, values.argmax(-1)

    def _file(self, folder: Path, suffix: str) -> Path:
        return folder / f"{self.path.name}{suffix}"

    def _write_onnx(self, folder: Path) -> dict[str, Path]:
        file = self._file(folder, ".onnx")
        chain = self.chain if self.program.chooses_one else None  # which ends with one choice
        model = program_model(self.program, file) if chain is None else chain_model(chain, self.program)
        write(model, file, self._record("onnx", self._float_outputs()))
        return {"onnx": file}

    def _write_quantised(self, folder: Path) -> dict[str, Path]:
        file = self._file(folder, ".int8.onnx")
        model = quantised_model(self.quantised["onnx_int8"], self.program)
        write(model, file, self._record("onnx_int8", self._quantised_outputs("onnx_int8")))
        return {"onnx_int8": file}

    def _write_program(self, folder: Path) -> dict[str, Path]:
        file = self._file(folder, ".pt2")
        self._record("pt2", self._float_outputs())
        graph = self.graph
        graph._example_inputs = None  # else the file keeps them, and the whole storage that they lie in
        for node in graph.graph.nodes:
            for entry in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
                node.meta.pop(entry, None)  # paths of this machine
        torch.export.save(graph, file)
        return {"pt2": file}

    def _write_c(self, folder: Path) -> dict[str, Path]:
        assert self.chain is not None
        self.contract["c_name"] = name = c_identifier(self.path.name)
        self._record("c", self._float_outputs())
        recorded = {"c": self._float_outputs()[0].numpy()}
        quantised = self.quantised.get("c_int8")
        if quantised is not None:
            values = self._quantised_outputs("c_int8")
            self._record("c_int8", values)
            recorded["c_int8"] = values[0].numpy()
        header, source = self._file(folder, ".h"), self._file(folder, ".c")
        header.write_text(c_header(name, self.chain, contract_text(self.contract), quantised))
        text = c_source(name, self.chain, quantised, recorded)
        source.write_text(text.replace(f'#include "{name}.h"', f'#include "{header.name}"'))
        return {form: source for form in ("c", "c_int8") if form in recorded}

    def _write_arrays(self, folder: Path) -> dict[str, Path]:
        assert self.chain is not None
        file, source = self._file(folder, ".npz"), self._file(folder, "_numpy.py")
        write_arrays(self.chain, file, self._record("numpy", self._float_outputs()))
        source.write_text(numpy_source(self.chain, file.name))
        return {"numpy": file}

    def _checked(self, written: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
        """Run each file's self-check in a fresh process, and compare integers with floats on states.

        Raises:
            RuntimeError: a file does not compute what it should.
        """
        found: dict[str, dict[str, Any]] = {}
        for file in dict.fromkeys(written.values()):
            names = [name for name, other in written.items() if other == file]
            for outcome in _run_check(file):
                if not outcome.get("not_run", True):
                    raise RuntimeError(f"{file.name} fails its self-check: {outcome['error']}")
                if "error" in outcome:
                    self.notes.append(f"{', '.join(names)} was not run here: {outcome['error']}")
                    continue
                if outcome["problems"]:
                    raise RuntimeError(f"{outcome['format']} does not compute the student's: {outcome['problems']}.")
                found[outcome["format"]] = outcome
        measured = ("latency_ms", "first_action_seconds", "peak_memory_mb")
        return {
            name: {**{key: found.get(name, {}).get(key) for key in measured}, **self._compared(name)}
            for name in written
        }

    def _compared(self, name: str) -> dict[str, float | None]:
        """Agreement and regret on held-out states; floats were compared by the self-check."""
        if self.states is None:
            return {"agreement": None, "regret": None}
        states = self._held_out()
        wanted = outputs_of(self.program, [states])[0]
        quantised = self.quantised.get(name)
        if quantised is None:
            chosen = wanted
        else:
            chosen = torch.cat([quantised.run(part) for part in states.split(256)])
        agreeing = (chosen.argmax(-1) == wanted.argmax(-1)).float().mean().item()
        return {"agreement": agreeing, "regret": teacher_regret(wanted, chosen).mean().item()}


def _run_check(file: Path) -> list[dict[str, Any]]:
    """Outcomes of a file's self-check, run in a fresh process on one thread."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "torchrl_rtpd.deploy", "check", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"the self-check of {file.name} could not be run: {done.stderr.strip()[-500:]}")
    return lines
