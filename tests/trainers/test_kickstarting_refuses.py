"""Kickstarting refuses what cannot be pulled, and says so; it warns of a learning rate that would stall."""

from __future__ import annotations

import copy
import re
from functools import partial

import pytest
import torch
from hook_parts import actor, cartpole_trainer, student_loss
from kickstart_parts import balancing, pull_on, sac_trainer
from on_policy_parts import policy, ppo_trainer
from torch import nn
from torchrl.modules import ValueOperator
from torchrl.objectives import ClipPPOLoss, DQNLoss, KLAdaptiveLR

from torchrl_rtpd import (
    CriticWarmup,
    CudaGraphStepper,
    DistillationLoss,
    Kickstarting,
    KLGate,
    LinearSchedule,
    RealTimeDistillTrainer,
)
from torchrl_rtpd.trainers.stateless import StatelessHook


def pull(**kwargs) -> DistillationLoss:
    return DistillationLoss(policy(8, 1), balancing(), teacher_temperature=1.0, **kwargs)


def test_what_is_no_pull_is_refused():
    with pytest.raises(TypeError, match="must be a DistillationLoss or ContinuousDistillationLoss: got Linear; the"):
        Kickstarting(nn.Linear(4, 2))
    with pytest.raises(
        ValueError, match="got StudentDQNLoss, which adds loss_td to the error of the trainer's own loss"
    ):
        Kickstarting(student_loss())
    with pytest.raises(ValueError, match="the pull must be reduced: got reduction='none'; use 'mean'"):
        Kickstarting(pull(reduction="none"))


@pytest.mark.parametrize("coefficient", ["1", True, None])
def test_a_coefficient_is_a_number_or_a_schedule(coefficient):
    kind = type(coefficient).__name__
    with pytest.raises(TypeError, match=f"distill_coeff must be a number or a Schedule: got {kind}; write Linear"):
        Kickstarting(pull(), distill_coeff=coefficient)


def test_a_negative_coefficient_is_refused():
    """Given as a number, or reached by a schedule after two updates."""
    with pytest.raises(ValueError, match=r"distill_coeff must lie in \[0, inf\): got -1.0; 0 leaves the trainer alone"):
        Kickstarting(pull(), distill_coeff=-1.0)
    hook = Kickstarting(pull(), distill_coeff=LinearSchedule(1.0, -1.0, end_updates=2))
    hook.after_update()
    hook.after_update()
    with pytest.raises(ValueError, match=r"not negative: its schedule gave -1.0 after 2 updates; end it at 0"):
        hook.log()


def test_another_network_is_refused():
    """One layer of the student's two and a whole other network; a part of the trained one is fine."""
    trainer, learner = ppo_trainer()
    with pytest.raises(
        ValueError, match="very network that ClipPPOLoss trains: got 4 of 4 parameters of another; build"
    ):
        Kickstarting(pull()).register(trainer)
    part = DistillationLoss(learner[0], balancing(), teacher_temperature=1.0)
    Kickstarting(part).register(trainer)


def test_a_teacher_that_is_the_student_is_refused():
    """A copy of the student as it was is another network."""
    trainer, learner = ppo_trainer()
    with pytest.raises(
        ValueError, match=r"got a teacher with parameters of the student; give the pull a copy.deepcopy"
    ):
        Kickstarting(DistillationLoss(learner, learner, teacher_temperature=1.0)).register(trainer)
    Kickstarting(DistillationLoss(learner, copy.deepcopy(learner), teacher_temperature=1.0)).register(trainer)


def test_temperatures_of_a_policy_would_spoil_action_values():
    """Rusu's 0.01 and 1, the defaults; equal temperatures and distances of values are fine."""
    trainer, other = cartpole_trainer(), cartpole_trainer()
    learner, another = trainer.loss_module.value_network, other.loss_module.value_network
    with pytest.raises(
        ValueError, match=r"got student_temperature=1.0 and teacher_temperature=0.01; pass student_temp"
    ):
        Kickstarting(DistillationLoss(learner, balancing())).register(trainer)
    Kickstarting(DistillationLoss(learner, balancing(), divergence="mse")).register(trainer, "distances")
    Kickstarting(DistillationLoss(another, balancing(), student_temperature=None)).register(other, "equal")


class Measuring(ClipPPOLoss):
    """A loss that writes an entry of a pull's name."""

    def forward(self, tensordict):
        return super().forward(tensordict).set("agreement", torch.zeros(()))


def test_names_that_both_losses_write_are_refused():
    trainer, learner = ppo_trainer()
    trainer.loss_module = Measuring(learner, trainer.loss_module.critic_network)
    Kickstarting(pull_on(trainer)).register(trainer)
    with pytest.raises(ValueError, match=r"must write different names: got \['agreement'\] from both; use a loss of"):
        trainer.train()


def test_a_second_pull_is_refused():
    """By any name, since the loss logs both under the same names; a copy of a loss has none."""
    trainer, _ = ppo_trainer()
    Kickstarting(pull_on(trainer)).register(trainer, "first")
    second = Kickstarting(pull_on(trainer))
    for name in ("first", "second"):
        with pytest.raises(
            ValueError, match=r"a loss has one pull, .*: got a second Kickstarting of a ClipPPOLoss; pull"
        ):
            second.register(trainer, name)
    with pytest.raises(ValueError, match="got a second Kickstarting of a ClipPPOLoss"):
        second.attach(trainer.loss_module)


