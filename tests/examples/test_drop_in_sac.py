"""A student in TorchRL's own SACTrainer: five lines, a teacher that does not notice, a score as good as its."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drop_in_sac
import pytest
import torch
from torch import Tensor
from torchrl.trainers.algorithms.sac import SACTrainer

STEPS = 150


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three batches of 50 steps and 4 updates; the example itself works on whole games."""
    monkeypatch.setattr(drop_in_sac, "STEPS_PER_BATCH", 50)
    monkeypatch.setattr(drop_in_sac, "UPDATES_PER_BATCH", 4)
    with torch.random.fork_rng():
        yield


def bits(value: Any) -> Any:
    """A state as nested plain values, so that ``==`` compares it bit for bit."""
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(value.shape), value.detach().contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return [bits(item) for item in value] if isinstance(value, (list, tuple)) else value


def everything_of_the_teacher(trainer: SACTrainer, networks: dict[str, Any]) -> Any:
    """Networks, targets, optimiser, what it has collected, and the random stream it leaves."""
    return bits(
        {
            "network": dict(networks["teacher"].state_dict()),
            "loss": dict(trainer.loss_module.state_dict()),
            "optimizer": trainer.optimizer.state_dict(),
            "updates": trainer._optim_count,
            "stored": trainer.replay_buffer[:].select("observation", "action", ("next", "reward")).to_dict(),
            "random": torch.get_rng_state(),
        }
    )


def test_at_most_five_lines_are_added() -> None:
    """Import included; no other line uses this package."""
    lines = inspect.getsource(drop_in_sac).splitlines()
    added = [line for line in lines if line.endswith("# added")]
    assert 1 <= len(added) <= 5 and not any(";" in line for line in added)
    others = [line for line in lines if line not in added]
    assert not any("torchrl_rtpd" in line or "Distill" in line for line in others)


@pytest.mark.usefixtures("_short")
def test_the_teacher_is_bit_identical_without_the_added_lines() -> None:
    """Parameters, targets, optimiser, replay and random stream."""
    alone = drop_in_sac.train(STEPS, seed=3, with_student=False)
    joint = drop_in_sac.train(STEPS, seed=3)
    assert list(alone[1]) == ["teacher"] and list(joint[1]) == ["teacher", "student"]
    assert alone[0]._optim_count == 12
    assert everything_of_the_teacher(*alone) == everything_of_the_teacher(*joint)


@pytest.mark.usefixtures("_short")
def test_the_student_learns_and_is_far_smaller() -> None:
    """Every weight moves, towards the teacher: the KL falls within the run."""
    trainer, networks = drop_in_sac.train(STEPS, seed=0)
    fresh = drop_in_sac.make_actor(12, drop_in_sac.make_env().action_spec, seed=1_000)
    moved = zip(networks["student"].parameters(), fresh.parameters(), strict=True)
    assert all(not torch.equal(now, before) for now, before in moved)
    sizes = {name: sum(weight.numel() for weight in network.parameters()) for name, network in networks.items()}
    assert sizes["student"] < 0.06 * sizes["teacher"]
    kl = trainer._log_dict["distill/student/kl_to_teacher"]
    assert len(kl) == 3 and kl[-1] < kl[0]


@pytest.mark.usefixtures("_short")
def test_a_short_run_prints_a_table_and_leaves_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = drop_in_sac.run(steps=STEPS, seed=0, episodes=2, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["seed"] == 0 and results["steps"] == STEPS
    assert {"command", "versions"} <= results["environment"].keys()
    assert -1_700 < results["random_score"] < -700
    assert [network["name"] for network in results["networks"]] == ["teacher", "student"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("teacher", "student", "random player"))


def test_every_network_plays_the_same_games() -> None:
    """Doing nothing twice returns the same, another seed does not."""
    idle = [drop_in_sac.play(lambda observation: 0 * observation[:, :1], episodes=3, seed=seed) for seed in (0, 0, 1)]
    assert idle[0].tolist() == idle[1].tolist() != idle[2].tolist()
    assert (idle[0] < 0).all()


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_the_full_run_ends_with_a_student_as_good_as_its_teacher() -> None:
    """At least 90 % of the teacher's score, the random player's taken off both; and the teacher swings up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        results = drop_in_sac.run(seed=0)
    finally:
        torch.set_num_threads(threads)
    teacher, student = results["networks"]
    assert teacher["score_mean"] > -250
    assert student["normalised"] >= 0.9
