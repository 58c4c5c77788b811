"""A critic's head start: actor and entropy coefficient wait, with their moments, and learn on afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from hook_parts import cartpole_trainer, content
from kickstart_parts import sac_trainer
from on_policy_parts import ppo_trainer
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torch.distributions import Categorical
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_rtpd import CriticWarmup, CudaGraphStepper
from torchrl_rtpd.trainers.policies import critic_parameters

TRAINERS = {"ppo": lambda: ppo_trainer()[0], "sac": sac_trainer}  # three batches of 8 or 4 updates


def parts(loss) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of the critic, and all others."""
    critics = {id(parameter) for parameter in critic_parameters(loss)}
    found = list(loss.parameters())
    return [p for p in found if id(p) in critics], [p for p in found if id(p) not in critics]


@pytest.mark.parametrize("method", TRAINERS)
def test_only_the_critic_learns_at_first(method):
    """Through the whole run, of which the warm-up is a little longer: no other weight moves, none has moments."""
    trainer = TRAINERS[method]()
    critics, others = parts(trainer.loss_module)
    assert len(critics) == {"ppo": 2, "sac": 4}[method] and len(others) == {"ppo": 4, "sac": 5}[method]
    before = content([critics, others])
    CriticWarmup(25).register(trainer)
    made = {"ppo": 24, "sac": 12}[method]
    with pytest.warns(UserWarning, match=f"never learned: .* warm-up takes 25 updates, and the run had {made}; take a"):
        trainer.train()
    assert content(others) == before[1]
    assert all(one != other for one, other in zip(content(critics), before[0], strict=True))
    assert {id(parameter) for parameter in trainer.optimizer.state} == {id(parameter) for parameter in critics}
    assert not any(parameter.requires_grad for parameter in others)


@pytest.mark.parametrize("method", TRAINERS)
def test_afterwards_both_learn(method):
    """A warm-up of 10 updates: those made since are the steps that the optimiser counts."""
    trainer = TRAINERS[method]()
    critics, others = parts(trainer.loss_module)
    before = content(others)
    hook = CriticWarmup(10)
    hook.register(trainer)
    trainer.train()
    total = {"ppo": 24, "sac": 12}[method]
    assert hook.is_over and hook.updates == total
    assert all(one != other for one, other in zip(content(others), before, strict=True))
    state = trainer.optimizer.state
    assert {int(state[parameter]["step"]) for parameter in critics} == {total}
    assert {int(state[parameter]["step"]) for parameter in others} == {total - 10}


def test_moments_and_decay_leave_a_frozen_weight_alone():
    """An actor with moments of its own and weight decay: neither weights nor moments change while it waits."""
    trainer, learner = ppo_trainer(1)
    trainer.optimizer.param_groups[0]["weight_decay"] = 0.1
    for parameter in learner.parameters():
        ones = torch.ones_like(parameter)
        trainer.optimizer.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": ones, "exp_avg_sq": ones.clone()}
        parameter.grad = ones.clone()  # of an update before
    before = content([learner.state_dict(), [trainer.optimizer.state[parameter] for parameter in learner.parameters()]])
    CriticWarmup(100).register(trainer)
    with pytest.warns(UserWarning, match="warm-up takes 100 updates, and the run had 8; take a shorter warm-up, or"):
        trainer.train()
    after = content([learner.state_dict(), [trainer.optimizer.state[parameter] for parameter in learner.parameters()]])
    assert after == before


def test_shared_layers_wait_with_the_actor():
    """Of a trunk and two heads only the critic's head learns, also after TorchRL's GAE has run the critic."""
    trunk = TensorDictModule(nn.Linear(4, 8), in_keys=["observation"], out_keys=["features"])
    head = TensorDictModule(nn.Linear(8, 2), in_keys=["features"], out_keys=["logits"])
    actor = ProbabilisticActor(
        TensorDictSequential(trunk, head), in_keys=["logits"], distribution_class=Categorical, return_log_prob=True
    )
    value = TensorDictModule(nn.Linear(8, 1), in_keys=["features"], out_keys=["state_value"])
    trainer, _ = ppo_trainer(1)
    loss = trainer.loss_module = ClipPPOLoss(actor, TensorDictSequential(trunk, value))
    assert {id(parameter) for parameter in critic_parameters(loss)} == {
        id(parameter) for parameter in value.parameters()
    }
    CriticWarmup(5).register(trainer)
    batch = next(iter(trainer.collector))
    GAE(gamma=0.9, lmbda=0.9, value_network=loss.critic_network)(batch)
    losses = loss(batch.reshape(-1))
    sum(value for name, value in losses.items() if name.startswith("loss")).backward()
    trainer.collector.shutdown()
    learned = {id(parameter) for parameter in loss.parameters() if parameter.grad is not None}
    assert learned == {id(parameter) for parameter in value.parameters()}


def test_a_warm_up_goes_on_where_it_was_saved():
    """Saved after 8 of 10 updates: another run's actor waits for 2 more; saved after the end it does not wait."""
    first, _ = ppo_trainer(2)
    hook = CriticWarmup(10)
    hook.register(first)
    first.request_stop()  # after this batch: a run that was interrupted, of which nothing is said
    first.train()
    state = copy.deepcopy(hook.state_dict())
    assert state == {"updates": 8}
    second, learner = ppo_trainer(2)
    early, late = CriticWarmup(10), CriticWarmup(10)
    early.load_state_dict(state)
    early.register(second)
    assert not any(parameter.requires_grad for parameter in learner.parameters())
    second.train()
    assert {int(second.optimizer.state[parameter]["step"]) for parameter in learner.parameters()} == {14}
    third, learner = ppo_trainer(1)
    late.register(third)
    late.load_state_dict({"updates": 10})
    assert late.is_over and all(parameter.requires_grad for parameter in learner.parameters())


def test_what_cannot_wait_is_refused():
    """A number of updates, a loss without a critic, learners elsewhere, a captured update, and a name that is taken."""
    for updates in (0, 1.5, True, None):
        with pytest.raises(ValueError, match=f"updates must be an integer of at least 1: got {updates}"):
            CriticWarmup(updates)
    trainer = cartpole_trainer()
    with pytest.raises(ValueError, match="needs a loss with an actor and a critic: got DQNLoss; leave it out"):
        CriticWarmup(5).register(trainer)
    trainer, _ = ppo_trainer()
    CriticWarmup(5).register(trainer)
    with pytest.raises(RuntimeError, match="the trainer has a part called 'critic_warmup' already; register under"):
        CriticWarmup(5).register(trainer)
    CudaGraphStepper().register(trainer)
    with pytest.raises(RuntimeError, match="which a captured one cannot follow: got a CudaGraphStepper; leave it out"):
        CriticWarmup(5).register(trainer, "other")
    trainer.learner_backend = "ray"
    with pytest.raises(RuntimeError, match="learner_backend='ray' updates it in remote ones; train with"):
        CriticWarmup(5).register(trainer, "other")
