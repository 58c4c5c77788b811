"""Cures for pitfalls of TorchRL's off-policy and on-policy trainers."""

from __future__ import annotations

import pytest
import torch
from hook_parts import (
    FAST,
    cartpole,
    cartpole_trainer,
    filled,
    fleet,
    student_loss,
    teacher_state,
    trained,
    update,
)
from on_policy_parts import make_env, ppo_trainer, pqn_trainer, weights
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.trainers import ReplayBufferTrainer

from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.off_policy import BoundedHistory, KeepOnDevice, KeepWarmupData, SampleToDevice


@pytest.mark.parametrize(("keeps", "expected"), [(False, 700), (True, 1_000)])
def test_the_buffer_holds_every_collected_step_when_warm_up_data_is_kept(keeps: bool, expected: int) -> None:
    """Of 1000 steps in batches of 100 a stock trainer loses the 300 before the first batch that learns."""
    trainer = cartpole_trainer(steps=1_000, warmup_steps=400, steps_per_batch=100, updates_per_batch=1)
    collected: list[Tensor] = []
    if keeps:
        hook = KeepWarmupData(trainer.replay_buffer)
        hook.register(trainer)
        assert hook.state_dict() == {}
        hook.load_state_dict({})
    trainer.register_op("batch_process", lambda batch: (collected.append(batch["observation"].clone()), batch)[1])
    trainer.train()
    assert len(trainer.replay_buffer) == trainer.replay_buffer.write_count == expected
    everything = torch.cat([observation.reshape(-1, 4) for observation in collected])
    stored = trainer.replay_buffer.storage[:expected]["observation"]
    assert torch.equal(stored, everything[1_000 - expected :])  # in the order of collection, none twice


def test_padding_is_not_kept() -> None:
    """Batches that TorchRL splits into games and pads: only steps that were played are counted and stored."""
    trainer = cartpole_trainer(steps=200, warmup_steps=150, steps_per_batch=50, updates_per_batch=1)
    with pytest.warns(UserWarning, match="split_trajs"):
        trainer.collector = Collector(
            cartpole(),
            trainer.loss_module.value_network,
            frames_per_batch=50,
            total_frames=200,
            init_random_frames=150,
            split_trajs=True,
            auto_register_policy_transforms=False,
        )
    KeepWarmupData(trainer.replay_buffer).register(trainer)
    batches: list[TensorDictBase] = []
    trainer.register_op("batch_process", lambda batch: (batches.append(batch.clone()), batch)[1])
    trainer.train()
    assert any(not batch["collector", "mask"].all() for batch in batches)
    played = sum(int(batch["collector", "mask"].sum()) for batch in batches)
    assert len(trainer.replay_buffer) == played == 200


def test_warm_up_data_is_kept_only_inside_a_trainer() -> None:
    with pytest.raises(RuntimeError, match=r"extend was called before register: call hook\.register\(trainer\) first"):
        KeepWarmupData(TensorDictReplayBuffer(storage=LazyTensorStorage(2))).extend(TensorDict(batch_size=[2]))


def test_a_trainer_keeps_the_newest_values_it_logged_and_learns_as_before() -> None:
    """TorchRL's own keeps them all."""
    plain = cartpole_trainer()
    trained(plain, None)
    expected = teacher_state(plain)
    bounded = cartpole_trainer()
    hook = BoundedHistory(keep=2)
    hook.register(bounded)
    assert hook.state_dict() == {}
    hook.load_state_dict({})
    trained(bounded, None)
    assert teacher_state(bounded) == expected
    assert max(len(values) for values in plain._log_dict.values()) > 2
    assert bounded._log_dict.keys() == plain._log_dict.keys()
    for name, values in plain._log_dict.items():
        assert bounded._log_dict[name][-1] == values[-1]
        assert len(bounded._log_dict[name]) <= 2 + 1  # what is logged after the last look


def test_a_history_holds_the_newest_value_at_least() -> None:
    with pytest.raises(ValueError, match="keep must be an integer of at least 1: got 0; 1 keeps the newest"):
        BoundedHistory(keep=0)


def test_minibatches_are_moved_after_torchrl_has_sampled_them() -> None:
    """PyTorch's meta device stands in for an accelerator."""
    trainer = filled(cartpole_trainer())
    hook = SampleToDevice("meta")
    hook.register(trainer)
    assert hook.state_dict() == {}
    hook.load_state_dict({})
    batch = trainer._process_optim_batch_hook(None)
    assert batch.batch_size == torch.Size([8])
    assert batch["next", "observation"].device.type == "meta"


def test_moving_to_where_the_minibatch_is_changes_nothing() -> None:
    """So the hook can stay in a script that also runs without an accelerator."""
    plain = cartpole_trainer()
    trained(plain, None)
    expected = teacher_state(plain)
    moved = cartpole_trainer()
    SampleToDevice("cpu").register(moved)
    hook = trained(moved, fleet(1))
    assert teacher_state(moved) == expected
    assert hook.updates == 18


def test_a_batch_is_stored_on_the_device_that_it_lies_on() -> None:
    """PyTorch's meta device stands in for an accelerator: what lies there cannot be moved to the CPU."""
    trainer = ppo_trainer()[0]
    trainer._pre_epoch_ops.clear()
    written: list[TensorDictBase] = []

    class Kept(TensorDictReplayBuffer):  # TorchRL's own counts on the host, which meta cannot
        def extend(self, batch: TensorDictBase, **_: object) -> None:
            written.append(batch)

    storer = ReplayBufferTrainer(Kept(storage=LazyTensorStorage(128)), flatten_tensordicts=True)
    trainer.register_op("pre_epoch", storer.extend)
    rollout = make_env(8).rollout(16, break_when_any_done=False).to("meta")
    with pytest.raises(NotImplementedError, match="meta tensor"):
        trainer._pre_epoch_hook(rollout)
    hook = KeepOnDevice()
    hook.register(trainer)
    assert hook.state_dict() == {}
    assert trainer._pre_epoch_hook(rollout) is written[-1]
    assert (written[-1].batch_size, written[-1]["observation"].device.type) == (torch.Size([128]), "meta")


@pytest.mark.parametrize("method", ["ppo", "dqn"])
def test_a_teacher_learns_the_same_from_batches_that_stay_on_their_device(method: str) -> None:
    """Bit for bit, with the buffer's content."""
    found = []
    for keeps in (False, True):
        trainer = ppo_trainer()[0] if method == "ppo" else cartpole_trainer()
        if keeps:
            KeepOnDevice().register(trainer)
        trainer.train()
        found.append({**weights(trainer.loss_module), **dict(trainer.replay_buffer.storage[:].flatten_keys().items())})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_trainer_that_writes_no_batches_by_itself_needs_not_keep_them() -> None:
    """Targets of whole rollouts come with writes of their own."""
    trainer = pqn_trainer()[0]
    with pytest.raises(RuntimeError, match=r"this OnPolicyTrainer writes none by itself; leave KeepOnDevice out"):
        KeepOnDevice().register(trainer)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_learner_on_the_gpu_learns_from_a_buffer_in_memory() -> None:
    trainer = filled(cartpole_trainer())
    trainer.loss_module.to("cuda")
    SampleToDevice("cuda").register(trainer)
    hook = RealTimeDistillTrainer(student_loss().to("cuda"), optimizer=FAST)
    hook.register(trainer)
    batch = trainer._process_optim_batch_hook(None)
    update(trainer, hook, batch)
    assert hook.log()["distill/student/loss"] > 0
