"""Frames kept once, stacks rebuilt: everything sampled equals what the environment showed."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from tensordict import TensorDict, TensorDictBase
from torchrl.data import LazyTensorStorage, PrioritizedSampler, RandomSampler, ReplayBuffer, TensorDictReplayBuffer
from torchrl.trainers import ReplayBufferTrainer

from torchrl_rtpd import AtariVecEnv, FrameStackStorage, make_replay_buffer

SLOTS = 3
KEYS = ("pixels", ("next", "pixels"), "action", ("next", "reward"), ("next", "done"), ("next", "end_of_life"))


class Play:
    """A real game, played at random in writes of ``[N, T]``; keeps everything it showed."""

    def __init__(self, *, steps: int, game: str = "breakout", max_frames: int = 250, seed: int = 0) -> None:
        self.env = AtariVecEnv(game, SLOTS, seed=seed, max_frames=max_frames)
        self.steps = steps
        self.generator = torch.Generator().manual_seed(seed)
        self.following = self.env.reset()
        self.writes: list[TensorDictBase] = []

    def write(self) -> TensorDictBase:
        """The next write, flattened slot by slot as TorchRL's trainers do."""
        taken = []
        for _ in range(self.steps):
            self.following["action"] = torch.randint(4, (SLOTS,), generator=self.generator)
            step, self.following = self.env.step_and_maybe_reset(self.following)
            taken.append(step)
        self.writes.append(torch.stack(taken, 1))
        return self.writes[-1].reshape(-1)

    def reset(self) -> None:
        """Begin new games in every slot."""
        self.following = self.env.reset()

    def stored(self, writes: int) -> TensorDictBase:
        """What a ring of that many writes holds, in its order."""
        total = len(self.writes)
        kept = [
            self.writes[max(place + writes * ((total - 1 - place) // writes), 0)] for place in range(min(total, writes))
        ]
        return torch.cat([write.reshape(-1) for write in kept])


def assert_equal(found: TensorDictBase, wanted: TensorDictBase) -> None:
    """Every entry of a transition, exactly."""
    for key in KEYS:
        assert torch.equal(found[key], wanted[key]), key


@pytest.mark.parametrize("steps", [1, 4])
def test_stacks_are_what_the_environment_showed(steps: int) -> None:
    """Starts of games, truncated and lost games, and two turns of the ring: all stored transitions are exact."""
    play, writes = Play(steps=steps), 80 // steps
    storage = FrameStackStorage(SLOTS * 80, num_envs=SLOTS, steps_per_write=steps)
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=8)
    for turn in range(2 * writes + 7):
        buffer.extend(play.write())
        if turn % 13 == 0 or turn > 2 * writes:
            assert_equal(storage.get(slice(None)), play.stored(writes))
    ends = storage.get(slice(None))["next", "done"].sum()
    assert ends >= SLOTS, "the test must have met ends of games"


def test_memory_is_one_frame_a_transition() -> None:
    """At most 7.2 kB for 84 x 84 frames, everything counted."""
    play = Play(steps=4, max_frames=108_000)
    storage = FrameStackStorage(SLOTS * 4 * 200, num_envs=SLOTS, steps_per_write=4)
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=8)
    assert storage.bytes_per_transition == 0
    for _ in range(20):
        buffer.extend(play.write())
    assert 7_056 < storage.bytes_per_transition <= 7_200


@pytest.mark.parametrize("n_step", [1, 3, 5])
def test_n_step_sums_equal_a_slow_loop(n_step: int) -> None:
    """Discounted sums stop at a lost life, at the end of a game and at the newest step, like a loop over the games."""
    gamma, steps, writes = 0.9, 5, 16
    play = Play(steps=steps)
    storage = FrameStackStorage(
        SLOTS * steps * writes, num_envs=SLOTS, steps_per_write=steps, n_step=n_step, gamma=gamma
    )
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=8)
    for _ in range(writes):
        buffer.extend(play.write())
    games = torch.cat(play.writes, 1)  # [N, steps * writes]
    found = torch.stack([storage.get(slice(i * SLOTS * steps, (i + 1) * SLOTS * steps)) for i in range(writes)])
    found = found.reshape(writes, SLOTS, steps).transpose(0, 1).reshape(SLOTS, writes * steps)
    for slot in range(SLOTS):
        for begin in range(games.shape[1]):
            total, at = 0.0, begin
            for offset in range(n_step):
                at = begin + offset
                total += gamma**offset * games["next", "reward"][slot, at].item()
                stop = games["next", "done"][slot, at] | games["next", "end_of_life"][slot, at]
                if stop or at + 1 == games.shape[1]:
                    break
            assert found["next", "reward"][slot, begin].item() == pytest.approx(total, abs=1e-6)
            assert torch.equal(found["next", "pixels"][slot, begin], games["next", "pixels"][slot, at])
            assert found["next", "end_of_life"][slot, begin] == games["next", "end_of_life"][slot, at]
            assert torch.equal(found["pixels"][slot, begin], games["pixels"][slot, begin])
            if n_step > 1:
                assert found["steps_to_next_obs"][slot, begin].item() == at - begin + 1


