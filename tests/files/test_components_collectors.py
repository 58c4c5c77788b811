"""Every collector of TorchRL that a trainer can hold survives a checkpoint: it counts on and collects on."""

import inspect

import pytest
import torch
import torchrl.collectors as collectors
import torchrl.collectors.distributed as distributed
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import (
    AsyncBatchedCollector,
    AsyncCollector,
    BaseCollector,
    Collector,
    MultiAsyncCollector,
    MultiSyncCollector,
)
from torchrl.envs import GymEnv

from torchrl_rtpd import DualNetworkCollector
from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.runs.components import CollectorState

FRAMES = 8


def make_env():
    return GymEnv("Pendulum-v1")


def policy():
    """One linear layer ``[3] -> [1]``, the same each time."""
    torch.manual_seed(0)
    return TensorDictModule(nn.Linear(3, 1), in_keys=["observation"], out_keys=["action"])


OPTIONS = {"frames_per_batch": FRAMES, "total_frames": 1_000, "auto_register_policy_transforms": False}
COLLECTORS = {
    Collector: lambda: Collector(make_env(), policy(), **OPTIONS),
    MultiSyncCollector: lambda: MultiSyncCollector([make_env] * 2, policy(), **OPTIONS),
    MultiAsyncCollector: lambda: MultiAsyncCollector([make_env] * 2, policy(), **OPTIONS),
    AsyncCollector: lambda: AsyncCollector(make_env, policy(), **OPTIONS),
    AsyncBatchedCollector: lambda: AsyncBatchedCollector(
        [make_env] * 2, policy=policy(), frames_per_batch=FRAMES, env_backend="threading"
    ),
    DualNetworkCollector: lambda: DualNetworkCollector(
        make_env(), policy(), frames_per_batch=FRAMES, total_frames=1_000
    ),
}
NOT_BUILT = {
    "BaseCollector": "abstract",
    "MultiCollector": "makes one of the two classes above",
    "DistributedCollector": "its workers are launched by torch.distributed",
    "DistributedSyncCollector": "its workers are launched by torch.distributed",
    "RPCCollector": "its workers are launched by torch.distributed.rpc",
    "RayCollector": "its workers are Ray actors",
}


def test_every_collector_of_torchrl_has_been_looked_at():
    """A new one is listed here, or fails."""
    exported = {
        name
        for module in (collectors, distributed)
        for name, item in vars(module).items()
        if inspect.isclass(item) and issubclass(item, BaseCollector)
    }
    built = {kind.__name__ for kind in COLLECTORS} - {"DualNetworkCollector"}
    assert len(exported) >= 10
    assert exported == built | NOT_BUILT.keys()


@pytest.mark.parametrize("kind", COLLECTORS, ids=lambda kind: kind.__name__)
def test_a_collector_counts_and_collects_on(tmp_path, kind):
    """Another one, given the state after a batch, saves the same and collects the next batch by the same policy."""
    saved = COLLECTORS[kind]()
    batches = iter(saved)
    next(batches)
    adapter = CollectorState(saved)
    VerifiedCheckpoint(collector=adapter).save(tmp_path / "checkpoint")
    wanted = adapter.state_dict()
    saved.shutdown()
    fresh = COLLECTORS[kind]()
    adapter = CollectorState(fresh)
    VerifiedCheckpoint(collector=adapter).load(tmp_path / "checkpoint")
    found = adapter.state_dict()
    for name in ("frames", "iter"):
        assert found.get(name) == wanted.get(name)
    batch = next(iter(fresh))
    fresh.shutdown()
    assert batch.numel() >= FRAMES
    assert torch.allclose(policy()(batch.select("observation"))["action"], batch["action"], atol=1e-5)
