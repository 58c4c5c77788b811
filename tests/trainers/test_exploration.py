"""Exploration of on-policy trainers, annealed by the steps collected, in this process and in workers."""

import warnings

import pytest
import torch
from on_policy_parts import Pixels
from torch import nn
from torchrl.data import Categorical, LazyTensorStorage, SamplerWithoutReplacement
from torchrl.data import TensorDictReplayBuffer as Buffer
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.trainers.algorithms.on_policy import OnPolicyTrainer

from torchrl_rtpd import (
    AnnealExploration,
    AtariVecEnv,
    DualNetworkCollector,
    LambdaTargets,
    PQNLoss,
)
from torchrl_rtpd.trainers.exploration import lower


def build(collector, actor, exploration, **kwargs):
    """A trainer of PQN on Pong that learns nothing, three rollouts of 16 steps."""
    loss = PQNLoss(actor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = OnPolicyTrainer(
            collector=collector,
            total_frames=48,
            frame_skip=1,
            optim_steps_per_batch=None,
            loss_module=loss,
            optimizer=torch.optim.RAdam(loss.parameters(), lr=0.0),
            replay_buffer=Buffer(storage=LazyTensorStorage(16), sampler=SamplerWithoutReplacement(), batch_size=4),
            num_epochs=1,
            add_gae=False,
            progress_bar=False,
            terminated_key="end_of_life",
            **kwargs,
        )
    LambdaTargets().register(trainer)
    AnnealExploration(exploration).register(trainer)
    return trainer


def parts(steps):
    """An actor, and exploration that ends after so many steps."""
    torch.manual_seed(0)
    actor = QValueActor(Pixels(6), in_keys=["pixels"], spec=Categorical(6))
    return actor, EGreedyModule(Categorical(6), 1.0, 0.0, annealing_num_steps=steps)


def test_exploration_falls_with_the_steps_and_goes_on_where_it_was():
    """From 1 to 0 in 32 steps: a half after the first 16; a second hook goes on from the first one's state."""
    actor, exploration = parts(32)
    collector = DualNetworkCollector(make_pong(), actor, exploration=exploration, frames_per_batch=16, total_frames=48)
    trainer = build(collector, actor, exploration)
    shares = []
    trainer.register_op("post_steps", lambda: shares.append(round(float(exploration.eps), 6)))
    trainer.train()
    assert shares == [0.5, 0.0, 0.0]
    first = trainer._modules["anneal_exploration"]
    exploration.eps.fill_(1.0)
    again = AnnealExploration(exploration)
    again.load_state_dict(first.state_dict())
    again.register(trainer, "again")
    again.anneal()
    assert exploration.eps == 1.0  # no step was made since


@pytest.mark.parametrize(
    ("first", "last", "length"), [(1.0, 0.001, 1_000_000), (0.9, 0.05, 777), (1.0, 0.0, 3), (0.1, 0.1, 5)]
)
def test_steps_made_at_once_are_those_made_one_by_one(first, last, length):
    """To the last bit, beyond the end too."""
    one, other = (EGreedyModule(Categorical(2), first, last, annealing_num_steps=length) for _ in range(2))
    for steps in (1, 5, 700, 90):
        one.step(steps)
        lower(other, steps)
        assert torch.equal(one.eps, other.eps)


def test_a_module_of_another_kind_makes_its_own_steps():
    class Halving(EGreedyModule):
        def step(self, frames=1):
            self.eps.mul_(0.5**frames)

    exploration = Halving(Categorical(2), 1.0, 0.0)
    lower(exploration, 2)
    assert exploration.eps == 0.25


def test_workers_are_sent_the_share():
    """A process that collects explores as the module here says."""
    actor, exploration = parts(16)
    collector = DualNetworkCollector(
        make_pong, actor, exploration=exploration, frames_per_batch=16, total_frames=48, num_collectors=1, sync=True
    )
    trainer = build(collector, actor, exploration, weight_update_map={"policy": "loss_module.actor_network"})
    kinds = []
    trainer.register_op("batch_process", lambda batch: kinds.append(batch["action"].unique().numel()) or batch)
    trainer.train()
    assert kinds[0] > 2 and kinds[-1] <= 2, kinds  # the greedy action of one state, and of its like


def make_pong() -> AtariVecEnv:
    return AtariVecEnv("pong", 2, seed=0, num_threads=1)


def test_exploration_that_cannot_be_annealed_is_refused():
    with pytest.raises(TypeError, match="annealed by its method step: got Linear; give an EGreedyModule"):
        AnnealExploration(nn.Linear(1, 1))
