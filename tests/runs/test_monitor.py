"""Watching a run: claims about rows, evaluations and kept networks, on a real trainer and a real game."""

import math
import time
from functools import partial

import pytest
import torch
from parts import small_run
from safetensors.torch import load_file
from torchrl.modules import EGreedyModule
from torchrl.objectives import DQNLoss, HardUpdate
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import (
    AtariVecEnv,
    DualNetworkCollector,
    Evaluator,
    FrameStackStorage,
    KeepWarmupData,
    RealTimeDistillTrainer,
    Scores,
    StudentDQNLoss,
    make_actor,
    make_replay_buffer,
)
from torchrl_rtpd.runs.metrics import read_metrics
from torchrl_rtpd.runs.monitor import RunMonitor
from torchrl_rtpd.schedules import GapSchedule

SLOTS, STEPS = 2, 80


def _run(folder, schedules=None, **monitor_options):
    """Eighty steps of Pong with one student, watched; the monitor after it."""
    torch.manual_seed(0)
    env = AtariVecEnv("pong", SLOTS, seed=0)
    networks = {
        "teacher": make_actor("net3", env.action_spec, seed=0),
        "net17": make_actor("net17", env.action_spec, seed=1),
    }
    exploration = EGreedyModule(spec=env.action_spec_unbatched, annealing_num_steps=100)
    collector = DualNetworkCollector(
        env,
        networks["teacher"],
        exploration=exploration,
        frames_per_batch=SLOTS * 2,
        total_frames=STEPS,
        init_random_frames=20,
    )
    replay_buffer = make_replay_buffer(FrameStackStorage(STEPS, num_envs=SLOTS, steps_per_write=2), batch_size=4)
    loss = DQNLoss(networks["teacher"], action_space="categorical")
    loss.make_value_estimator(gamma=0.99)
    trainer = DQNTrainer(
        collector=collector,
        total_frames=STEPS,
        frame_skip=1,
        optim_steps_per_batch=1,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=1e-4),
        progress_bar=False,
        replay_buffer=replay_buffer,
        target_net_updater=HardUpdate(loss, value_network_update_interval=5),
        greedy_module=exploration,
        episode_reward_key="episode_reward",
    )
    KeepWarmupData(replay_buffer).register(trainer)
    student = StudentDQNLoss(networks["net17"])
    student.make_value_estimator(gamma=0.99)
    hook = RealTimeDistillTrainer({"net17": student}, optimizer=partial(torch.optim.Adam, lr=1e-4), schedules=schedules)
    hook.register(trainer)
    evaluator = Evaluator(partial(AtariVecEnv, "pong", 2, max_frames=80), episodes=2)
    monitor = RunMonitor(networks, evaluator, folder, distiller=hook, progress_bar=False, **monitor_options)
    monitor.register(trainer)
    trainer.train()
    evaluator.close()
    return monitor


def test_rows_come_at_the_asked_steps(tmp_path):
    """One row a log interval; steps, updates and seconds only grow."""
    _run(tmp_path, log_every_steps=20)
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert metrics["steps"] == [4.0, 20.0, 40.0, 60.0, 80.0]
    # Updates begin with the batch that reaches 20 steps: one for each batch of 4.
    assert metrics["updates"] == [0.0, 1.0, 6.0, 11.0, 16.0]
    assert metrics["seconds"] == sorted(metrics["seconds"])
    assert all(math.isnan(value) for value in metrics["teacher/score"])


def test_evaluations_come_at_the_asked_steps(tmp_path):
    """Every network is evaluated on schedule, not before its time, and the best weights are kept as files."""
    monitor = _run(tmp_path, evaluate_every_steps=20, evaluate_from_steps=40, log_every_steps=1_000)
    metrics = read_metrics(tmp_path / "metrics.csv")
    evaluated = [
        steps for steps, score in zip(metrics["steps"], metrics["net17/score"], strict=True) if not math.isnan(score)
    ]
    assert evaluated == [40.0, 60.0, 80.0]
    assert monitor.best_scores.keys() == {"teacher", "net17"}
    assert monitor.best_scores["net17"].mean == max(score for score in metrics["net17/score"] if not math.isnan(score))
    for name, network in monitor.best.items():
        saved = load_file(tmp_path / "weights" / f"{name}.safetensors")
        assert all(torch.equal(tensor, saved[key]) for key, tensor in network.state_dict().items())


def test_only_evaluations_of_settled_networks_choose_the_kept_ones(tmp_path):
    """Games of so few steps all score alike, so that the first one that counts chooses; the last always counts."""
    kept = {}
    for first in (0, 60, 1_000):
        monitor = _run(tmp_path / str(first), evaluate_every_steps=20, keep_from_steps=first)
        metrics = read_metrics(tmp_path / str(first) / "metrics.csv")
        scores = [score for score in metrics["net17/score"] if not math.isnan(score)]
        assert len(scores) == 4 and len(set(scores)) == 1
        kept[first] = monitor.best["net17"].state_dict()
    last = monitor.networks["net17"].state_dict()
    key = next(iter(last))
    assert torch.equal(kept[1_000][key], last[key])
    assert not torch.equal(kept[0][key], kept[60][key]) and not torch.equal(kept[60][key], last[key])