def test_a_gate_without_an_entropy_over_actions_is_refused():
    """A density has none, and a deterministic policy either: the gate would stay closed."""
    trainer = sac_trainer()
    with pytest.raises(ValueError, match=r"a KLGate follows .*: got one for a ContinuousDistillationLoss, which"):
        Kickstarting(pull_on(trainer), distill_coeff=KLGate(2))


@pytest.mark.parametrize("name", ["one, two", "two\nlines", "a/b", " ", "tab\t"])
def test_names_that_spoil_tables_are_refused(name):
    """For parts of a trainer as for students."""
    trainer, _ = ppo_trainer()
    with pytest.raises(ValueError, match=f"name of a trainer's part must be a text .*: got {re.escape(repr(name))}"):
        Kickstarting(pull_on(trainer)).register(trainer, name)
    with pytest.raises(ValueError, match="the name of a trainer's part must be a text of printed characters"):
        CriticWarmup(1).register(trainer, name)
    with pytest.raises(ValueError, match=f"a student's name must be a text .*: got {re.escape(repr(name))}; call it"):
        RealTimeDistillTrainer({name: student_loss()}, optimizer=torch.optim.SGD)
    hook = RealTimeDistillTrainer(student_loss(), optimizer=torch.optim.Adam)
    with pytest.raises(ValueError, match="the name of a trainer's part must be a text of printed characters"):
        hook.register(trainer, name)


def test_a_hook_serves_one_loss():
    trainer, _ = ppo_trainer()
    hook = Kickstarting(pull_on(trainer))
    hook.register(trainer)
    with pytest.raises(RuntimeError, match="a Kickstarting serves one loss: got a second one; build a hook for each"):
        hook.attach(ppo_trainer()[0].loss_module)


def test_losses_that_cannot_take_a_pull_are_refused():
    """No acting network, not reduced, or called without a tensordict."""
    with pytest.raises(
        TypeError, match="one of actor_network, local_value_network, value_network: got Linear; use a loss"
    ):
        Kickstarting(pull()).attach(nn.Linear(4, 2))
    student = policy(8, 1)
    loss = ClipPPOLoss(student, ValueOperator(nn.Linear(4, 1), in_keys=["observation"]), reduction="none")
    own = DistillationLoss(student, balancing(), teacher_temperature=1.0)
    with pytest.raises(ValueError, match="the trainer's loss must be reduced: got reduction='none'; use 'mean'"):
        Kickstarting(own).attach(loss)
    values = actor(seed=1)
    loss = DQNLoss(values, action_space="categorical", delay_value=False)
    Kickstarting(DistillationLoss(values, balancing(), student_temperature=None)).attach(loss)
    ones = torch.ones(2, 1)
    entries = {"next_reward": ones, "next_done": ones > 2, "next_terminated": ones > 2}
    with pytest.raises(TypeError, match=r"takes and returns tensordicts: got NoneType and \w+; call it as loss"):
        loss(observation=torch.ones(2, 4), action=torch.zeros(2).long(), next_observation=torch.ones(2, 4), **entries)


def test_a_captured_update_is_refused_as_training_begins():
    trainer = cartpole_trainer()
    Kickstarting(pull_on(trainer)).register(trainer)
    CudaGraphStepper().register(trainer)
    with pytest.raises(RuntimeError, match="run, not captured, as its coefficient changes: got a CudaGraphStepper"):
        trainer.train()


def test_remote_learners_are_refused():
    trainer = cartpole_trainer()
    hook = Kickstarting(pull_on(trainer))
    trainer.learner_backend = "ray"
    with pytest.raises(RuntimeError, match="learner_backend='ray' updates the student in remote ones; train with"):
        hook.register(trainer)


class Rate(StatelessHook):
    """A hook that has a rate among its parts."""

    def __init__(self, rate):
        self.rate = rate

    def register(self, trainer, name="rate"):
        trainer.register_module(name, self)


GLOBAL_RATES = {}
RATE = None


def step_global(batch):
    RATE.step(0.01)


def registered(way: str, trainer, rate) -> None:
    """Step a rate by one of the ways in which users do."""
    if way == "method":
        trainer.register_op("post_optim", partial(rate.step, 0.01))
    elif way == "closure":
        trainer.register_op("post_optim_log", lambda batch: rate.step(0.01))
    elif way == "global":
        globals()["RATE"] = rate
        trainer.register_op("post_optim_log", step_global)
    else:
        Rate(rate).register(trainer)


@pytest.mark.parametrize("way", ["method", "closure", "global", "hook"])
def test_a_rate_that_follows_the_kl_is_reported(way):
    """As training begins, since it may be registered after the pull."""
    trainer, _ = ppo_trainer(1)
    hook = Kickstarting(pull_on(trainer))
    hook.register(trainer)
    registered(way, trainer, KLAdaptiveLR(trainer.optimizer, 0.01, min_lr=2e-5))
    with pytest.warns(
        UserWarning, match="KLAdaptiveLR lowers .* fall as far as its min_lr, 2e-05, and .* Use a rate that"
    ):
        trainer.train()


def test_other_rates_are_not_reported():
    """The rate of another optimiser."""
    trainer, learner = ppo_trainer(1)
    Kickstarting(pull_on(trainer)).register(trainer)
    registered("closure", trainer, KLAdaptiveLR(torch.optim.Adam(learner.parameters()), 0.01))
    trainer.train()
