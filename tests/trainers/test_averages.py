"""Metrics between two logs."""

from __future__ import annotations

import pytest
import torch
from hook_parts import (
    FAST,
    Watching,
    actor,
    cartpole_trainer,
    fleet,
    student_loss,
    student_state,
    trained,
)

from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer


def test_metrics_are_logged_once_a_batch_as_averages_over_its_updates() -> None:
    """Recomputed from what the loss returned: 4 batches after the warm-up, 3 minibatches of 2 updates each."""
    trainer = cartpole_trainer(warmup_steps=60, steps=120)
    loss = Watching(actor(8, seed=1))
    hook = trained(trainer, {"net": loss}, updates_per_step=2, metrics_every_updates=1)
    assert len(loss.results) == 4 * 3 * 2
    entropies = ("teacher_entropy", "student_entropy")
    for key in ("loss_td", "loss_distill", "kl_to_teacher", "agreement", "teacher_regret", *entropies):
        values = torch.stack([result[key].detach() for result in loss.results]).view(4, 6).mean(1)
        assert trainer._log_dict[f"distill/net/{key}"] == pytest.approx(values.tolist())
    totals = [result["loss_td"].item() + result["loss_distill"].item() for result in loss.results]
    assert trainer._log_dict["distill/net/loss"] == pytest.approx(torch.tensor(totals).view(4, 6).mean(1).tolist())
    logged = {name for name in trainer._log_dict if name.startswith("distill/")}
    names = {"loss", "loss_td", "loss_distill", "kl_to_teacher", "agreement", "teacher_regret"}
    names |= set(entropies)
    assert logged == {f"distill/net/{name}" for name in (*names, "dormant")}
    assert all(isinstance(value, float) for name in logged for value in trainer._log_dict[name])
    assert hook.metrics == {name: trainer._log_dict[name][-1] for name in logged}


def test_metrics_may_be_those_of_every_so_many_minibatches() -> None:
    """Of the first after each log and every second from there: the first and the third of three."""
    trainer = cartpole_trainer(warmup_steps=60, steps=120)
    loss = Watching(actor(8, seed=1))
    trained(trainer, {"net": loss}, metrics_every_updates=2)
    assert ["agreement" in result.keys() for result in loss.results] == [True, False, True] * 4
    totals = torch.tensor([(result["loss_td"] + result["loss_distill"]).item() for result in loss.results]).view(4, 3)
    assert trainer._log_dict["distill/net/loss"] == pytest.approx(totals[:, ::2].mean(1).tolist())


def test_students_learn_the_same_however_often_they_are_measured() -> None:
    states = []
    for every in (1, 3):
        hook = trained(cartpole_trainer(), fleet(3), metrics_every_updates=every)
        states.append([student_state(hook, name) for name in fleet(3)])
    assert states[0] == states[1]


def test_metrics_of_each_student_bear_its_name() -> None:
    trainer = cartpole_trainer()
    trained(trainer, fleet(2), checks=[])
    logged = {name for name in trainer._log_dict if name.startswith("distill/")}
    common = {"loss", "loss_distill", "kl_to_teacher", "agreement", "teacher_entropy", "student_entropy"}
    common |= {"teacher_regret"}
    assert logged == {f"distill/{name}/{key}" for name in ("small", "pure") for key in common} | {
        "distill/small/loss_td"
    }


def test_there_is_nothing_to_log_before_an_update() -> None:
    assert RealTimeDistillTrainer(student_loss(), optimizer=FAST).log() is None
