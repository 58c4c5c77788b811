"""Lives, ends of games and rewards of AtariVecEnv."""

from __future__ import annotations

import torch
from env_parts import opened, play, random_actions


def test_done_is_only_the_real_end_while_end_of_life_marks_all_five_lives() -> None:
    """Breakout has five lives: five marks up to the end of the first game, one of them with ``done``."""
    with opened("breakout", 2, noop_max=0) as env:
        rollout = play(env, random_actions(2, 200, 4))
    for row in rollout:
        done, end_of_life = row["next", "done"].flatten(), row["next", "end_of_life"].flatten()
        end = done.nonzero()[0].item()
        assert end_of_life[: end + 1].sum().item() == 5
        assert done[: end + 1].sum().item() == 1
        assert end_of_life[end]


def test_a_truncated_game_is_not_the_end_of_a_life() -> None:
    """Its last value can be bootstrapped; the next game begins with zeros before its first frame."""
    with opened("pong", 2, noop_max=0, max_frames=40) as env:
        rollout = play(env, random_actions(2, 25, 6))
    expected = torch.tensor([False] * 9 + [True]).repeat(3)[:25].expand(2, 25)
    assert torch.equal(rollout["next", "truncated"].squeeze(-1), expected)
    assert torch.equal(rollout["next", "done"], rollout["next", "truncated"])
    assert not rollout["next", "terminated"].any()
    assert not rollout["next", "end_of_life"].any()
    assert not rollout["pixels"][:, [10, 20], :3].any()
    assert rollout["next", "pixels"][:, [9, 19]].flatten(3).any(-1).all()


def test_reward_is_the_sign_of_the_raw_reward_unless_clipping_is_off() -> None:
    """Seaquest gives 20 points for its first shark."""
    rollouts = []
    for clip_rewards in (True, False):
        with opened("seaquest", 2, noop_max=0, clip_rewards=clip_rewards) as env:
            rollouts.append(play(env, random_actions(2, 180, 18)))
    clipped, raw = rollouts
    assert set(clipped["next", "reward"].unique().tolist()) == {0.0, 1.0}
    assert set(raw["next", "reward"].unique().tolist()) == {0.0, 20.0}
    assert torch.equal(raw["next", "reward"], raw["next", "raw_reward"])
    assert torch.equal(clipped["next", "raw_reward"], raw["next", "raw_reward"])
    assert torch.equal(clipped["next", "episode_reward"], raw["next", "episode_reward"])
