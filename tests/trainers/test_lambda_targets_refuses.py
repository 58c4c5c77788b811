"""Trainers and rollouts that would never end, or be learned from wrongly, are refused by the hook of PQN's targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from on_policy_parts import ROLLOUT, make_env, network, pqn_trainer
from tensordict import TensorDict
from torch import nn
from torchrl.data import (
    Categorical,
    LazyTensorStorage,
    MultiOneHot,
    PrioritizedSampler,
    RandomSampler,
    SamplerWithoutReplacement,
    TensorDictReplayBuffer,
)
from torchrl.modules import QValueActor

from torchrl_rtpd import LambdaTargets, PQNLoss, StudentPQNLoss


def replay(sampler: Any, **options: Any) -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(storage=LazyTensorStorage(ROLLOUT, **options), sampler=sampler, batch_size=32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replay_buffer": replay(RandomSampler())}, "one pass over the rollout: got a RandomSampler, whose passes"),
        ({"replay_buffer": replay(PrioritizedSampler(ROLLOUT, 0.6, 0.4))}, "got a PrioritizedSampler"),
        ({"replay_buffer": None}, "a trainer without one, whose epochs have no end; give it replay_buffer=Tensor"),
        (
            {"replay_buffer": replay(SamplerWithoutReplacement(), ndim=2)},
            "stored as single steps: got a storage of 2 dimensions; leave ndim out",
        ),
        (
            {"names": {"terminated": "end_of_life"}},
            "got terminated='terminated' instead of 'end_of_life', as it sets its own; "
            "give it terminated_key='end_of_life'",
        ),
        ({"names": {"reward": "score"}}, "got reward='reward' instead of 'score'"),
    ],
)
def test_a_trainer_is_refused_before_it_learns(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pqn_trainer(**options)


def test_names_that_the_trainer_was_given_too_are_kept() -> None:
    """A name that both have heard of is not lost."""
    trainer, _, hook = pqn_trainer(names={"terminated": "end_of_life"}, terminated_key="end_of_life")
    assert hook._loss is trainer.loss_module and hook._loss.tensor_keys.terminated == "end_of_life"
    assert hook._loss.names_lost == {}


def test_a_trainer_that_is_to_estimate_advantages_is_told_of_the_hook() -> None:
    with pytest.raises(
        RuntimeError, match=r"written by torchrl_rtpd\.trainers\.LambdaTargets; give the trainer add_gae"
    ):
        pqn_trainer(add_gae=True)


def rollout(slots: int = 2, steps: int = 4, **following: torch.Tensor) -> TensorDict:
    """Observations of CartPole that never end a game."""
    column = torch.zeros(slots, steps, 1)
    after = {
        "observation": torch.randn(slots, steps, 4),
        "reward": column,
        "done": column > 0,
        "terminated": column > 0,
    }
    return TensorDict(
        {
            "observation": torch.randn(slots, steps, 4),
            "action": torch.zeros(slots, steps, dtype=torch.long),
            "next": TensorDict({**after, **following}, [slots, steps]),
        },
        [slots, steps],
    )


def hook_of(actor: nn.Module) -> LambdaTargets:
    hook = LambdaTargets(gamma=0.99, lmbda=0.95)
    hook._loss = PQNLoss(actor)
    return hook


def test_rewards_without_a_dimension_of_their_own_are_named() -> None:
    hook = hook_of(network(8, make_env(1), 0))
    with pytest.raises(
        ValueError, match=r"\('next', 'reward'\) must be \[N, T, 1\]: got \[2, 4\] in a rollout \[2, 4\]"
    ):
        hook.write(rollout(reward=torch.zeros(2, 4)))


def test_padding_after_trajectories_is_refused() -> None:
    """Targets would be bootstrapped from it."""
    padded = rollout().set(("collector", "mask"), torch.tensor([[True] * 4, [True] * 3 + [False]]))
    trainer, _, hook = pqn_trainer()
    with pytest.raises(ValueError, match="got 1 steps of padding after trajectories; collect with split_trajs=False"):
        hook.write(padded)
    trainer.collector.shutdown()


def test_a_replay_without_minibatches_is_refused() -> None:
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(ROLLOUT), sampler=SamplerWithoutReplacement())
    trainer, _, hook = pqn_trainer(replay_buffer=buffer)
    with pytest.raises(ValueError, match="got one without batch_size; give it one that divides 128"):
        hook.write(rollout(8, 16))
    trainer.collector.shutdown()


class Noisy(nn.Module):
    """Values after layers that act differently in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.layers(observation.reshape(-1, 4)).reshape(*observation.shape[:-1], 2)


def test_targets_are_those_of_the_network_in_eval_mode() -> None:
    """Neither noise nor a batch's statistics get into them, and the statistics are not moved; training goes on."""
    actor = QValueActor(Noisy(), in_keys=["observation"], spec=Categorical(2))
    hook, tape = hook_of(actor), rollout()
    before = {name: value.clone() for name, value in actor.state_dict().items()}
    first, second = (hook.write(tape.clone())["value_target"] for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[name]) for name, value in actor.state_dict().items())
    assert actor.training
    assert hook.write(rollout(1, 1))["value_target"].shape == (
        1,
        1,
        1,
    )  # one sample, which BatchNorm refuses in training


def test_returns_of_a_network_in_half_precision_are_summed_in_single() -> None:
    """128 rewards of one, which bfloat16 could not add up: a return of 1 + 0.99 + ... within a hundredth."""
    actor = network(8, make_env(1), 0).to(torch.bfloat16)
    for parameter in actor.parameters():
        nn.init.zeros_(parameter)
    tape = rollout(1, 128, reward=torch.ones(1, 128, 1)).to(torch.bfloat16)
    tape["next", "reward"] = tape["next", "reward"].float()
    for key in ("done", "terminated"):
        tape["next", key] = torch.zeros(1, 128, 1, dtype=torch.bool)
    hook = LambdaTargets(gamma=0.99, lmbda=1.0)
    hook._loss = PQNLoss(actor)
    target = hook.write(tape)["value_target"]
    assert target.dtype == torch.float32
    assert target[0, 0].item() == pytest.approx((1 - 0.99**128) / 0.01, rel=1e-4)


def test_a_teacher_of_several_choices_is_refused() -> None:
    actor = QValueActor(nn.Linear(4, 5), in_keys=["observation"], spec=MultiOneHot([2, 3]))
    with pytest.raises(ValueError, match="PQNLoss values one choice an action: got a network of several choices"):
        PQNLoss(actor)


@pytest.mark.parametrize("loss_class", [PQNLoss, StudentPQNLoss])
@pytest.mark.parametrize("shape", [(1,), (1, 2, 1)])
def test_targets_of_another_number_than_samples_are_refused(loss_class: type, shape: tuple[int, ...]) -> None:
    actor = QValueActor(nn.Linear(4, 3), in_keys=["observation"], spec=Categorical(3))
    batch = TensorDict({"observation": torch.zeros(1, 4), "action": torch.zeros(1, dtype=torch.long)}, [1])
    batch[("teacher", "action_value")] = torch.zeros(1, 3)
    batch.set("value_target", torch.ones(shape))
    with pytest.raises(ValueError, match="one target a sample"):
        loss_class(actor)(batch)
