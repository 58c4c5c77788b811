"""Going on in another place: more environments, other threads, a device that the checkpoint does not know."""

import random
import shutil

import numpy as np
import pytest
import torch
from parts import bits, small_run
from tensordict import TensorDict
from torch import nn
from torchrl.checkpoint import GlobalRNGState
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.runs.checkpoints import newest_checkpoint
from torchrl_rtpd.runs.components import RandomState, ReplayState


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A run of two environments that was left at step 88, with its replay."""
    folder = tmp_path_factory.mktemp("left")
    run = small_run(folder, 88)
    run.trainer.train()
    return run, folder


@pytest.mark.parametrize("slots", [1, 4])
def test_a_run_goes_on_with_another_number_of_environments(left, tmp_path, slots):
    """Networks, optimisers and counters are those that were left; games and replay begin from scratch."""
    before, folder = left
    shutil.copytree(folder, tmp_path / "run")
    resumed = small_run(tmp_path / "run", 160, slots=slots)
    with (
        pytest.warns(UserWarning, match=rf"goes on with {slots} instead of 2 \(environments\); its games begin from"),
        pytest.warns(UserWarning, match="the saved replay is not used: its sizes are"),
    ):
        resumed.saver.restore(newest_checkpoint(tmp_path / "run"))
    assert resumed.trainer.collected_frames == 88 and len(resumed.buffer) == 16
    for part in ("loss", "optimizer"):
        assert bits(getattr(resumed, part).state_dict()) == bits(getattr(before, part).state_dict())
    assert bits(resumed.hook.state_dict()) == bits(before.hook.state_dict())
    resumed.trainer.train()
    assert resumed.trainer.collected_frames == 160


def test_other_threads_are_said_and_change_nothing_else(left, tmp_path):
    _, folder = left
    shutil.copytree(folder, tmp_path / "run")
    resumed = small_run(tmp_path / "run", 96)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match=rf"goes on with {threads + 1} instead of {threads} \(threads\)\.$"):
            resumed.saver.restore(newest_checkpoint(tmp_path / "run"))
    finally:
        torch.set_num_threads(threads)
    assert len(resumed.buffer) == 88 and resumed.saver._trainer.checkpoint.components["collector"].continued


def test_a_captured_run_goes_on_on_a_cpu(tmp_path):
    """Its optimisers counted and read their rates on the device, and were not fused."""
    run = small_run(tmp_path, 48)

    def capture():
        if run.trainer.collected_frames == 48:
            group = run.trainer.optimizer.param_groups[0]
            group.update(capturable=True, fused=None, lr=torch.tensor(group["lr"]))

    run.trainer.register_op("post_steps", capture)
    run.trainer.train()
    resumed = small_run(tmp_path, 96)
    resumed.saver.restore(newest_checkpoint(tmp_path))
    own = resumed.trainer.optimizer.param_groups[0]
    assert (own["capturable"], own["fused"], type(own["lr"])) == (False, True, float)
    resumed.trainer.train()
    assert resumed.trainer.collected_frames == 96


def test_generators_of_devices_that_are_not_here_are_left_out():
    """All others come back."""
    state = GlobalRNGState().state_dict()
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    state |= {"torch_cuda": [torch.zeros(16, dtype=torch.uint8)] * 8, "torch_mps": torch.zeros(16, dtype=torch.uint8)}
    if not torch.cuda.is_available():
        RandomState().load_state_dict(state)
        assert (random.random(), np.random.rand(), torch.rand(()).item()) == drawn


def test_a_replay_is_restored_on_the_device_of_its_storage(tmp_path):
    """A file has no device; "meta" stands for one that is not the CPU."""
    saved, fresh = (
        TensorDictReplayBuffer(storage=LazyTensorStorage(8, device=device), batch_size=2) for device in ("cpu", "meta")
    )
    saved.extend(TensorDict({"obs": torch.arange(6.0)[:, None]}, [6]))
    VerifiedCheckpoint(replay=ReplayState(saved)).save(tmp_path / "checkpoint")
    VerifiedCheckpoint(replay=ReplayState(fresh)).load(tmp_path / "checkpoint")
    assert {leaf.device.type for leaf in fresh.storage._storage.values(True, True)} == {"meta"}


def test_a_transform_with_a_place_for_each_game_keeps_its_own(left, tmp_path):
    """A normaliser's statistics come back, a buffer of another size stays."""
    _, folder = left
    shutil.copytree(folder, tmp_path / "run")
    resumed = small_run(tmp_path / "run", 96)
    collector = resumed.trainer.checkpoint.components["collector"]
    state = collector.state_dict()
    module = nn.Module()
    module.register_buffer("mean", torch.zeros(3))
    module.register_buffer("steps", torch.zeros(2))
    from torchrl_rtpd.runs.components import _load_fitting

    _load_fitting(module, {"mean": torch.ones(3), "steps": torch.ones(4)})
    assert torch.equal(module.mean, torch.ones(3)) and torch.equal(module.steps, torch.zeros(2))
    assert "environment" in state
