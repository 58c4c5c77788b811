"""Students that see less than their teacher, and collection in other processes."""

import json
from pathlib import Path

import different_eyes
import pytest
import rtpd_distributed
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


def _check(results):
    assert results["networks"][1]["episodes"] == 2
    assert results["environment"]["command"]


def test_training_with_worker_processes(tmp_path):
    """The student acts, too."""
    _check(rtpd_distributed.run(steps=512, acting=0.3, episodes=2, out=tmp_path))
    assert (tmp_path / "results.json").exists()


@pytest.fixture
def ray_options(monkeypatch):
    """Three cores as Ray counts them; its workers are as important as the test and find the examples."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(rtpd_distributed.__file__).parent))
    yield {
        "ray_init_config": {"num_cpus": 3, "include_dashboard": False, "object_store_memory": 100_000_000},
        "remote_configs": {"num_cpus": 1, "memory": 0},
    }
    ray.shutdown()


@pytest.mark.ray
def test_training_with_ray_actors(ray_options):
    _check(rtpd_distributed.run(steps=512, backend="ray", sync=True, episodes=2, backend_options=ray_options))


@pytest.mark.ray
def test_remote_learners_train_teacher_and_student(ray_options):
    """Both come back, and neither is what it was; the same seed builds the same networks."""
    torch.manual_seed(0)
    before = {"teacher": rtpd_distributed.make_actor(128), "student": rtpd_distributed.make_actor(16)}
    after = rtpd_distributed.train_remotely(1_024, seed=0, workers=2, learners=1, backend_options=ray_options)
    for name, network in after.items():
        for parameter, value in network.state_dict().items():
            assert not torch.equal(value, before[name].state_dict()[parameter]), (name, parameter)
