"""Returns of whole rollouts: a rollout by hand, a plain oracle on tapes of two games, and others' mistakes as tests.

Each of the five mistakes was made in a published implementation of PQN.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_policy_parts import Pixels, make_env, network, pqn_trainer, weights
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_rtpd import (
    AtariVecEnv,
    DistillationLoss,
    DualNetworkCollector,
    Evaluator,
    LambdaTargets,
    PQNLoss,
    RealTimeDistillTrainer,
    StudentPQNLoss,
    TeacherDQNLoss,
)

STATES = 10


class Table(nn.Module):
    """Action values ``[S, A]`` of numbered states."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values, dtype=torch.float32))

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.values[state]


def hook_of(values: np.ndarray, **kwargs) -> LambdaTargets:
    """The hook beside a loss whose network is a table."""
    hook = LambdaTargets(**kwargs)
    hook._loss = PQNLoss(QValueActor(Table(values), in_keys=["state"], spec=Categorical(values.shape[1])))
    return hook


def tape(states, following, reward, done, terminated, **kwargs) -> TensorDict:
    """A rollout ``[N, T]``."""
    state = torch.tensor(np.asarray(states))
    column = [torch.tensor(np.asarray(entry)).unsqueeze(-1) for entry in (reward, done, terminated)]
    following = TensorDict(
        {
            "state": torch.tensor(np.asarray(following)),
            "reward": column[0].float(),
            "done": column[1],
            "terminated": column[2],
        },
        state.shape,
    )
    return TensorDict({"state": state, "action": torch.zeros_like(state), "next": following, **kwargs}, state.shape)


def oracle(table, following, reward, done, terminated, gamma, lmbda) -> np.ndarray:
    """Returns of one game's tape by the recursion, step by step from the end."""
    steps = len(reward)
    targets, after = np.zeros(steps), None
    for step in reversed(range(steps)):
        worth = 0.0 if terminated[step] else table[following[step]].max()
        goes_on = step + 1 < steps and not done[step] and not terminated[step]
        mixed = (1 - lmbda) * worth + lmbda * after if goes_on else worth
        targets[step] = after = reward[step] + gamma * mixed
    return targets


def targets(hook: LambdaTargets, rollout: TensorDict) -> np.ndarray:
    return hook.write(rollout)["value_target"].squeeze(-1).numpy()


def test_a_rollout_of_three_steps_by_hand() -> None:
    """Rewards 1, 2, 3, greedy values 10, 20, 40 of the next states, gamma 1/2, lambda 1/2.

    3 + 40/2 = 23; 2 + (20/2 + 23/2) / 2 = 12.75; 1 + (10/2 + 12.75/2) / 2 = 6.6875.
    """
    table = np.array([[0.0, 5.0], [10.0, 1.0], [2.0, 20.0], [40.0, 0.0]])
    nothing = [[False] * 3]
    rollout = tape([[0, 1, 2]], [[1, 2, 3]], [[1.0, 2.0, 3.0]], nothing, nothing)
    assert targets(hook_of(table, gamma=0.5, lmbda=0.5), rollout).tolist() == [[6.6875, 12.75, 23.0]]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_two_games_side_by_side_have_the_returns_of_the_recursion(data) -> None:
    """Random ends and truncations; what follows an end on the tape is another game's state."""
    steps, seed = data.draw(st.integers(1, 7)), data.draw(st.integers(0, 10_000))
    gamma, lmbda = data.draw(st.sampled_from([0.0, 0.9, 1.0])), data.draw(st.sampled_from([0.0, 0.65, 1.0]))
    generator = np.random.default_rng(seed)
    table = generator.normal(size=(STATES, 3)).round(3)
    states = generator.integers(STATES, size=(2, steps))
    done = generator.random((2, steps)) < 0.3
    terminated = (generator.random((2, steps)) < 0.5) & (done | (generator.random((2, steps)) < 0.2))  # lives, too
    beyond = generator.integers(STATES, size=(2, steps))
    following = np.where(done, beyond, np.concatenate([states[:, 1:], beyond[:, -1:]], 1))
    reward = generator.normal(size=(2, steps)).round(3)
    rollout = tape(states, following, reward, done, terminated)
    expected = [
        oracle(table, *(entry[game] for entry in (following, reward, done, terminated)), gamma, lmbda)
        for game in (0, 1)
    ]
    found = targets(hook_of(table, gamma=gamma, lmbda=lmbda), rollout)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# Five mistakes of others


