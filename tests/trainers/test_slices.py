"""Rows of a slice sampler, given back to minibatches that hold them one behind the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from stepper_parts import ADAM, students, trainer_with
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, PrioritizedSliceSampler, SliceSampler, TensorDictReplayBuffer
from torchrl.trainers import ReplayBufferTrainer

from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.slices import SliceBatches


def played(slots: int = 3, steps: int = 10) -> TensorDict:
    """Slot 0 counts 0, 1, 2 ..., slot 1 from 100 and slot 2 from 200; a game begins at every fourth step."""
    number = 100 * torch.arange(slots)[:, None] + torch.arange(steps)
    ends = (number % 4 == 3)[..., None]
    nothing = torch.zeros_like(ends)
    return TensorDict(
        {
            "number": number,
            "is_init": (number % 4 == 0)[..., None],
            "next": {"done": ends, "terminated": ends.clone(), "truncated": nothing},
        },
        [slots, steps],
    )


def buffer_of(sampler: SliceSampler, batch: int) -> TensorDictReplayBuffer:
    """Filled as TorchRL's trainers do, twice."""
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(100), sampler=sampler, batch_size=batch)
    writer = ReplayBufferTrainer(buffer, flatten_tensordicts=True)
    for _ in range(2):
        writer.extend(SliceBatches(5).mark(played()))
    return buffer


def test_rows_are_steps_of_one_slot_across_the_ends_of_games() -> None:
    """Each row counts on by one; games begin within, and the sampler marks the beginning of the row in addition."""
    torch.manual_seed(0)
    buffer = buffer_of(SliceSampler(slice_len=5, end_key="slot_ends"), 40)
    rows = SliceBatches(5).split(buffer.sample())
    assert rows.shape == (8, 5)
    assert torch.equal(rows["number"].diff(dim=1), torch.ones(8, 4, dtype=torch.long))
    begins = (rows["number"] % 4 == 0)[..., None]
    assert begins[:, 1:].any()
    assert torch.equal(rows["is_init"][:, 1:], begins[:, 1:]) and rows["is_init"][:, 0].all()
    assert torch.equal(rows["next", "terminated"], (rows["number"] % 4 == 3)[..., None])  # where bootstrapping ends


def test_the_minibatch_itself_stays_flat() -> None:
    batch = played().reshape(-1).exclude("next")
    rows = SliceBatches(10).split(batch)
    assert batch.shape == (30,)
    assert torch.equal(rows["number"], played()["number"])


def test_priorities_find_their_steps() -> None:
    """The greatest of a row is stored for its first step, by which such a sampler draws rows."""
    torch.manual_seed(0)
    sampler = PrioritizedSliceSampler(100, 1.0, 1.0, slice_len=5, end_key="slot_ends")
    buffer = buffer_of(sampler, 20)
    rows = SliceBatches(5).split(buffer.sample())
    rows["td_error"] = 1.0 + rows["number"].float()[..., None]
    buffer.update_tensordict_priority(rows)
    found = torch.tensor([sampler._sum_tree[int(place)] for place in rows["index"].flatten(1)[:, 0]])
    torch.testing.assert_close(found, 1.0 + rows["number"][:, -1].float(), rtol=1e-4, atol=1e-4)


def test_padded_rows_are_told_by_their_mask() -> None:
    torch.manual_seed(0)
    sampler = SliceSampler(slice_len=6, end_key=("next", "done"), strict_length=False, pad_output=True)
    rows = SliceBatches(6).split(buffer_of(sampler, 24).sample())
    assert rows["collector", "mask"].shape == (4, 6)
    assert rows["collector", "mask"].sum(-1).min() == 4  # a game of four steps


# Errors


@pytest.mark.parametrize("shape", [(14,), (3, 5)])
def test_minibatches_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"whole rows of 5 steps in one dimension: got \[{shape[0]}"):
        SliceBatches(5).split(TensorDict({"number": torch.zeros(shape)}, shape))


def test_rows_of_unequal_lengths_are_refused() -> None:
    """Games of four and two steps add up to twelve, and yet are no rows of four."""
    ends = torch.zeros(12, 1, dtype=torch.bool)
    ends[[3, 5, 7, 11]] = True
    ends[[3]] = False
    batch = TensorDict({"next": {"truncated": ends}}, [12])
    with pytest.raises(ValueError, match=r"1 of 3 rows of 4 steps do not; .* strict_length=True, or pad_output=True"):
        SliceBatches(4).split(batch)


@pytest.mark.parametrize("slice_len", [0, 1.5, True, None])
def test_a_length_that_is_no_number_of_steps_is_refused(slice_len: object) -> None:
    with pytest.raises(ValueError, match=rf"slice_len must be an integer of at least 1: got {slice_len}; it is that"):
        SliceBatches(slice_len)


