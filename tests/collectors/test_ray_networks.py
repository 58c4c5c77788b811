"""The paper's networks, whose weights lie channels last, on Ray, which sends no such weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torchrl.data import Categorical

from torchrl_rtpd import AtariVecEnv, DualNetworkCollector, make_actor


@pytest.fixture
def quick_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    yield
    ray.shutdown()


@pytest.mark.ray
def test_networks_with_channels_last_act_on_ray_and_get_new_weights(quick_ray: None) -> None:
    """Recorded values are those of the network here, before and after new weights are sent; it keeps its layout."""
    teacher, student = (make_actor(name, Categorical(18), seed=0) for name in ("teacher", "net17"))
    (weight,) = [value for name, value in teacher.named_parameters() if value.ndim == 4][:1]
    assert not weight.is_contiguous()
    collector = DualNetworkCollector(
        partial(AtariVecEnv, "road_runner", 2, num_threads=1, full_action_space=True),
        teacher,
        student,
        record=True,
        backend="ray",
        backend_options={
            "ray_init_config": {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100_000_000},
            "remote_configs": {"num_cpus": 1, "memory": 0},
        },
        sync=True,
        frames_per_batch=8,
        total_frames=24,
    )
    seen = []
    for batch in collector:
        with torch.no_grad():
            expected = teacher(batch.select("pixels"))["action_value"]
            torch.testing.assert_close(batch["teacher", "action_value"], expected, rtol=1e-4, atol=1e-5)
            seen.append(expected.mean().item())
            teacher.module[0].module.head.bias.add_(1.0)
        # What is given is sent, and without anything all weights as they are here.
        collector.update_policy_weights_(*([collector.dual_policy.weights("teacher")] if len(seen) == 1 else []))
    collector.shutdown()
    assert not weight.is_contiguous()
    assert len(seen) == 3 and seen[1] > seen[0] + 0.5 and seen[2] > seen[1] + 0.5