def test_returns_do_not_leak_from_one_game_into_the_one_before() -> None:
    """The game that begins after the first step has a reward of a thousand."""
    rollout = tape([[0, 5]], [[1, 6]], [[1.0, 1000.0]], [[True, False]], [[True, False]])
    assert targets(hook_of(np.zeros((STATES, 2)), gamma=1.0, lmbda=1.0), rollout)[0, 0] == 1.0


def test_the_second_last_return_bootstraps_with_the_last_state_of_the_rollout() -> None:
    """The last state is worth 7; the one after the rollout 100. Lambda is 0."""
    table = np.zeros((STATES, 2))
    table[1], table[2] = 7.0, 100.0
    nothing = [[False, False]]
    found = targets(hook_of(table, gamma=1.0, lmbda=0.0), tape([[0, 1]], [[1, 2]], [[0.0, 0.0]], nothing, nothing))
    assert found.tolist() == [[7.0, 100.0]]


def test_stored_values_are_those_of_the_state_they_stand_beside() -> None:
    """With the collector's values kept the targets are the same as with computed ones."""
    table = np.arange(2 * STATES, dtype=np.float32).reshape(STATES, 2)
    nothing = [[False] * 3]
    rollout = partial(tape, [[0, 3, 4]], [[3, 4, 9]], [[0.0, 0.0, 0.0]], nothing, nothing)
    kept = rollout(action_value=torch.tensor(table)[torch.tensor([[0, 3, 4]])])
    hook = hook_of(table, gamma=1.0, lmbda=0.0)
    assert targets(hook, kept).tolist() == targets(hook, rollout()).tolist() == [[7.0, 9.0, 19.0]]


def test_a_lost_life_ends_bootstrapping_and_not_the_reported_game() -> None:
    """On Breakout: a target at a lost life is its reward; a game's return is that of all five lives."""
    env = AtariVecEnv("breakout", 4, seed=3)
    actor = QValueActor(Pixels(env.action_spec.space.n), in_keys=["pixels"], spec=env.action_spec_unbatched)
    random = EGreedyModule(env.action_spec_unbatched, 1.0, 1.0)
    collector = DualNetworkCollector(env, actor, exploration=random, frames_per_batch=1600, total_frames=1600)
    loss = PQNLoss(actor)
    loss.set_keys(terminated="end_of_life")
    hook = LambdaTargets()
    hook._loss = loss
    batch = hook.write(next(iter(collector)))
    lost, over = batch["next", "end_of_life"][..., 0], batch["next", "done"][..., 0]
    assert (lost & ~over).sum() >= 8 and over.any()
    assert (batch["value_target"][lost] == batch["next", "reward"][lost]).all()
    for slot in range(4):
        (ends,) = over[slot].nonzero(as_tuple=True)
        if len(ends):
            end = int(ends[0])
            assert batch["next", "episode_reward"][slot, end] == batch["next", "raw_reward"][slot, : end + 1].sum()
    collector.shutdown()


def test_the_greedy_action_is_bootstrapped_with_and_not_the_one_taken() -> None:
    """The action taken is worth 0 everywhere."""
    table = np.tile([0.0, 3.0], (STATES, 1))
    nothing = [[False]]
    assert targets(hook_of(table, gamma=1.0), tape([[0]], [[1]], [[1.0]], nothing, nothing)).tolist() == [[4.0]]


def test_a_truncated_game_is_worth_the_state_it_ended_in() -> None:
    """State 8 is worth 5; the next game begins in state 3, worth 50."""
    table = np.zeros((STATES, 2))
    table[8], table[3] = 5.0, 50.0
    rollout = tape([[0, 3]], [[8, 4]], [[1.0, 0.0]], [[True, False]], [[False, False]])
    assert targets(hook_of(table, gamma=1.0, lmbda=0.5), rollout)[0, 0] == 6.0


# In a trainer


