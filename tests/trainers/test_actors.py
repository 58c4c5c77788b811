"""Names of actors that died; on Ray itself they are tested with ``examples/rtpd_distributed.py``."""

from __future__ import annotations

import pytest
from hook_parts import cartpole_trainer

from torchrl_rtpd.trainers import dead_actors_named


def test_a_training_in_this_process_goes_on_and_its_errors_pass_unchanged() -> None:
    """Without Ray there is nobody to name, and Ray is not even imported."""
    trainer = cartpole_trainer()
    seen = []

    def fail() -> None:
        seen.append(trainer.collected_frames)
        if len(seen) == 2:
            raise ValueError("the second batch is bad")

    trainer.register_op("post_steps", fail)
    with pytest.raises(ValueError, match="the second batch is bad"), dead_actors_named(trainer):
        trainer.train()
    assert len(seen) == 2
