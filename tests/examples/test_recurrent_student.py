"""A student that must remember what its teacher sees."""

import json

import pytest
import recurrent_student
import torch
from hook_parts import content


@pytest.fixture
def short(monkeypatch):
    """Rollouts of eight rows."""
    monkeypatch.setattr(recurrent_student, "SLOTS", 8)
    monkeypatch.setattr(recurrent_student, "STEPS_PER_BATCH", 8 * 32)


def test_a_short_run_prints_a_table_and_leaves_results(short, tmp_path, capsys):
    results = recurrent_student.run(steps=512, seed=0, episodes=2, out=tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert [network["name"] for network in results["networks"]] == ["teacher", "recurrent", "feed_forward"]
    sizes = [network["parameters"] for network in results["networks"][1:]]
    assert max(sizes) < 1.05 * min(sizes)
    assert "feed_forward" in capsys.readouterr().out


def test_students_see_no_velocities():
    state = torch.tensor([2.4, 9.0, -0.21, 9.0])
    assert recurrent_student.Positions()(state).tolist() == pytest.approx([1.0, -1.0])
    for student in recurrent_student.make_students(0).values():
        assert "observation" in student.in_keys and student[0][0].in_keys == ["observation"]


def test_the_teacher_is_bit_identical_without_students(short):
    """Its minibatches are flat then, and rows with students."""
    states = []
    for with_students in (False, True):
        trainer, networks = recurrent_student.train(512, seed=3, with_students=with_students)
        loss, optimizer = dict(trainer.loss_module.state_dict()), trainer.optimizer.state_dict()
        states.append(content({"loss": loss, "optimizer": optimizer, "random": torch.get_rng_state()}))
        assert len(networks) == (3 if with_students else 1)
    assert states[0] == states[1]


def test_games_begin_where_the_one_before_ended():
    """Within the rollout too, as the students' memory needs it."""
    env = recurrent_student.make_env(4)
    env.set_seed(0)
    rollout = env.rollout(60, break_when_any_done=False)
    assert rollout["next", "done"].any()
    assert torch.equal(rollout["is_init"][:, 1:], rollout["next", "done"][:, :-1])
    assert rollout["is_init"][:, 0].all()
    env.close()


@pytest.mark.slow
def test_only_the_student_with_a_memory_reaches_its_teacher():
    shares = {network["name"]: network["normalised"] for network in recurrent_student.run()["networks"]}
    assert shares["recurrent"] > 0.9 > 0.5 > shares["feed_forward"]
