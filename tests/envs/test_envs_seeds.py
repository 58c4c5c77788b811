"""Seeds of AtariVecEnv: one seed, one stream, from the first transition on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from env_parts import opened, play, random_actions, same, stream
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, RewardSum, StepCounter, ToTensorImage, TransformedEnv
from torchrl.trainers import Trainer

from torchrl_rtpd.envs import AtariVecEnv


def test_one_seed_gives_one_stream_and_another_seed_another() -> None:
    streams = []
    for seed in (3, 3, 1_000):
        with opened("breakout", 2, seed=seed, sticky_actions=0.25) as env:
            streams.append(stream(env))
    assert same(streams[0], streams[1])
    assert not same(streams[0], streams[2])


def test_a_slot_is_seeded_with_the_seed_plus_its_number() -> None:
    """And plays the same whatever its neighbours and the threads."""
    actions = random_actions(1, 40, 4)
    with opened("breakout", 3, seed=5, sticky_actions=0.25) as env:
        last = play(env, actions.expand(3, -1))[2]
    with opened("breakout", 1, seed=7, sticky_actions=0.25, num_threads=1) as env:
        alone = play(env, actions)[0]
    assert same(last, alone)


def test_set_seed_and_reset_reproduce_a_stream() -> None:
    with opened("breakout", 2, seed=0, sticky_actions=0.25) as env:
        env.set_seed(11)
        first = stream(env)
        later = stream(env)
        env.set_seed(11)
        assert same(stream(env), first)
        assert not same(later, first)


@pytest.mark.parametrize("seed", [2**31 - 1, 2**31 + 5, 2**40, np.int64(3)])
def test_seeds_that_torchrl_hands_on_are_taken(seed: int) -> None:
    """``set_seed`` returns a seed of 32 bits for the next environment; ALE's have 31."""
    streams = []
    for _ in range(2):
        with opened("breakout", 2, seed=seed, sticky_actions=0.25) as env:
            streams.append(stream(env))
    assert same(*streams)


def test_without_a_seed_two_environments_differ() -> None:
    """Games start with up to 29 frames and have a sticky action in four: equal streams are out of the question."""
    streams = []
    for _ in range(2):
        with opened("breakout", 4, sticky_actions=0.25) as env:
            streams.append(stream(env))
    assert not same(*streams)


def test_building_and_running_leave_the_global_generators_as_they_were() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    actions = random_actions(2, 5, 4)
    with opened("breakout", 2, seed=0) as env:
        play(env, actions)
        env.set_seed(1)
        env.reset()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_environments_without_a_seed_share_no_stream_of_sticky_actions() -> None:
    """Made in the same second, with the same start and the same actions: eight slots play eight games."""
    actions = random_actions(1, 30, 4).expand(4, -1)
    rows = []
    for _ in range(2):
        with opened("breakout", 4, sticky_actions=0.5, noop_max=0) as env:
            rows += list(play(env, actions)["next", "pixels"])
    assert len({row.numpy().tobytes() for row in rows}) == 8


def test_set_seed_without_a_number_draws_one() -> None:
    actions, rows = random_actions(1, 30, 4).expand(2, -1), []
    with opened("breakout", 2, sticky_actions=0.5, noop_max=0, seed=0) as env:
        for _ in range(2):
            env.set_seed(None)
            rows += list(play(env, actions)["next", "pixels"])
    assert len({row.numpy().tobytes() for row in rows}) == 4


def test_stickiness_swallows_the_fire_of_a_quarter_of_the_games() -> None:
    """Without the ball nothing moves: as many games stand still as 64 draws with probability 0.25 may give."""
    still = {}
    for sticky_actions in (0.0, 0.25):
        with opened("breakout", 64, sticky_actions=sticky_actions, noop_max=0, frame_stack=1, seed=0) as env:
            pixels = play(env, torch.zeros(64, 12, dtype=torch.int64))["next", "pixels"].flatten(2)
        still[sticky_actions] = (pixels == pixels[:, :1]).flatten(1).all(-1).sum().item()
    assert still[0.0] == 0
    assert 6 <= still[0.25] <= 28


# After the reset of a collector


def unchanged(env: AtariVecEnv) -> AtariVecEnv:
    return env


def summed(env: AtariVecEnv) -> EnvBase:
    return env.append_transform(RewardSum()).append_transform(StepCounter())


def collected(env: EnvBase, *, seed: int | None = 0, batches: int = 2) -> TensorDictBase:
    """Batches of TorchRL's own collector, which is seeded after it was built, with actions of one stream."""
    collector = Collector(env, frames_per_batch=12 * env.batch_size[0], total_frames=12 * batches * env.batch_size[0])
    if seed is not None:
        collector.set_seed(seed)
    torch.manual_seed(0)
    found = torch.cat(list(collector), 1)
    collector.shutdown()
    return found.exclude("collector")


