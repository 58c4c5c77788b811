"""Students as files: latency, bytes and memory of each format, agreement, scores, and the cost of exporting.

    python tests/benchmarks/bench_deploy.py --out docs/results/deploy.json

Reads the trained students ``docs/results/deploy/<game>/net17.safetensors`` of two games. Files take turns at one
observation on one thread; a turn is some calls in a row. Frames and games have seeds of their own,
and their player is onnxruntime. Each part is saved when it ends; a second call with the same ``--out``, arguments and
commit leaves out those that are there. Five minutes on an idle machine. Needs the export extra and gcc, and measures
the C source for a Cortex-M4 as well if ``arm-none-eabi-gcc`` is installed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.data import Categorical
from torchrl.modules import QValueActor
from turns import take_turns

from torchrl_rtpd import AtariVecEnv, Evaluator, load_weights, make_actor
from torchrl_rtpd.deploy import export_student
from torchrl_rtpd.deploy.check import compiled, open_file, run_compiled
from torchrl_rtpd.evaluation import Scores, regret_of_students
from torchrl_rtpd.networks.running import bare_network
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ("onnx", "onnx_int8", "pt2", "c", "numpy")
COMPILERS = {  # the second as on the page about deploying
    "this machine": "gcc -O3 -march=native -std=c99",
    "Cortex-M4": "arm-none-eabi-gcc -Os -mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=hard -std=c99",
}
CALIBRATION_SEED, HELD_OUT_SEED = 1_000, 2_000  # of games; the run's own begin at 0
CALLS = 10  # in a row


def trained(options: argparse.Namespace, game: str) -> QValueActor:
    """The student of a game as its run left it."""
    env = AtariVecEnv(game, 1)
    student = make_actor("net17", env.action_spec, seed=0)
    env.close()
    load_weights(student, options.students / game / "net17.safetensors")
    return student


def export_trained(options: argparse.Namespace, game: str, folder: Path) -> None:
    """Write all formats of a trained student; ranges come from games of the calibration's seed."""
    env = AtariVecEnv(game, 8, seed=CALIBRATION_SEED, max_frames=4 * options.max_steps)
    export_student(trained(options, game), folder / "net17", formats=FORMATS, calibration=env, metadata={"game": game})
    env.close()


