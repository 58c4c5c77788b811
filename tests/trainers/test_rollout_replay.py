"""A rollout in a replay of frames: each frame once, written once, and learned from as from whole stacks."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.modules import EGreedyModule
from torchrl.trainers.algorithms.on_policy import OnPolicyTrainer

from torchrl_rtpd import (
    AtariVecEnv,
    DualNetworkCollector,
    FrameStackStorage,
    LambdaTargets,
    PQNLoss,
    RealTimeDistillTrainer,
    StudentPQNLoss,
    make_actor,
)

SLOTS, STEPS, BATCH = 4, 8, 8
ROLLOUT = SLOTS * STEPS


def build(
    storage: str,
    *,
    single: bool = False,
    rollouts: int = 3,
    epochs: int = 2,
    keep=("action_value",),
    batch: int = BATCH,
):
    """A trainer of PQN with a student on Pong, whose games are cut after 11 steps, in the middle of rollouts."""
    torch.manual_seed(0)
    env = AtariVecEnv("pong", SLOTS, seed=0, num_threads=1, frame_stack=1 if single else 4, max_frames=44, noop_max=0)
    teacher, student = (make_actor("net17", env.action_spec, seed=seed, norm="layer") for seed in (1, 2))
    loss = PQNLoss(teacher)
    steps = ROLLOUT * rollouts
    exploration = EGreedyModule(env.action_spec_unbatched, 1.0, 0.1, annealing_num_steps=steps)
    collector = DualNetworkCollector(
        env,
        teacher,
        exploration=exploration,
        frames_per_batch=ROLLOUT,
        total_frames=steps,
        keep=list(keep),
        frame_stack=4 if single else None,
    )
    held = {
        "frames": lambda: FrameStackStorage(ROLLOUT, num_envs=SLOTS, steps_per_write=STEPS),
        "stacks": lambda: LazyTensorStorage(ROLLOUT),
    }[storage]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = OnPolicyTrainer(
            collector=collector,
            total_frames=steps,
            frame_skip=1,
            optim_steps_per_batch=None,
            loss_module=loss,
            optimizer=torch.optim.RAdam(loss.parameters(), lr=1e-3),
            replay_buffer=TensorDictReplayBuffer(storage=held, sampler=SamplerWithoutReplacement(), batch_size=BATCH),
            num_epochs=epochs,
            add_gae=False,
            clip_norm=10.0,
            progress_bar=False,
            episode_reward_key="episode_reward",
        )
    loss.set_keys(terminated="end_of_life")
    hook = LambdaTargets(gamma=0.9)
    hook.register(trainer)
    RealTimeDistillTrainer(StudentPQNLoss(student), optimizer=partial(torch.optim.Adam, lr=1e-3)).register(trainer)
    return trainer, nn.ModuleList([teacher, student]), hook


def learned(*args, **kwargs) -> dict[str, torch.Tensor]:
    """Weights of teacher and student after training."""
    trainer, networks, _ = build(*args, **kwargs)
    trainer.train()
    return {name: value.clone() for name, value in networks.state_dict().items()}


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, value in first.items() if not torch.equal(value, second[name])]


@pytest.mark.parametrize("single", [False, True], ids=["stacks", "single frames"])
def test_a_replay_of_frames_teaches_the_same_as_one_of_stacks_to_the_last_bit(single: bool) -> None:
    """Three rollouts of two epochs, with games that are cut inside of a rollout and go on over its end."""
    assert not differing(learned("frames", single=single), learned("stacks"))


def test_weights_differ_where_learning_does() -> None:
    """So that the comparison above can fail."""
    assert len(differing(learned("frames", rollouts=2), learned("frames"))) > 20


@pytest.mark.parametrize(("storage", "single"), [("stacks", False), ("frames", False), ("frames", True)])
def test_a_rollout_is_written_once_and_each_epoch_goes_over_all_of_it(storage: str, single: bool) -> None:
    """Three epochs of four minibatches: each transition three times, in another order each time."""
    trainer, _, _ = build(storage, single=single, rollouts=1, epochs=3)
    seen, writes = [], []
    extend = trainer.replay_buffer.extend
    trainer.replay_buffer.extend = lambda data: writes.append(len(data)) or extend(data)
    trainer.register_op("post_optim_log", lambda batch: seen.append(batch["index"].flatten()) or None)
    trainer.train()
    epochs = torch.cat(seen).view(3, ROLLOUT)
    assert writes == [ROLLOUT]
    assert (epochs.sort(-1).values == torch.arange(ROLLOUT)).all()
    assert not torch.equal(epochs[0], epochs[1])


def test_values_at_the_end_of_a_rollout_of_single_frames_are_those_of_the_stacks() -> None:
    """The targets of a rollout that games are cut in, against those of the same rollout in stacks."""
    written = []
    for storage, single in (("frames", True), ("stacks", False)):
        trainer, _, _ = build(storage, single=single, rollouts=2)
        trainer.register_op("pre_steps_log", lambda batch: written.append(batch.clone()) or None)
        trainer.train()
    single, stacks = written[:2], written[2:]
    assert any((batch["next", "truncated"][:, :-1]).any() for batch in stacks)
    for frames, whole in zip(single, stacks, strict=True):
        assert frames["pixels"].shape[2] == 1 and whole["pixels"].shape[2] == 4
        assert torch.equal(frames["value_target"], whole["value_target"])


def test_a_storage_of_frames_holds_each_frame_once() -> None:
    """A transition takes a frame of 84 x 84 bytes and little more; in whole stacks it takes eight."""
    trainer, _, _ = build("frames", single=True, rollouts=1)
    trainer.train()
    storage = trainer.replay_buffer.storage
    frames = storage._ring._frames
    assert len(frames) == ROLLOUT + 4 * SLOTS + 1  # those before the rollout, those after it, a black one
    assert storage.bytes_per_transition < 84 * 84 * (1 + 4 * SLOTS / ROLLOUT) * 1.5


def test_single_frames_without_the_values_that_acted_are_refused() -> None:
    trainer, _, _ = build("frames", single=True, rollouts=1, keep=())
    with pytest.raises(KeyError, match=r"single frames need the values that acted: .*keep=\['action_value'\]"):
        trainer.train()


def test_single_frames_in_a_replay_that_makes_no_stacks_are_refused() -> None:
    trainer, _, _ = build("stacks", single=True, rollouts=1)
    with pytest.raises(ValueError, match=r"pixels must be \[\*B, 4, 84, 84\]: got \[4, 1, 84, 84\]"):
        trainer.train()
