"""Atari as a batched environment, step by step against gymnasium's own ALE environments and wrappers."""

from __future__ import annotations

import pytest
import torch
from env_parts import assert_equals_reference, opened, play, random_actions, reference_env, reference_play


@pytest.mark.parametrize(
    ("game", "num_envs", "steps", "options", "terminated", "truncated"),
    [
        ("breakout", 3, 280, {}, 4, 0),
        ("seaquest", 2, 350, {}, 1, 0),
        ("pong", 2, 150, {"max_frames": 401}, 0, 2),
        ("pong", 1, 110, {"max_frames": 402}, 0, 1),
        ("breakout", 2, 190, {"max_frames": 642}, 1, 1),
        ("breakout", 2, 110, {"frame_skip": 3, "frame_stack": 2, "max_frames": 303}, 0, 2),
        ("seaquest", 2, 60, {"frame_skip": 1, "frame_stack": 1, "max_frames": 25}, 0, 4),
        ("freeway", 2, 40, {"frame_stack": 5}, 0, 0),
    ],
)
def test_frames_scores_and_ends_equal_gymnasiums(
    game: str, num_envs: int, steps: int, options: dict, terminated: int, truncated: int
) -> None:
    """Every key of every step of every slot, over as many lost and cut games as the case says."""
    with opened(game, num_envs, noop_max=0, **options) as env:
        actions = random_actions(num_envs, steps, env.num_actions)
        rollout = play(env, actions)
    for slot in range(num_envs):
        reference = reference_play(reference_env(game, **options), actions[slot])
        assert_equals_reference(rollout[slot], reference, f"slot {slot}")
    assert rollout["next", "terminated"].sum().item() == terminated
    assert rollout["next", "truncated"].sum().item() == truncated


def test_sticky_actions_are_ales_own_drawn_from_the_slots_seed() -> None:
    """Slot ``i`` is ALE with ``random_seed = seed + i``, frame by frame."""
    with opened("breakout", 2, noop_max=0, sticky_actions=0.25, seed=7) as env:
        actions = random_actions(2, 150, env.num_actions)
        rollout = play(env, actions)
    for slot in range(2):
        reference = reference_play(reference_env("breakout", sticky_actions=0.25, ale_seed=7 + slot), actions[slot])
        assert_equals_reference(rollout[slot], reference, f"slot {slot}")
    plain = reference_play(reference_env("breakout"), actions[0])
    assert (rollout[0]["next", "pixels"] != plain["next", "pixels"]).any()


def test_games_start_with_fewer_than_noop_max_frames() -> None:
    """FIRE and 0 to 8 no-ops when ``noop_max`` is 10: each slot goes on as gymnasium does after one of these starts."""
    with opened("seaquest", 6, noop_max=10, seed=0) as env:
        actions = random_actions(1, 30, env.num_actions).expand(6, -1)
        rollout = play(env, actions)
    starts = [
        reference_play(reference_env("seaquest", noop_frames=noops), actions[0])["next", "pixels"] for noops in range(9)
    ]
    found = [
        [noops for noops, start in enumerate(starts) if torch.equal(start, row["next", "pixels"])] for row in rollout
    ]
    assert all(found)
    assert len({tuple(noops) for noops in found}) > 2


def test_a_lost_pong_game_scores_minus_21() -> None:
    """A player that does nothing loses every point; no life is lost on the way, and the next game starts at 0."""
    with opened("pong", 2, noop_max=0) as env:
        rollout = play(env, torch.zeros(2, 900, dtype=torch.int64))
    for row in rollout:
        end = row["next", "done"].flatten().nonzero()[0].item()
        assert row["next", "episode_reward"][end].item() == -21
        assert row["next", "raw_reward"][: end + 1].sum().item() == -21
        assert row["next", "end_of_life"][: end + 1].sum().item() == 1
        assert row["episode_reward"][end + 1].item() == 0
        assert row["next", "episode_reward"][-1].item() > -21
