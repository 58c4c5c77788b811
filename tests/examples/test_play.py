"""A run's teacher and student play side by side: at the end of the run, and whenever somebody asks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import hydra
import play
import pytest
import rtpd_atari
import rtpd_classic
from PIL import Image
from showing import load_players, saved_run, show_at_the_end, shown_student

from torchrl_rtpd import Evaluator, make_actor
from torchrl_rtpd.runs.monitor import RunMonitor

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = [
    "game=ms_pacman",
    "total_steps=192",
    "warmup_steps=64",
    "replay_capacity=192",
    "steps_per_update=8",
    "recycle_every_updates=null",
    "evaluate_every_steps=96",
    "evaluate_from_steps=0",
    "evaluation_episodes=2",
    "final_episodes=2",
    "max_episode_steps=40",
    "students=[net4,net17]",
    "progress_bar=false",
    "tensorboard=false",
    "threads=1",
    "checkpoint_every_steps=64",
]
TINY = ["total_steps=96", "warmup_steps=64", "batch_size=8", "replay_capacity=96", "rollout_steps=4"]


def composed(script: str, *overrides: str):
    with hydra.initialize_config_dir(str(EXAMPLES / "config"), version_base="1.3"):
        return hydra.compose(script, list(overrides))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that was stopped in the middle and resumed by its command: its folder, and what that one printed."""
    folder, patch, watch = tmp_path_factory.mktemp("run"), pytest.MonkeyPatch(), RunMonitor.watch

    def watch_and_send(monitor: RunMonitor) -> None:
        watch(monitor)
        if monitor.clock.steps == 128:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(RunMonitor, "watch", watch_and_send)
    with pytest.raises(SystemExit):
        rtpd_atari.run(composed("rtpd_atari", *SHORT, f"output_dir={folder}"))
    patch.undo()
    command = [sys.executable, str(EXAMPLES / "rtpd_atari.py"), f"resume={folder}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def content(folder: Path) -> dict[str, str]:
    """Digest of each file of a run but its video."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.stem != "play")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_that_was_cut_and_resumed_ends_with_its_video(finished: tuple[Path, str]) -> None:
    """Forty steps of two networks, 648 pixels wide, and where it lies is said last."""
    folder, said = finished
    with Image.open(folder / "play.gif") as video:
        assert video.size == (648, 480) and video.n_frames == 40
    assert said.strip().splitlines()[-1].startswith(f"{folder}/play.gif, ")
    assert 10_000 < (folder / "play.gif").stat().st_size <= 2_000_000


def test_a_video_changes_nothing_of_its_run(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    before = content(folder)
    show_at_the_end(folder, rtpd_atari.ATARI)
    assert content(folder) == before and "results.json" in before


def test_scores_are_those_of_the_runs_own_evaluator(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """One seed, the kept weights, the share of random actions and the bound of the run."""
    folder, _ = finished
    given = [str(folder), "--seed", "4", "--student", "net4", "net17", "--out", str(tmp_path / "new" / "game.gif")]
    path = play.main(given)
    assert path == tmp_path / "new" / "game.gif" and path.exists()
    config = saved_run(folder)
    evaluator = Evaluator(lambda: rtpd_atari.make_env(config, 1, evaluation=True), episodes=1, epsilon=0.05, seed=4)
    players = load_players(folder, config, rtpd_atari.ATARI, ["net4", "net17"], evaluator.env)
    assert list(players) == ["teacher", "net4", "net17"]
    said = capsys.readouterr().out
    for name, network in players.items():
        assert f"{name} scores {evaluator(network).mean:,g} in a whole game" in said
    evaluator.close()


def test_an_exported_student_plays_beside_its_network(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture
) -> None:
    """The same game, and the same share of states with the teacher's action."""
    pytest.importorskip("onnxruntime", reason="needs the export extra")
    from torchrl_rtpd import export_student

    folder, _ = finished
    config = saved_run(folder)
    env = rtpd_atari.make_env(config, 1, evaluation=True)
    net17 = load_players(folder, config, rtpd_atari.ATARI, ["net17"], env)["net17"]
    export_student(net17, folder / "deployed" / "net17", formats=["onnx"])
    play.main([str(folder), "--student", "net17", str(folder / "deployed" / "net17.onnx"), "--seconds", "1"])
    _, own, file = capsys.readouterr().out.split(";")
    shutil.rmtree(folder / "deployed")
    assert file.strip().rstrip(".").replace("net17.onnx", "net17") == own.strip()
    assert "agrees with the teacher in" in own


def test_an_mp4_is_written_where_asked(finished: tuple[Path, str]) -> None:
    pytest.importorskip("av", reason="needs the video extra")
    folder, _ = finished
    path = play.main([str(folder), "--format", "mp4", "--seconds", "1"])
    assert path == folder / "play.mp4" and 1_000 < path.stat().st_size <= 2_000_000


def test_a_window_shows_the_game(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """On SDL's own stand-in for a screen; without one the command says what to do."""
    pytest.importorskip("pygame", reason="needs the video extra")
    folder, _ = finished
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert play.main([str(folder), "--render", "human", "--seconds", "0.2"]) is None
    assert "teacher scores" in capsys.readouterr().out
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match="a window needs a screen"):
        play.main([str(folder), "--render", "human", "--seconds", "0.2"])


def test_a_run_that_cannot_be_drawn_stays_finished(finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = finished
    monkeypatch.setitem(sys.modules, "PIL", None)
    message = r"finished, without a video: .*pip install 'torchrl_rtpd\[video\]'; then `python examples/play\.py /.*`"
    with pytest.warns(UserWarning, match=message):
        assert show_at_the_end(folder, rtpd_atari.ATARI) is None


@pytest.mark.parametrize(
    ("normalised", "shown"),
    [
        ({"net4": 0.95, "net17": 0.9}, "net17"),
        ({"net4": 0.95, "net17": 0.89}, "net4"),
        ({"net4": 0.1, "net17": 0.1}, "net17"),
        ({"net4": 0.1}, "net4"),
    ],
)
def test_the_smallest_student_that_holds_the_teachers_score_is_shown(
    tmp_path: Path, normalised: dict[str, float], shown: str
) -> None:
    """net17 is smaller than net4; where none holds 90 %, the smallest is shown that has played the final games."""
    rows = [{"name": name, "normalised": share} for name, share in {"teacher": 1.0, **normalised}.items()]
    (tmp_path / "results.json").write_text(json.dumps({"networks": rows}))
    spec = rtpd_atari.AtariVecEnv("pong", 1).action_spec
    students = {name: make_actor(name, spec) for name in ("net4", "net17")}
    assert shown_student(tmp_path, students) == [shown]
    (tmp_path / "results.json").unlink()
    assert shown_student(tmp_path, students) == ["net17"]


@pytest.mark.parametrize(("method", "panels"), [("scratch", 1), ("teacher_only", 1)])
def test_a_network_alone_plays_alone(tmp_path: Path, method: str, panels: int) -> None:
    short = [entry for entry in SHORT if not entry.startswith(("students", "total", "warmup", "replay"))]
    given = [*short, *TINY, "students=[net17]", f"method={method}", f"output_dir={tmp_path}"]
    rtpd_atari.run(composed("rtpd_atari", *given))
    show_at_the_end(tmp_path, rtpd_atari.ATARI)
    with Image.open(tmp_path / "play.gif") as video:
        assert video.size == (320 * panels, 480)


@pytest.mark.parametrize("game", ["cartpole", "acrobot"])
def test_classic_control_is_drawn_too(tmp_path: Path, game: str) -> None:
    pytest.importorskip("pygame", reason="needs the video extra")
    quiet = ["progress_bar=false", "evaluation_episodes=2", "final_episodes=2", "evaluate_every_steps=0"]
    rtpd_classic.run(
        composed("rtpd_classic", *TINY, *quiet, f"game={game}", f"output_dir={tmp_path}"), rtpd_classic.CLASSIC
    )
    path = play.main([str(tmp_path), "--seconds", "1"])
    with Image.open(path) as video:
        assert video.size[0] == 648 and video.n_frames > 5


def test_runs_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """Every configuration that a published run of the main example has left; other files are refused."""
    found = list((EXAMPLES.parent / "docs" / "results").rglob("config.yaml"))
    assert len(found) > 10 and all(saved_run(path.parent).game for path in found)
    (tmp_path / "config.yaml").write_text("game: pong\nspeed: 9\n")
    with pytest.raises(ValueError, match=r"config\.yaml must be that of a run: got other keys or values.*speed"):
        saved_run(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "a run's folder holds config.yaml and weights/: got nowhere; give its output_dir"),
        (["RUN", "--student", "net5"], "a student is one of the run's, net4, net17, or an exported file: got net5"),
        (["RUN", "--seconds", "0"], "a recording takes some time: got seconds=0.0"),
        (["RUN", "--seconds", "1", "--out", "game.avi"], r"a video is written as \.gif or \.mp4: got game\.avi"),
    ],
)
def test_mistakes_have_a_message(finished: tuple[Path, str], arguments: list[str], message: str) -> None:
    folder, _ = finished
    with pytest.raises(ValueError, match=message):
        play.main([str(folder) if argument == "RUN" else argument for argument in arguments])
