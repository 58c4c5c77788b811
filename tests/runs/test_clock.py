"""Counting steps, updates and seconds, on trainers whose own counters are wrong."""

import time

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs import GymEnv
from torchrl.modules import OneHotCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.trainers.algorithms.ppo import PPOTrainer

from torchrl_rtpd.runs.clock import RunClock
from torchrl_rtpd.runs.metrics import Averages, read_metrics
from torchrl_rtpd.runs.monitor import RunMonitor


def ppo_run(folder, optim_steps_per_batch):
    """Two batches of 64 steps, two epochs each, minibatches of 16; watched."""
    torch.manual_seed(0)
    env = GymEnv("CartPole-v1")
    logits = TensorDictModule(nn.Linear(4, 2), in_keys=["observation"], out_keys=["logits"])
    actor = ProbabilisticActor(
        logits, in_keys=["logits"], distribution_class=OneHotCategorical, return_log_prob=True, spec=env.action_spec
    )
    loss = ClipPPOLoss(actor, ValueOperator(nn.Linear(4, 1), in_keys=["observation"]))
    trainer = PPOTrainer(
        collector=Collector(env, actor, frames_per_batch=64, total_frames=128, auto_register_policy_transforms=False),
        total_frames=128,
        frame_skip=1,
        num_epochs=2,
        optim_steps_per_batch=optim_steps_per_batch,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=1e-3),
        progress_bar=False,
        replay_buffer=TensorDictReplayBuffer(
            storage=LazyTensorStorage(64), sampler=SamplerWithoutReplacement(), batch_size=16
        ),
        log_actions=False,
        log_rewards=False,
    )
    monitor = RunMonitor({"teacher": actor}, None, folder, log_every_steps=64, progress_bar=False)
    monitor.register(trainer)
    return trainer, monitor


@pytest.mark.filterwarnings("ignore:PPOTrainer is an experimental", "ignore::FutureWarning")
@pytest.mark.parametrize("optim_steps_per_batch", [None, 3])
def test_updates_are_the_minibatches_learned_from(tmp_path, optim_steps_per_batch):
    """64 / 16 = 4 an epoch where an epoch ends with its data; of three asked for, those for which there are data."""
    trainer, monitor = ppo_run(tmp_path, optim_steps_per_batch)
    learned, after_batch = [], []  # the oracle: calls of a hook that comes after each update
    trainer.register_op("post_optim", lambda: learned.append(1))
    trainer.register_op("post_steps", lambda: after_batch.append(float(len(learned))))
    trainer.train()
    assert len(learned) == (16 if optim_steps_per_batch is None else 8)
    assert monitor.clock.updates == len(learned) < trainer._optim_count
    assert read_metrics(tmp_path / "metrics.csv")["updates"] == after_batch
    state = monitor.clock.state_dict()
    other, resumed = ppo_run(tmp_path / "other", optim_steps_per_batch)
    other._optim_count = trainer._optim_count
    resumed.clock.load_state_dict(state)
    assert resumed.clock.updates == len(learned)


def test_time_of_an_evaluation_that_raises_is_left_out_as_well():
    clock = RunClock({"training_seconds": 5.0})
    with pytest.raises(KeyError), clock.evaluating():
        time.sleep(0.05)
        raise KeyError
    assert clock.evaluation_seconds >= 0.05
    assert clock.training_seconds == pytest.approx(5.0, abs=0.04)


def test_clocks_go_on_where_a_state_was_left():
    """Ten seconds of an earlier process, four of them of evaluations."""
    clock = RunClock()
    clock.load_state_dict(
        {
            "seconds": 10.0,
            "cpu_seconds": 8.0,
            "evaluation_seconds": 4.0,
            "evaluation_cpu_seconds": 3.0,
            "learning_since": None,
        }
    )
    assert clock.seconds_before == 10.0 and clock.seconds == pytest.approx(10.0, abs=0.5)
    assert clock.training_seconds == pytest.approx(6.0, abs=0.5)
    assert clock.cpu_seconds == pytest.approx(5.0, abs=0.5)
    assert clock.steps_per_second is None


def test_averages_are_means_of_batches_but_for_what_is_measured_now_and_then():
    """(2 + 4) / 2 = 3; of dormant units the last value."""
    averages = Averages(["net17/agreement", "net17/dormant"])
    for agreement, dormant in ((2.0, 0.5), (4.0, 0.25)):
        averages.add(
            {"distill/net17/agreement": agreement, "distill/net17/dormant": dormant, "distill/net17/other": 9.0}
        )
    averages.add({})
    assert averages.take() == {"net17/agreement": 3.0, "net17/dormant": 0.25}
    assert averages.take() == {} and averages.last == {"net17/agreement": 3.0, "net17/dormant": 0.25}
    averages.add({"distill/net17/agreement": 1.0})
    other = Averages(["net17/agreement"])
    other.load_state_dict(averages.state_dict())
    assert other.take() == {"net17/agreement": 1.0}