class Files:
    """Exported students, each exported in a process of its own when it is first asked for, with what that cost."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.costs: dict[str, dict[str, float]] = {}

    def of_game(self, game: str) -> Path:
        """Folder of a trained net17."""
        folder = self.folder / game
        if not folder.exists():
            process = multiprocessing.get_context("spawn").Process(
                target=export_trained, args=(self.options, game, folder)
            )
            start = time.perf_counter()
            process.start()
            most = most_memory_mb(process)
            if process.exitcode:
                raise RuntimeError(f"exporting the student of {game} failed.")
            self.costs[game] = {"seconds": time.perf_counter() - start, "peak_memory_mb": most}
        return folder

    def of_size(self, name: str) -> tuple[Path, QValueActor]:
        """Folder of a network without training and the network: its time does not depend on its weights."""
        folder, network = self.folder / name, make_actor(name, Categorical(18), seed=0)
        if not folder.exists():
            noise = torch.randint(256, (512, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
            export_student(network, folder / name, formats=FORMATS, calibration=noise)
        return folder, network


def most_memory_mb(process: Any) -> float:
    """Most memory that a process and those it starts hold at once, until it ends; shared pages count once."""
    most = 0.0
    while process.is_alive():
        most = max(most, sum(map(_proportional_mb, _family(process.pid))))
        process.join(0.05)
    return most


def _family(parent: int) -> Iterator[int]:
    yield parent
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # it has ended
            continue
        for child in children:
            yield from _family(int(child))


def _proportional_mb(pid: int) -> float:
    try:
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


# Parts


def latencies(options: argparse.Namespace, files: Files) -> dict[str, Any]:
    """Milliseconds of one observation, by network and format; all take turns."""
    torch.set_num_threads(1)
    pixels = np.random.default_rng(0).integers(256, size=(1, 4, 84, 84), dtype=np.uint8)
    calls: dict[str, Callable[[], object]] = {}
    for name in options.networks:
        folder, network = files.of_size(name)
        calls |= {f"{name}/{form}": call for form, call in _eager(network, torch.from_numpy(pixels)).items()}
        for form, run in {**runs_of(folder), **_other_flags(folder / f"{name}.c")}.items():
            calls[f"{name}/{form}"] = lambda run=run: run(pixels)
    with torch.no_grad():
        times = take_turns(calls, options.turns, in_a_row=CALLS)
    found: dict[str, dict[str, float]] = {}
    for name, values in times.items():
        network_name, form = name.split("/")
        found.setdefault(network_name, {})[form] = statistics.median(values)
    return {"milliseconds": found, "threads": 1, "batch_size": 1, "turns": options.turns, "in_a_row": CALLS}


def _eager(network: QValueActor, pixels: Tensor) -> dict[str, Callable[[], object]]:
    """The network as ``latency_ms`` times it, and the program that torch.export makes of it as it is."""
    module = bare_network(network).eval()
    sizes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(module, (pixels.repeat(2, 1, 1, 1),), dynamic_shapes=sizes).module()
    return {"torch": lambda: module(pixels), "torch.export as it comes": lambda: program(pixels)}


def runs_of(folder: Path) -> dict[str, Callable[..., tuple[np.ndarray, ...]]]:
    """A function for each format in a folder, run by its own runtime on one thread."""
    stem = next(path.stem for path in folder.glob("*.md"))
    names = [f"{stem}{suffix}" for suffix in (".onnx", ".int8.onnx", ".pt2", ".npz", ".c")]
    return {form: run for name in names for form, _, run in open_file(folder / name)}


def _other_flags(source: Path) -> dict[str, Callable[..., tuple[np.ndarray, ...]]]:
    """The C source by other flags, which are faster for small networks."""
    found = {}
    for form, integers in {"c_o2": False, "c_int8_o2": True}.items():
        library = compiled(source, source.stem, integers=integers, optimise=["-O2", "-ftree-vectorize"])
        found[form] = run_compiled(library, source.stem, [18], np.uint8)
    return found


def sizes(options: argparse.Namespace, files: Files) -> dict[str, Any]:
    """What each file takes in a process of its own, and the C source on a microcontroller, by network."""
    found = {}
    for name in options.networks:
        folder, _ = files.of_size(name)
        entries = json.loads((folder / f"{name}.json").read_text())["files"]
        keys = ("bytes", "first_action_seconds", "peak_memory_mb")
        found[name] = {form: {key: entry[key] for key in keys} for form, entry in entries.items()}
        for form in ("c", "c_int8"):
            found[name][form]["compiled"] = compiled_sizes(folder / f"{name}.c", integers=form == "c_int8")
    return found


def compiled_sizes(source: Path, *, integers: bool) -> dict[str, Any]:
    """Bytes of code, constants, static memory and stack, by compiler that is installed."""
    found = {}
    for name, words in COMPILERS.items():
        command = words.split()
        if shutil.which(command[0]) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "student.o"
            defines = [f"-D{source.stem.upper()}_INT8"] if integers else []
            strict = ["-Wall", "-Wextra", "-Werror", "-fstack-usage"]
            subprocess.run([*command, *strict, *defines, "-c", str(source), "-o", str(target)], check=True)
            size = command[0].replace("gcc", "size")
            lines = subprocess.run([size, "-A", str(target)], check=True, capture_output=True, text=True).stdout
            stack = [int(line.split("\t")[1]) for line in target.with_suffix(".su").read_text().splitlines()]
        sections = re.findall(r"^\.(text|rodata|data|bss)\S*\s+(\d+)", lines, re.MULTILINE)
        sums = {kind: sum(int(count) for other, count in sections if other == kind) for kind, _ in sections}
        found[name] = {
            "command": words,
            "version": _first_line([command[0], "--version"]),
            "code": sums["text"],
            "constants": sums["rodata"] + sums.get("data", 0),
            "static": sums["bss"],
            "stack": sum(stack),  # of all functions: more than any chain of calls takes
        }
    return found


def _first_line(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]


def exports(options: argparse.Namespace, files: Files) -> dict[str, Any]:
    """Seconds and memory of exporting all formats of each trained student."""
    for game in options.games:
        files.of_game(game)
    return {"cores": os.cpu_count(), "formats": list(FORMATS), **files.costs}


def plays(options: argparse.Namespace, files: Files, game: str) -> dict[str, Any]:
    """Scores of the float and of the 8-bit file, and every format's agreement on frames of the float's games."""
    folder = files.of_game(game)
    slots = next(count for count in (10, options.episodes) if options.episodes % count == 0)
    evaluator = Evaluator(
        lambda: AtariVecEnv(game, slots, max_frames=4 * options.max_steps),
        episodes=options.episodes,
        seed=HELD_OUT_SEED,
    )
    runs = runs_of(folder)
    played: dict[str, Scores] = {}
    for form in ("onnx", "onnx_int8"):
        player = TensorDictModule(_Player(runs[form]), in_keys=["pixels"], out_keys=["action"])
        played[form] = evaluator(player, keep_observations=options.frames if form == "onnx" else 0)
    evaluator.close()
    frames = played["onnx"].observations
    assert frames is not None
    students = {
        form: TensorDictModule(_Values(run), in_keys=["pixels"], out_keys=["action_value"])
        for form, run in runs.items()
    }
    student = trained(options, game)
    agreement = {name: _agreement(student, network, frames) for name, network in students.items()}
    return {
        "frames": len(frames),
        "agreement": agreement,
        "regret": regret_of_students(student, students, frames),
        "max_steps": options.max_steps,
        "scores": {form: _described(scores) for form, scores in played.items()},
    }


def _agreement(student: QValueActor, network: TensorDictModule, frames: Any) -> float:
    own, other = (module(frames.clone())["action_value"].argmax(-1) for module in (student, network))
    return (own == other).float().mean().item()


class _Player(torch.nn.Module):
    """A file's greedy actions."""

    def __init__(self, run: Callable[..., tuple[np.ndarray, ...]]) -> None:
        super().__init__()
        self.run = run

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(self.run(pixels.numpy())[1])


