"""States for 8-bit integers, drawn by the export itself: games named, environments played, replays sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrl.envs.utils import RandomPolicy

from torchrl_rtpd import AtariVecEnv, FrameStackStorage, make_actor, make_replay_buffer
from torchrl_rtpd.deploy.export import export_student
from torchrl_rtpd.deploy.states import states_of

pytest.importorskip("onnx", reason="needs the export extra")
pytest.importorskip("onnxruntime", reason="needs the export extra")

GAME = "road_runner"  # in which a player that knows nothing ends soon


def opened() -> AtariVecEnv:
    """Eight games of at most 150 steps."""
    return AtariVecEnv(GAME, 8, num_threads=1, seed=0, max_frames=600)


def filled_replay() -> Any:
    """A replay of single frames, after 1,024 steps of random play."""
    storage = FrameStackStorage(1024, num_envs=8, steps_per_write=32)
    replay = make_replay_buffer(storage, batch_size=32, seed=0)
    env = opened()
    state, player = env.reset(), RandomPolicy(env.action_spec)
    for _ in range(4):
        played = env.rollout(32, player, auto_reset=False, tensordict=state, break_when_any_done=False)
        replay.extend(played.reshape(-1))
        state = env.step_mdp(played[:, -1])
    env.close()
    return replay


@pytest.mark.parametrize("source", ["game", "environment", "replay"])
def test_states_are_drawn_by_the_export_itself(tmp_path: Path, source: str) -> None:
    """1,024 of them, of which every other one gives the ranges and the rest tells agreement and regret."""
    env = opened()
    student = make_actor("net17", env.action_spec, seed=0)
    calibration = {"game": None, "environment": env, "replay": filled_replay() if source == "replay" else None}[source]
    report = export_student(
        student, tmp_path / "net17", formats=["onnx_int8"], calibration=calibration, metadata={"game": GAME}
    )
    env.close()
    entry = report.files["onnx_int8"]
    assert entry.agreement is not None and entry.agreement >= 0.9
    assert entry.regret is not None and entry.regret <= 0.01
    card = json.loads(report.card.read_text())
    assert (card["compared_on_states"], card["compared_on"]) == (512, "held out")


def test_states_come_from_whole_games_and_are_the_same_again() -> None:
    """Not the first ones: of many more than are kept each is as likely, so that some lie late in a game."""
    found = []
    for _ in range(2):
        env = opened()
        found.append(states_of(env, make_actor("net17", env.action_spec, seed=0), "pixels", {}))
        env.close()
    first, again = found
    assert torch.equal(first, again) and first.shape == (1024, 4, 84, 84) and first.dtype == torch.uint8
    assert len(first.flatten(1).unique(dim=0)) > 512


def test_playing_changes_neither_the_student_nor_the_global_stream() -> None:
    env = opened()
    student = make_actor("net17", env.action_spec, seed=0).train()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    states_of(env, student, "pixels", {})
    env.close()
    assert torch.equal(torch.rand(3), wanted) and student.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
