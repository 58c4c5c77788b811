"""Weights on their way to workers, however a trainer gives them."""

from __future__ import annotations

from collector_parts import Tape, always
from tensordict import TensorDict

from torchrl_rtpd import DualNetworkCollector


def test_a_teacher_that_an_on_policy_trainer_names_reaches_the_workers() -> None:
    """TorchRL's ``weight_update_map={"policy": ...}`` sends a mapping; action 0 until then, 1 from then on."""
    collector = DualNetworkCollector(Tape, always(0), num_collectors=2, sync=True, frames_per_batch=16, total_frames=32)
    first, second = [], []
    for batch in collector:
        (second if first else first).append(batch["action"].clone())
        collector.update_policy_weights_(weights_dict={"policy": TensorDict.from_module(always(1))})
    collector.shutdown()
    assert first[0].eq(0).all()
    assert second[0].eq(1).all()
