"""Students that see less than their teacher."""

import json

import different_eyes
import pytest
import torch


def test_the_student_sees_the_last_three_positions_and_no_velocities():
    """What it reads, written out from the states of a rollout: each step's view is the newest two of six numbers."""
    env = different_eyes.make_env(2)
    env.set_seed(0)
    rollout = env.rollout(6, break_when_any_done=False)
    views = rollout["observation"][..., ::2] * different_eyes.PIXELS
    for step in range(2, 6):
        expected = torch.cat([views[:, step - 2], views[:, step - 1], views[:, step]], -1)
        torch.testing.assert_close(rollout["seen"][:, step], expected)
    env.close()


def test_networks_that_read_different_keys_learn_in_one_run(tmp_path):
    results = different_eyes.run(steps=256, seed=0, episodes=2, out=tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert [network["name"] for network in results["networks"]] == ["teacher", "student"]
    networks = different_eyes.train(128, seed=0)
    assert [network.in_keys for network in networks.values()] == [["observation"], ["seen"]]


@pytest.mark.slow
def test_a_student_with_other_eyes_comes_near_its_teacher():
    results = different_eyes.run()
    assert results["networks"][1]["normalised"] > 0.5