@pytest.mark.parametrize("wrapped", [unchanged, summed])
@pytest.mark.parametrize("options", [{}, {"frame_stack": 1}, {"grayscale": False}, {"device": "cpu"}], ids=str)
def test_a_collector_seeded_after_it_was_built_collects_the_same_twice(wrapped: object, options: dict) -> None:
    """From the first transition on, and what an environment built with that seed gives."""
    options = {"sticky_actions": 0.25, **options}
    first, second = (collected(wrapped(AtariVecEnv("breakout", 2, **options))) for _ in range(2))
    built_so = collected(wrapped(AtariVecEnv("breakout", 2, seed=0, **options)), seed=None)
    assert same(first, second)
    assert same(first, built_so)
    assert not same(first, collected(wrapped(AtariVecEnv("breakout", 2, **options)), seed=1))


def test_no_transition_of_a_collector_seeded_late_mixes_two_games() -> None:
    """The stack after the first step goes on from the one before it."""
    found = collected(AtariVecEnv("breakout", 2, seed=5))
    assert torch.equal(found["pixels"][:, :, 1:], found["next", "pixels"][:, :, :-1])


def test_a_trainers_seed_makes_two_runs_equal() -> None:
    """TorchRL's Trainer sets it on a collector that has reset its environment already."""
    batches = []
    for _ in range(2):
        collector = Collector(AtariVecEnv("breakout", 2), frames_per_batch=20, total_frames=40)
        kept: list[TensorDictBase] = []
        trainer = Trainer(
            collector=collector,
            total_frames=40,
            frame_skip=1,
            optim_steps_per_batch=0,
            loss_module=lambda batch: batch,
            seed=3,
            progress_bar=False,
        )
        trainer.register_op("batch_process", lambda batch, kept=kept: kept.append(batch.clone()) or batch)
        trainer.train()
        collector.shutdown()
        batches.append(torch.cat(kept, 1).exclude("collector"))
    assert same(*batches)


def test_a_seed_after_a_reset_shows_the_seeds_games_in_what_the_reset_returned() -> None:
    """And again at the next reset, unless a step was made in between."""
    with opened("breakout", 2, seed=4) as env:
        wanted = stream(env)
    with opened("breakout", 2) as env:
        shown = env.reset()
        env.set_seed(4)
        assert torch.equal(shown["pixels"], wanted["pixels"][:, 0])
        assert torch.equal(env.reset()["pixels"], wanted["pixels"][:, 0])
        env.set_seed(4)
        assert same(stream(env), wanted)
        env.set_seed(4)
        assert same(stream(env), wanted)


@pytest.mark.parametrize("step", ["step", "send"])
def test_a_seed_among_running_games_needs_a_reset_before_the_next_step(step: str) -> None:
    """A seed that would do nothing is refused; the reset then plays its games."""
    with opened("breakout", 2, seed=7) as env:
        wanted = stream(env)
        state = env.rollout(1)[:, -1]["next"].exclude("reward").set("action", torch.zeros(2, dtype=torch.int64))
        env.set_seed(7)
        with pytest.raises(RuntimeError, match=r"got set_seed among running games and a step; call env\.reset\(\), or"):
            env.step(state) if step == "step" else env.send(state["action"])
        assert same(stream(env), wanted)


def test_a_seed_after_a_reset_whose_pixels_were_changed_needs_another_reset() -> None:
    """A transform's copy cannot be overwritten; a step without pixels could not tell."""
    action = torch.zeros(2, dtype=torch.int64)
    with opened("pong", 2) as base:
        env = TransformedEnv(base, ToTensorImage(in_keys=["pixels"]))
        for state in (env.reset(), TensorDict({}, [2])):
            env.set_seed(0)
            with pytest.raises(
                RuntimeError, match=r"got set_seed after a reset whose pixels were copied or transformed"
            ):
                env.step(state.set("action", action))
            env.reset()
        env.step(env.reset().set("action", action))


def test_a_seed_while_a_step_is_being_played_needs_a_reset() -> None:
    action = torch.zeros(2, dtype=torch.int64)
    with opened("breakout", 2, seed=7) as env:
        wanted = env.reset()["pixels"].clone()
        state = env.reset().set("action", action)
        env.send(action)
        env.set_seed(7)
        with pytest.raises(RuntimeError, match="got set_seed among running games and a step"):
            env.step(state)
        assert torch.equal(env.reset()["pixels"], wanted)