@pytest.mark.parametrize("kind", [ReplayBuffer, TensorDictReplayBuffer])
def test_standard_buffers_sample_from_it(kind: type[ReplayBuffer]) -> None:
    """TorchRL's buffers need no collate function, and a sample is a stored transition."""
    play = Play(steps=4)
    storage = FrameStackStorage(SLOTS * 40, num_envs=SLOTS, steps_per_write=4)
    buffer = kind(storage=storage, sampler=RandomSampler(), batch_size=16)
    for _ in range(5):
        buffer.extend(play.write())
    sample, info = buffer.sample(return_info=True)
    assert sample.batch_size == (16,)
    assert_equal(sample, play.stored(10)[info["index"]])


def test_priorities_land_on_their_transitions() -> None:
    """With all priority on one transition the sampler finds that one, and weights come with the sample."""
    play = Play(steps=4)
    storage = FrameStackStorage(SLOTS * 40, num_envs=SLOTS, steps_per_write=4)
    buffer = make_replay_buffer(storage, batch_size=16, prioritized=True, alpha=1.0)
    for _ in range(5):
        buffer.extend(play.write())
    everything = torch.arange(len(storage))
    buffer.update_priority(everything, torch.where(everything == 17, 1.0, 1e-12))
    sample = buffer.sample()
    assert (sample["index"] == 17).all() and sample["priority_weight"].shape == (16,)
    assert_equal(sample, play.stored(10)[sample["index"]])
    assert isinstance(buffer.sampler, PrioritizedSampler)


def test_prioritised_replay_without_the_extension_names_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where TorchRL's compiled trees are missing the error says what to install."""
    from torchrl.data.replay_buffers.samplers import prioritized

    for name in [name for name in dir(prioritized) if "SegmentTree" in name]:
        monkeypatch.delattr(prioritized, name)
    storage = FrameStackStorage(SLOTS * 4, num_envs=SLOTS, steps_per_write=4)
    with pytest.raises(
        RuntimeError, match=f"got torchrl .* with torch {torch.__version__.split('+')[0]}.*constraints.txt"
    ):
        make_replay_buffer(storage, batch_size=4, prioritized=True)


def test_torchrl_trainers_hook_writes_and_samples() -> None:
    """TorchRL's own hook marks the last step of each batch as truncated; games still end where they ended."""
    play = Play(steps=4)
    storage = FrameStackStorage(SLOTS * 80, num_envs=SLOTS, steps_per_write=4)
    buffer = make_replay_buffer(storage, batch_size=8, seed=0)
    hook = ReplayBufferTrainer(buffer, flatten_tensordicts=True, device="cpu")
    for _ in range(12):
        play.write()
        hook.extend(play.writes[-1].clone())
    assert_equal(storage.get(slice(None)), play.stored(20))
    assert hook.sample(None).batch_size == (8,)


def test_cut_ends_the_games_of_all_slots() -> None:
    """After a reset from outside, the last transitions keep their own next frames and n-step sums stop there."""
    play = Play(steps=4)
    storage = FrameStackStorage(SLOTS * 40, num_envs=SLOTS, steps_per_write=4, n_step=3)
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=8)
    storage.cut()  # nothing is stored yet: nothing to cut
    buffer.extend(play.write())
    storage.cut()
    play.reset()
    buffer.extend(play.write())
    found = storage.get(slice(None))
    last = torch.arange(SLOTS) * 4 + 3
    assert torch.equal(found["next", "pixels"][last], play.stored(10)["next", "pixels"][last])
    assert found["steps_to_next_obs"][last].eq(1).all()
    assert torch.equal(found["pixels"], play.stored(10)["pixels"])