def test_kept_network_is_the_best_not_the_last(tmp_path):
    """A later, worse evaluation changes neither the kept copy nor its file."""
    monitor = _run(tmp_path, evaluate_every_steps=20)
    kept = {key: tensor.clone() for key, tensor in monitor.best["net17"].state_dict().items()}
    with torch.no_grad():
        for parameter in monitor.networks["net17"].parameters():
            parameter.zero_()
    monitor.evaluator = lambda network, seed, should_stop: Scores((-1_000.0,), 0, 1)
    monitor.evaluator.seed = 0
    monitor._evaluate(100)
    assert monitor.last_scores["net17"].mean == -1_000.0
    assert all(torch.equal(tensor, kept[key]) for key, tensor in monitor.best["net17"].state_dict().items())


def test_student_metrics_are_averages_of_the_interval(tmp_path):
    """Agreement and divergence lie in their ranges, and there is a speed once learning has begun."""
    monitor = _run(tmp_path, log_every_steps=20)
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert math.isnan(metrics["net17/agreement"][0])
    assert all(0 <= value <= 1 for value in metrics["net17/agreement"][1:])
    assert all(value >= 0 for value in metrics["net17/kl_to_teacher"][1:])
    assert 0 <= metrics["net17/dormant"][-1] <= 1
    assert monitor.clock.steps_per_second > 0


def test_speed_is_that_of_training_however_long_ago_it_ended(tmp_path):
    """Evaluations after the run do not slow it down in hindsight."""
    monitor = _run(tmp_path)
    speed = monitor.clock.steps_per_second
    time.sleep(0.05)
    assert monitor.clock.steps_per_second == speed


def test_what_was_spent_before_is_added_and_evaluation_is_left_out(tmp_path):
    """Steps, updates and both kinds of seconds go on from an earlier phase; evaluating costs none of them."""
    before = {"steps": 1_000, "updates": 10, "training_seconds": 500.0, "cpu_seconds": 400.0}
    monitor = _run(tmp_path, spent_before=before, log_every_steps=20, evaluate_every_steps=20)
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert (
        metrics["steps"][-1] == monitor.clock.steps == 1_080 and metrics["updates"][-1] == monitor.clock.updates == 26
    )
    training, processor = metrics["training_seconds"], metrics["cpu_seconds"]
    assert training == sorted(training) and training[0] >= 500 and processor[0] >= 400
    clock = metrics["seconds"][-1] - metrics["seconds"][0]
    assert 0 < monitor.clock.evaluation_seconds < clock
    assert training[-1] - training[0] == pytest.approx(clock - monitor.clock.evaluation_seconds, abs=0.05)
    ended = monitor.clock.training_seconds, monitor.clock.cpu_seconds
    time.sleep(0.05)
    assert (monitor.clock.training_seconds, monitor.clock.cpu_seconds) == ended


def test_a_state_that_is_asked_for_before_the_run_begins_writes_nothing(tmp_path):
    """Such as a trainer's own ``state_dict``; restored, it begins a new table."""
    run = small_run(tmp_path / "run", 48)
    state = run.trainer.state_dict()["run_monitor"]
    assert state["metrics"] is None and not (tmp_path / "run").exists()
    other = small_run(tmp_path / "other", 48)
    other.monitor.load_state_dict(state)
    other.trainer.train()
    assert read_metrics(tmp_path / "other" / "metrics.csv")["steps"] == [8.0, 16.0, 32.0, 48.0]


def test_only_what_is_counted_can_have_been_spent_before(tmp_path):
    with pytest.raises(ValueError, match="holds steps, updates, training_seconds, cpu_seconds: got frames"):
        RunMonitor({}, None, tmp_path, spent_before={"frames": 4})


def test_schedules_that_follow_returns_are_told_every_evaluation(tmp_path):
    """Scores of teacher and student as evaluated, the random player's measured once."""
    monitor = _run(tmp_path, schedules={"distill_coeff": GapSchedule()}, evaluate_every_steps=40)
    returns = monitor.distiller.state_dict()["returns"]
    assert returns["teacher"] == monitor.last_scores["teacher"].mean
    assert returns["students"] == {"net17": monitor.last_scores["net17"].mean}
    assert returns["random"] == monitor.evaluator(monitor.networks["teacher"], epsilon=1.0).mean


def test_no_random_games_are_played_without_schedules(tmp_path):
    assert _run(tmp_path, evaluate_every_steps=40).distiller.state_dict()["returns"]["random"] is None


def test_last_weights_are_saved_also_without_evaluation(tmp_path):
    """A run that evaluated nothing still leaves usable weights."""
    monitor = _run(tmp_path)
    monitor.save_last()
    for name, network in monitor.networks.items():
        for file in (
            tmp_path / "weights" / f"{name}.safetensors",
            tmp_path / "weights" / "last" / f"{name}.safetensors",
        ):
            saved = load_file(file)
            assert all(torch.equal(tensor, saved[key]) for key, tensor in network.state_dict().items())


def test_state_round_trip(tmp_path):
    """Best networks and scores come back."""
    monitor = _run(tmp_path, evaluate_every_steps=40)
    state = monitor.state_dict()
    other = RunMonitor(monitor.networks, monitor.evaluator, tmp_path, progress_bar=False)
    with torch.no_grad():
        for network in other.best.values():
            for parameter in network.parameters():
                parameter.zero_()
    other.load_state_dict(state)
    assert other.best_scores["teacher"].scores == monitor.best_scores["teacher"].scores
    for name, network in other.best.items():
        wanted = monitor.best[name].state_dict()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("option", [{"log_every_steps": 0}, {"evaluate_every_steps": -1}, {"keep_from_steps": -5}])
def test_intervals_out_of_range_are_refused(tmp_path, option):
    """The message names the interval and its value."""
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=rf"{name} must lie in \[\d, inf\): got {value}"):
        RunMonitor({}, None, tmp_path, **option)