class _Values(_Player):
    """A file's action values."""

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(self.run(pixels.numpy())[0])


def _described(scores: Scores) -> dict[str, Any]:
    numbers = {"mean": scores.mean, "std": scores.std, "standard_error": scores.standard_error}
    return {**numbers, "episodes": scores.episodes, "cut": scores.cut, "scores": list(scores.scores)}


# The whole


def parts_of(options: argparse.Namespace) -> dict[str, Callable[[Files], dict[str, Any]]]:
    """What is measured, by name."""
    return {
        "export": lambda files: exports(options, files),
        "latency": lambda files: latencies(options, files),
        "sizes": lambda files: sizes(options, files),
        **{f"play {game}": lambda files, game=game: plays(options, files, game) for game in options.games},
    }


def kept(out: Path | None, made: Mapping[str, Any]) -> dict[str, Any]:
    """Parts that are there already, made with the same arguments at the same commit."""
    if out is None or not out.exists():
        return {}
    found = json.loads(out.read_text())
    same = found["options"] == made["options"] and found["environment"]["commit"] == made["environment"]["commit"]
    return found["parts"] if same else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--students", type=Path, default=ROOT / "docs" / "results" / "deploy")
    parser.add_argument("--games", nargs="+", default=["road_runner", "crazy_climber"])
    parser.add_argument("--networks", nargs="+", default=["net17", "net1", "teacher"])
    numbers = {"turns": 200, "frames": 2_048, "episodes": 30, "max_steps": 2_000}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    chosen = {name: getattr(options, name) for name in ("games", "networks", *numbers)}
    result = {"options": chosen, "environment": run_environment()}
    result["environment"]["versions"]["onnxruntime"] = _onnxruntime_version()
    result["parts"] = kept(options.out, result)
    with tempfile.TemporaryDirectory() as folder:
        files = Files(options, Path(folder))
        for name, measure in parts_of(options).items():
            if name in result["parts"]:
                continue
            start = time.perf_counter()
            part = measure(files)
            result["parts"][name] = {**part, "took_seconds": time.perf_counter() - start}
            print(name, json.dumps(part))
            if options.out is not None:
                write_json(options.out, result)


def _onnxruntime_version() -> str:
    import onnxruntime

    return onnxruntime.__version__


if __name__ == "__main__":
    main()