WRONG = {
    "time before slots": (
        lambda batch, steps: batch.reshape(SLOTS, steps).transpose(0, 1).reshape(-1),
        "must continue",
    ),
    "shuffled": (lambda batch, steps: batch[torch.arange(len(batch)).flip(0)], "must continue"),
    "half a write": (lambda batch, steps: batch[: len(batch) // 2], "written in order"),
    "not flattened": (lambda batch, steps: batch.reshape(SLOTS, steps), "written in order"),
    "no next frames": (lambda batch, steps: batch.exclude(("next", "pixels")), "must be uint8"),
    "scaled frames": (lambda batch, steps: batch.clone().set("pixels", batch["pixels"].float()), "must be uint8"),
    "single frames": (lambda batch, steps: batch.clone().set("pixels", batch["pixels"][:, :1]), "must be uint8"),
    "other entries": (lambda batch, steps: batch.clone().set("extra", torch.zeros(len(batch))), "entries of the first"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_layout_is_an_error_and_nothing_is_lost(name: str) -> None:
    """What does not fit is refused with its remedy; stored transitions stay readable as they were."""
    spoil, message = WRONG[name]
    play = Play(steps=4)
    storage = FrameStackStorage(SLOTS * 40, num_envs=SLOTS, steps_per_write=4)
    buffer = ReplayBuffer(storage=storage, batch_size=8)
    for _ in range(8):
        buffer.extend(play.write())
    wanted = play.stored(10)
    with pytest.raises(ValueError, match=message):
        buffer.extend(spoil(play.write(), 4))
    play.writes.pop()
    assert len(storage) == len(wanted)
    assert_equal(storage.get(slice(None)), wanted)


def test_reset_from_outside_without_cut_is_an_error() -> None:
    """Stacks that do not continue are refused, and the message names cut()."""
    play = Play(steps=4)
    storage = FrameStackStorage(SLOTS * 40, num_envs=SLOTS, steps_per_write=4)
    buffer = ReplayBuffer(storage=storage, batch_size=8)
    buffer.extend(play.write())
    play.reset()
    with pytest.raises(ValueError, match=r"call cut\(\)"):
        buffer.extend(play.write())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_size": 13}, "max_size must be a multiple of num_envs \\* steps_per_write = 4: got 13; use 12"),
        ({"max_size": 2}, "room for one write: got max_size=2"),
        ({"num_envs": 0}, "positive sizes.*num_envs=0"),
        ({"n_step": 0}, "positive sizes.*n_step=0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    """The error gives the sizes and the nearest that fits."""
    with pytest.raises(ValueError, match=message):
        FrameStackStorage(**{"max_size": 12, "num_envs": 2, "steps_per_write": 2, **options})


def test_indices_of_every_kind() -> None:
    """Integers, lists, slices and tensors read the same transitions; what was not written is an error."""
    play = Play(steps=4)
    storage = FrameStackStorage(SLOTS * 40, num_envs=SLOTS, steps_per_write=4)
    with pytest.raises(RuntimeError, match="index 0 was not written yet: 0 transitions are stored"):
        storage.get(0)
    ReplayBuffer(storage=storage, batch_size=8).extend(play.write())
    assert len(storage) == 12
    assert storage.contains(11) and not storage.contains(12)
    one, many = storage.get(5), storage.get([5, 6])
    assert one.batch_size == () and torch.equal(one["pixels"], many["pixels"][0])
    assert torch.equal(storage[5:7]["pixels"], many["pixels"])
    assert torch.equal(storage.get(torch.tensor([[5], [6]]))["pixels"][:, 0], many["pixels"])
    with pytest.raises(RuntimeError, match="index 12 was not written yet: 12 transitions are stored"):
        storage.get(12)


def test_state_round_trip_goes_on_identically() -> None:
    """A restored storage holds the same transitions and takes the next write."""
    play = Play(steps=4)
    storage, other = (FrameStackStorage(SLOTS * 40, num_envs=SLOTS, steps_per_write=4) for _ in range(2))
    buffer = ReplayBuffer(storage=storage, batch_size=8)
    for _ in range(17):
        buffer.extend(play.write())
    state = buffer.state_dict()
    restored = ReplayBuffer(storage=other, batch_size=8)
    restored.load_state_dict(state)
    write = play.write()
    buffer.extend(write.clone())
    restored.extend(write.clone())
    assert_equal(other.get(slice(None)), storage.get(slice(None)))
    assert_equal(other.get(slice(None)), play.stored(10))


def test_state_of_other_sizes_is_refused() -> None:
    """The error names what differs."""
    state = FrameStackStorage(12, num_envs=2).state_dict()
    with pytest.raises(ValueError, match="sizes of this one"):
        FrameStackStorage(12, num_envs=3).load_state_dict(state)


def test_emptied_storage_starts_anew() -> None:
    """After empty() the buffer takes other games from the beginning."""
    play = Play(steps=4)
    buffer = ReplayBuffer(storage=FrameStackStorage(SLOTS * 40, num_envs=SLOTS, steps_per_write=4), batch_size=8)
    buffer.extend(play.write())
    buffer.empty()
    assert len(buffer) == 0
    play.reset()
    play.writes.clear()
    buffer.extend(play.write())
    assert_equal(buffer.storage.get(slice(None)), play.stored(10))


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    num_envs=st.integers(1, 4),
    steps=st.integers(1, 4),
    writes=st.integers(1, 4),
    turns=st.integers(1, 11),
    stack=st.integers(1, 4),
    data=st.data(),
)
def test_any_sizes_and_ends_are_exact(
    num_envs: int, steps: int, writes: int, turns: int, stack: int, data: st.DataObject
) -> None:
    """Numbered frames, ends anywhere: the storage agrees with one that keeps every stack."""
    block = num_envs * steps
    storage = FrameStackStorage(block * writes, num_envs=num_envs, steps_per_write=steps, frame_stack=stack)
    naive = LazyTensorStorage(block * writes)
    buffers = [ReplayBuffer(storage=one, batch_size=1) for one in (storage, naive)]
    stacks = torch.zeros(num_envs, stack, 1, 1, dtype=torch.uint8)
    stacks[:, -1] = 1
    number = 1
    for _ in range(turns):
        taken = []
        for _ in range(steps):
            number = number % 254 + 1
            newest = torch.full((num_envs, 1, 1, 1), number, dtype=torch.uint8)
            following = torch.cat([stacks[:, 1:], newest], 1)
            done = torch.tensor(data.draw(st.lists(st.booleans(), min_size=num_envs, max_size=num_envs)))[:, None]
            step = {"pixels": stacks, "next": {"pixels": following, "done": done, "reward": done.float()}}
            taken.append(TensorDict(step, [num_envs]))
            begun = torch.zeros_like(stacks)
            begun[:, -1] = number // 2
            stacks = torch.where(done[:, :, None, None], begun, following)
        batch = torch.stack(taken, 1).reshape(-1)
        for buffer in buffers:
            buffer.extend(batch.clone())
    found, wanted = storage.get(slice(None)), naive.get(slice(None))
    for key in ("pixels", ("next", "pixels"), ("next", "done"), ("next", "reward")):
        assert torch.equal(found[key], wanted[key]), key


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_frames_can_live_on_the_gpu() -> None:
    """Samples of a CUDA storage equal those of one in main memory."""
    play = Play(steps=4)
    storages = [
        FrameStackStorage(SLOTS * 40, num_envs=SLOTS, steps_per_write=4, n_step=3, device=device)
        for device in ("cpu", "cuda")
    ]
    for _ in range(15):
        write = play.write()
        for storage in storages:
            ReplayBuffer(storage=storage, batch_size=8)
            storage.set(torch.arange(12) + storage._num_written % storage.max_size, write.clone())
    index = torch.arange(len(storages[0]))
    for key in KEYS:
        assert torch.equal(storages[0].get(index)[key], storages[1].get(index.cuda())[key].cpu())
