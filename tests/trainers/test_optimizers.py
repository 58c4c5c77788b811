"""Optimisers whose saved state comes from another device; without a GPU, from a state that says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hook_parts import FAST, cartpole_trainer, filled, minibatches, student_loss, update
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torchrl.checkpoint import Checkpoint

from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.optimizers import keep_device_options


def stepped(make: Callable[..., torch.optim.Optimizer], steps: int = 3) -> torch.optim.Optimizer:
    """An optimiser that has made some steps with a gradient of one."""
    optimizer = make([nn.Parameter(torch.tensor([1.0, -1.0]))])
    step(optimizer, steps)
    return optimizer


def step(optimizer: torch.optim.Optimizer, steps: int = 1) -> list[float]:
    (parameter,) = optimizer.param_groups[0]["params"]
    for _ in range(steps):
        parameter.grad = torch.ones(2)
        optimizer.step()
    return parameter.tolist()


def captured(state: dict[str, Any]) -> dict[str, Any]:
    """The state as an update that ran as a CUDA graph leaves it."""
    state = copy.deepcopy(state)
    for group in state["param_groups"]:
        group.update(capturable=True, lr=torch.tensor(group["lr"]))
    return state


@pytest.mark.parametrize("make", [partial(kind, lr=0.125) for kind in (Adam, AdamW, RMSprop)])
def test_a_state_of_a_captured_run_goes_on_on_a_cpu_as_the_one_that_was_not(make: Callable[..., Any]) -> None:
    saved = stepped(make)
    restored = []
    for state in (saved.state_dict(), captured(saved.state_dict())):
        optimizer = keep_device_options(stepped(make, 3))
        optimizer.load_state_dict(state)
        restored.append(step(optimizer, 2))
        assert optimizer.param_groups[0]["capturable"] is False
        assert optimizer.param_groups[0]["lr"] == 0.125 and isinstance(optimizer.param_groups[0]["lr"], float)
    assert restored[0] == restored[1]


def test_without_it_pytorch_refuses_to_go_on() -> None:
    """So that this can be dropped once it no longer does."""
    optimizer = stepped(partial(Adam, lr=0.125))
    optimizer.load_state_dict(captured(optimizer.state_dict()))
    with pytest.raises(AssertionError, match="capturable=True"):
        step(optimizer)


@pytest.mark.parametrize("option", ["fused", "foreach"])
@pytest.mark.parametrize("own", [True, False])
def test_kernels_are_those_the_optimiser_was_built_with(option: str, own: bool) -> None:
    saved = stepped(partial(Adam, lr=0.125, **{option: not own})).state_dict()
    optimizer = keep_device_options(stepped(partial(Adam, lr=0.125, **{option: own})))
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0][option] is own
    step(optimizer)


def test_what_is_not_bound_to_a_device_is_loaded() -> None:
    saved = stepped(partial(Adam, lr=0.5, betas=(0.5, 0.75), eps=0.25)).state_dict()
    optimizer = keep_device_options(stepped(partial(Adam, lr=0.125), 1))
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.5, 0.75), 0.25)
    (state,) = optimizer.state.values()
    assert int(state["step"]) == 3


def test_a_rate_that_is_a_tensor_stays_one_and_so_does_a_schedulers_first() -> None:
    """The other way round: the loaded rate is a number, the optimiser's own a tensor."""
    saved = stepped(partial(Adam, lr=0.5))
    torch.optim.lr_scheduler.LambdaLR(saved, lambda _: 1.0)
    optimizer = keep_device_options(stepped(partial(Adam, lr=torch.tensor(0.125))))
    optimizer.load_state_dict(saved.state_dict())
    group = optimizer.param_groups[0]
    assert torch.equal(group["lr"], torch.tensor(0.5)) and torch.equal(group["initial_lr"], torch.tensor(0.5))


def test_the_saved_state_is_left_alone() -> None:
    state = captured(stepped(partial(Adam, lr=0.125)).state_dict())
    optimizer = keep_device_options(keep_device_options(stepped(partial(Adam, lr=0.125))))
    optimizer.load_state_dict(state)
    assert state["param_groups"][0]["capturable"] is True
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1


def test_optimisers_without_such_options_and_wrong_states_are_pytorchs_affair() -> None:
    optimizer = keep_device_options(stepped(partial(SGD, lr=0.125, momentum=0.5)))
    optimizer.load_state_dict(stepped(partial(SGD, lr=0.5, momentum=0.5)).state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.5
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({**state, "param_groups": state["param_groups"] * 2})


def test_a_hook_takes_a_state_of_a_captured_run() -> None:
    """The students' optimisers; the update after it is the one that would have come."""
    trainer = filled(cartpole_trainer())
    hook = RealTimeDistillTrainer(student_loss(), optimizer=FAST)
    hook.register(trainer)
    first, second = minibatches(trainer, 2)
    update(trainer, hook, first)
    state = copy.deepcopy(hook.state_dict())
    state["optimizers"]["student"] = captured(state["optimizers"]["student"])
    expected = None
    for saved in (hook.state_dict(), state):
        other = RealTimeDistillTrainer(student_loss(seed=5), optimizer=FAST)
        other.load_state_dict(copy.deepcopy(saved))
        other.register(filled(cartpole_trainer()))
        batch = second.clone()
        trainer.loss_module(batch)
        batch["teacher", "action_value"] = torch.zeros(8, 2)
        batch["next", "teacher", "action_value"] = torch.zeros(8, 2)
        with pytest.warns(UserWarning, match="stored values are those of the teacher at the time of collection"):
            other.step(batch)
        found = [value.tolist() for value in other.students["student"].state_dict().values()]
        assert expected is None or found == expected
        expected = found


def test_torchrls_checkpoint_takes_the_way_of_the_trainers_optimiser(tmp_path: Any) -> None:
    """However a state is loaded: the trainer's optimiser keeps its options, once it was told to."""
    first, second = cartpole_trainer(checkpoint=Checkpoint()), cartpole_trainer(checkpoint=Checkpoint())
    for trainer in (first, second):
        for _ in range(2):
            filled(trainer)
            loss = trainer.loss_module(trainer.replay_buffer.sample())["loss"]
            loss.backward()
            trainer.optimizer.step()
        trainer.collector.shutdown()
    for group in first.optimizer.param_groups:
        group.update(capturable=True, lr=torch.tensor(group["lr"]))
    first.checkpoint.save(tmp_path / "run", components={"optimizer"})
    keep_device_options(second.optimizer)
    second.checkpoint.load(tmp_path / "run", components={"optimizer"})
    assert second.optimizer.param_groups[0]["capturable"] is False
    second.optimizer.step()