def test_a_replay_that_draws_no_slices_is_refused() -> None:
    """Its rows would be of steps that have nothing to do with each other."""
    trainer = trainer_with("cpu", lambda trainer: None)
    with pytest.raises(
        ValueError, match=r"got a replay buffer with a RandomSampler; give it SliceSampler\(slice_len=4"
    ):
        SliceBatches(4).register(trainer)


def test_a_sampler_of_other_slices_is_refused() -> None:
    """Two slices of five steps would be taken for one row of ten."""
    trainer = trainer_with("cpu", lambda trainer: None)
    trainer.replay_buffer = buffer_of(SliceSampler(slice_len=5, end_key="slot_ends"), 40)
    with pytest.raises(ValueError, match="must be that of the sampler: got 10 and a SliceSampler of 5; pass both"):
        SliceBatches(10).register(trainer)


def test_a_number_of_slices_is_a_length_as_well() -> None:
    """Eight slices of a batch of 16 have two steps, and two would be taken for a row of four; four are rows."""
    trainer = trainer_with("cpu", lambda trainer: None)
    trainer.replay_buffer = buffer_of(SliceSampler(num_slices=8, end_key="slot_ends"), 16)
    with pytest.raises(ValueError, match="must be that of the sampler: got 4 and a SliceSampler of 2; pass both"):
        SliceBatches(4).register(trainer)
    trainer.replay_buffer = buffer_of(SliceSampler(num_slices=4, end_key="slot_ends"), 16)
    SliceBatches(4).register(trainer)
    rows = SliceBatches(4).split(trainer.replay_buffer.sample())
    assert torch.equal(rows["number"].diff(dim=1), torch.ones(4, 3, dtype=torch.long))


@pytest.mark.parametrize("truncated", [True, False])
def test_rows_glued_together_are_refused(truncated: bool) -> None:
    """Where the size of a batch is told to TorchRL's hook alone; also if nothing marks the ends of slices."""
    torch.manual_seed(0)
    options = {} if truncated else {"truncated_key": None}
    buffer = buffer_of(SliceSampler(num_slices=8, end_key="slot_ends", **options), 16)
    with pytest.raises(ValueError, match=r"one slice: [34] of 4 rows of 4 steps are not steps that follow"):
        SliceBatches(4).split(buffer.sample())


def test_rows_may_cross_the_end_of_a_full_replay() -> None:
    """The second slot of the third batch of 20 steps lies at the places 22 to 27 and 0 to 3."""
    torch.manual_seed(0)
    sampler = SliceSampler(slice_len=5, end_key="slot_ends")
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(28), sampler=sampler, batch_size=100)
    writer = ReplayBufferTrainer(buffer, flatten_tensordicts=True)
    for _ in range(3):
        writer.extend(SliceBatches(5).mark(played(2)))
    rows = SliceBatches(5).split(buffer.sample())
    places = rows["index"].reshape(20, 5)
    assert (places[:, 1:] == 0).any()  # a row that crosses
    assert torch.equal(rows["number"].diff(dim=1), torch.ones(20, 4, dtype=torch.long))


@pytest.mark.parametrize("sampler", [SliceSampler, partial(PrioritizedSliceSampler, 100, 1.0, 1.0)])
def test_a_replay_without_the_marks_is_refused_before_it_is_sampled(sampler: Callable[..., SliceSampler]) -> None:
    """As a collector fills one by itself, or a run that began without the hook."""
    trainer = trainer_with("cpu", lambda trainer: None)
    trainer.replay_buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(100), sampler=sampler(slice_len=5, end_key="slot_ends"), batch_size=20
    )
    SliceBatches(5).register(trainer)
    trainer._pre_optim_hook()  # nothing is stored yet
    trainer.replay_buffer.extend(played().reshape(-1))
    with pytest.raises(KeyError, match=r"finds rows by \['slot_ends'\], which the replay lacks: it has .*'number'"):
        trainer._pre_optim_hook()


def test_rows_that_nobody_marks_are_refused_as_training_begins() -> None:
    """Whatever the order in which hooks are registered."""
    for marked in (False, True):
        hook = RealTimeDistillTrainer(students("cpu"), optimizer=ADAM)
        trainer = trainer_with("cpu", hook.register)
        trainer.replay_buffer = buffer_of(SliceSampler(slice_len=5, end_key="slot_ends"), 40)
        if marked:
            SliceBatches(5).register(trainer)
            trainer._setup_hook()
        else:
            with pytest.raises(RuntimeError, match=r"by 'slot_ends' needs the hook .*SliceBatches\(5\) with the tr"):
                trainer.train()