@pytest.mark.parametrize("student_loss", [DistillationLoss, StudentPQNLoss])
def test_students_learn_from_the_same_minibatches_and_leave_the_teacher_as_it_is(student_loss) -> None:
    """Eight updates a rollout; the teacher is equal to the last bit with and without them."""
    alone, teacher_alone, _ = pqn_trainer()
    alone.train()
    pupil = network(8, make_env(1), 2)
    before = weights(pupil)
    trainer, teacher, _ = pqn_trainer()
    hook = RealTimeDistillTrainer(student_loss(pupil), optimizer=torch.optim.Adam)
    hook.register(trainer)
    trainer.train()
    assert hook.updates == 3 * 8
    assert all(torch.equal(value, weights(teacher_alone)[name]) for name, value in weights(teacher).items())
    assert not all(torch.equal(value, before[name]) for name, value in weights(pupil).items())


def test_targets_are_written_once_a_rollout_and_epochs_share_them(monkeypatch) -> None:
    trainer, _, hook = pqn_trainer()
    written = []
    original = hook._next_values
    monkeypatch.setattr(hook, "_next_values", lambda *args: written.append(1) or original(*args))
    trainer.train()
    assert len(written) == 3


def test_a_teacher_and_its_student_learn_to_balance_a_pole() -> None:
    """A random player holds it for about 22 steps; both for more than 150 of 500 after 38,400 steps."""
    trainer, teacher, _ = pqn_trainer(300, rate=2e-3)
    pupil = network(16, make_env(1), 2)
    RealTimeDistillTrainer(StudentPQNLoss(pupil), optimizer=partial(torch.optim.Adam, lr=2e-3)).register(trainer)
    trainer.train()
    evaluator = Evaluator(partial(make_env, 10), episodes=10, epsilon=0.0)
    scores = [evaluator(policy).mean for policy in (teacher, pupil)]
    assert min(scores) > 150, scores


# Refusals


def test_numbers_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"lmbda must lie in \[0, 1\]: got 1.5"):
        LambdaTargets(lmbda=1.5)


def test_a_trainer_of_another_loss_is_refused() -> None:
    trainer, teacher, _ = pqn_trainer()
    trainer.loss_module = TeacherDQNLoss(teacher, action_space="categorical")
    with pytest.raises(TypeError, match="are for PQNLoss: got a trainer of TeacherDQNLoss"):
        LambdaTargets().register(trainer)


def test_a_trainer_that_would_skip_epochs_is_refused() -> None:
    """TorchRL's iterator over the replay ends in the next epoch: with 4 updates an epoch every other one is empty."""
    with pytest.raises(RuntimeError, match=r"got optim_steps_per_batch=4, at which .* are skipped; pass None"):
        pqn_trainer(steps_an_epoch=4)


def test_a_replay_that_mixes_rollouts_is_refused() -> None:
    trainer, _, _ = pqn_trainer(storage=1024)
    with pytest.raises(ValueError, match="got room for 1024 and rollouts of 128; build its storage with max_size=128"):
        trainer.train()


def test_minibatches_that_do_not_divide_the_rollout_are_refused() -> None:
    trainer, _, _ = pqn_trainer(batch=48)
    with pytest.raises(ValueError, match="must divide the rollout: got 48 and 128 steps; change batch_size or"):
        trainer.train()


def test_remote_learners_that_do_not_make_whole_passes_are_refused() -> None:
    """Four minibatches of 32 are a pass over 128 steps."""
    trainer, _, hook = pqn_trainer()
    hook._replay, hook._elsewhere = None, SimpleNamespace(optim_steps_per_batch=3, replay_buffer=trainer.replay_buffer)
    with pytest.raises(RuntimeError, match=r"got optim_steps_per_batch=3 of 32 for 128 steps; pass 4\."):
        trainer.train()


def test_an_entry_that_is_missing_is_named() -> None:
    nothing = [[False]]
    rollout = tape([[0]], [[1]], [[1.0]], nothing, nothing)
    hook = hook_of(np.zeros((STATES, 2)))
    hook._loss.set_keys(terminated="end_of_life")
    with pytest.raises(KeyError, match=r"need \('next', 'end_of_life'\): it has"):
        hook.write(rollout)
