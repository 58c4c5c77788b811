"""The networks of a finished run at play, side by side: which ones, and the video of their game."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from methods import METHODS
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from settings import RENAMED, Config
from tasks import Task
from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase

from torchrl_rtpd import Evaluator, load_weights
from torchrl_rtpd.deploy import load_exported
from torchrl_rtpd.evaluation import RecordedGame, record_games
from torchrl_rtpd.networks import num_parameters
from torchrl_rtpd.runs import SideBySide, renamed_settings, write_video

SECONDS = 20.0
HELD = 0.9  # share of the teacher's score, from the random player's, that a student to be shown holds


def saved_run(folder: Path) -> Config:
    """Configuration of a run that was made elsewhere or earlier, to play on this machine's CPU."""
    file = folder / "config.yaml"
    if not file.exists():
        raise ValueError(f"a run's folder holds config.yaml and weights/: got {folder}; give its output_dir.")
    saved = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(file)))
    try:
        config = cast(Config, OmegaConf.merge(OmegaConf.structured(Config), renamed_settings(saved, RENAMED)))
    except OmegaConfBaseException as error:
        raise ValueError(f"{file} must be that of a run: got other keys or values, {error}.") from error
    config.device, config.compile, config.cudagraph = "cpu", False, False
    return config


def record(
    folder: Path, config: Config, task: Task, students: Sequence[str], seed: int | None, seconds: float
) -> list[RecordedGame]:
    """Play the run's kept networks as its evaluations do, on one seed: by default that of its final games."""
    make_env = partial(task.make_env, config, 1, evaluation=True)
    evaluator = Evaluator(make_env, episodes=1, epsilon=config.evaluation_epsilon)
    try:
        players = load_players(folder, config, task, students, evaluator.env)
        return record_games(
            players, evaluator, seed=10_000_000 + config.seed if seed is None else seed, seconds=seconds
        )
    finally:
        evaluator.close()


def load_players(
    folder: Path, config: Config, task: Task, students: Sequence[str], env: EnvBase
) -> dict[str, TensorDictModule]:
    """The teacher if the run has one, and students by name or by the path of an exported file; without names, one."""
    networks = {}
    for name, size in METHODS[config.method].sizes(config).items():
        weights = folder / "weights" / f"{name}.safetensors"
        if weights.exists() or not config.search:  # a search has not trained what is beyond its limits
            networks[name] = task.make_actor(config, size, env, 0)
            load_weights(networks[name], weights)
    players = {name: networks.pop(name) for name in list(networks) if name == "teacher"}
    for name in students or shown_student(folder, networks):
        if name in networks:
            players[name] = networks[name]
        elif Path(name).is_file():
            players[Path(name).name if Path(name).name not in players else name] = load_exported(name)
        else:
            raise ValueError(
                f"a student is one of the run's, {', '.join(networks) or 'which has none'}, or an exported file: got "
                f"{name}."
            )
    return players


def shown_student(folder: Path, students: dict[str, TensorDictModule]) -> list[str]:
    """The smallest student that holds most of its teacher's score; without such, or without scores, the smallest."""
    results = folder / "results.json"
    rows = json.loads(results.read_text())["networks"] if results.exists() else []
    held = [row["name"] for row in rows if row["name"] in students and (row.get("normalised") or 0.0) >= HELD]
    played = [row["name"] for row in rows if row["name"] in students]  # a search leaves some
    return sorted(held or played or students, key=lambda name: num_parameters(students[name]))[:1]


def sentence(games: Sequence[RecordedGame]) -> str:
    """Scores and agreement in words."""
    told = []
    for game in games:
        agrees = "" if game.agreement is None else f", agrees with the teacher in {game.agreement:.0%} of its states"
        told.append(f"{game.name} scores {game.score:,g}{' in a whole game' if game.over else ''}{agrees}")
    return "; ".join(told)


def write(games: Sequence[RecordedGame], path: Path) -> Path:
    """Write the video and say what is in it."""
    frames = SideBySide(games)
    video = write_video(frames, path, frames_per_second=frames.frames_per_second)
    cut = "" if video.whole else ", cut to be small enough"
    print(f"{video.path}, {video.num_bytes:,} bytes: {video.seconds:.0f} s{cut}. {sentence(games)}.")
    return video.path


def show_at_the_end(folder: Path, task: Task) -> Path | None:
    """Write ``play.gif`` into the folder of a run that is finished; one that cannot be drawn stays finished."""
    try:
        return write(record(folder, saved_run(folder), task, [], None, SECONDS), folder / "play.gif")
    except Exception as error:  # of many libraries; results and weights are written already
        warnings.warn(
            f"the run is finished, without a video: {str(error).rstrip('.')}; then `python examples/play.py {folder}`.",
            stacklevel=2,
        )
        return None
