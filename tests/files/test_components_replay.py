"""Every storage, sampler, writer and buffer of TorchRL survives a checkpoint: equal contents, and it goes on."""

import inspect
import warnings

import numpy as np
import pytest
import torch
import torchrl.data.replay_buffers as replay_buffers
from tensordict import TensorDict
from torchrl.data import (
    CompressedListStorage,
    ConsumingSampler,
    HERReplayBuffer,
    ImmutableDatasetWriter,
    LazyMemmapStorage,
    LazyStackStorage,
    LazyTensorStorage,
    ListStorage,
    PrioritizedReplayBuffer,
    PrioritizedSampler,
    PrioritizedSliceSampler,
    RandomSampler,
    ReplayBuffer,
    ReplayBufferEnsemble,
    RoundRobinWriter,
    SamplerWithoutReplacement,
    SliceSampler,
    SliceSamplerWithoutReplacement,
    StalenessAwareSampler,
    StreamingSliceSampler,
    TensorDictMaxValueWriter,
    TensorDictPrioritizedReplayBuffer,
    TensorDictReplayBuffer,
    TensorDictRoundRobinWriter,
    TensorStorage,
)

from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.runs.components import ReplayState

PLACES = 12


def transitions(size=8, first=0):
    """Distinct transitions ``[size]`` of games of four steps, nested as TorchRL's collectors yield them."""
    steps = torch.arange(first, first + size)
    end = (steps % 4 == 3)[:, None]
    following = {"obs": steps[:, None] + torch.tensor([0.5, 0.75]), "reward": steps[:, None].float(), "done": end}
    flags = {"terminated": end, "truncated": torch.zeros_like(end)}
    entries = {"obs": steps[:, None] + torch.tensor([0.0, 0.25]), "action": steps % 3, "rank": steps.float() % 5}
    stamps = {"policy_version": steps, "collector": {"traj_ids": steps // 4}}
    goals = {name: steps[:, None].float() for name in ("achieved_goal", "desired_goal")}
    nested = TensorDict({**following, **flags, **goals}, [size])
    return TensorDict({**entries, **stamps, **goals, "next": nested}, [size])


def buffer(storage=None, kind=TensorDictReplayBuffer, **options):
    """A buffer of twelve places."""
    return kind(storage=LazyTensorStorage(PLACES) if storage is None else storage, batch_size=4, **options)


def restored(full, fresh, folder):
    """The fresh buffer, after it was given the state of the full one through a file."""
    VerifiedCheckpoint(replay=ReplayState(full)).save(folder / "checkpoint")
    VerifiedCheckpoint(replay=ReplayState(fresh)).load(folder / "checkpoint")
    return fresh


def same(first, second):
    """Return True if two tensordicts hold the same, nested and batched the same way."""
    keys = [set(each.keys(True)) for each in (first, second)]
    nested = first.batch_size == second.batch_size and first["next"].batch_size == second["next"].batch_size
    return keys[0] == keys[1] and nested and all(torch.equal(first[key], second[key]) for key in first.keys(True, True))


def draws(replay, times=2):
    """Two minibatches after the same seed."""
    torch.manual_seed(3)
    np.random.seed(3)  # prioritised samplers draw from numpy's generator
    return [replay.sample() for _ in range(times)]


def all_of(replay):
    """Every entry, as one tensordict."""
    found = replay[:]
    return torch.stack(list(found)) if isinstance(found, list) else found


STORAGES = {
    CompressedListStorage: lambda: CompressedListStorage(PLACES, compression_level=1),
    LazyMemmapStorage: lambda: LazyMemmapStorage(PLACES),
    LazyStackStorage: lambda: LazyStackStorage(PLACES),
    LazyTensorStorage: lambda: LazyTensorStorage(PLACES),
    ListStorage: lambda: ListStorage(PLACES),
    TensorStorage: lambda: TensorStorage(transitions(PLACES).apply(torch.zeros_like)),
}
SAMPLERS = {
    ConsumingSampler: lambda: ConsumingSampler(2),
    PrioritizedSampler: lambda: PrioritizedSampler(PLACES, alpha=0.7, beta=0.5),
    PrioritizedSliceSampler: lambda: PrioritizedSliceSampler(
        PLACES, alpha=0.7, beta=0.5, num_slices=2, traj_key=("collector", "traj_ids")
    ),
    RandomSampler: RandomSampler,
    SamplerWithoutReplacement: lambda: SamplerWithoutReplacement(drop_last=True),
    SliceSampler: lambda: SliceSampler(num_slices=2, traj_key=("collector", "traj_ids")),
    SliceSamplerWithoutReplacement: lambda: SliceSamplerWithoutReplacement(
        num_slices=2, traj_key=("collector", "traj_ids")
    ),
    StalenessAwareSampler: StalenessAwareSampler,
    StreamingSliceSampler: lambda: StreamingSliceSampler(slice_len=2, end_key=("next", "done"), init_key=None),
}
WRITERS = {
    ImmutableDatasetWriter: ImmutableDatasetWriter,
    RoundRobinWriter: RoundRobinWriter,
    TensorDictMaxValueWriter: lambda: TensorDictMaxValueWriter(rank_key="rank"),
    TensorDictRoundRobinWriter: TensorDictRoundRobinWriter,
}
TREES = {"alpha": 0.7, "beta": 0.5}
BUFFERS = {
    HERReplayBuffer: lambda: buffer(
        kind=HERReplayBuffer, reward_fn=lambda data: (data["achieved_goal"] == data["desired_goal"]).float()
    ),
    PrioritizedReplayBuffer: lambda: buffer(kind=PrioritizedReplayBuffer, **TREES),
    ReplayBuffer: lambda: buffer(kind=ReplayBuffer),
    TensorDictPrioritizedReplayBuffer: lambda: buffer(kind=TensorDictPrioritizedReplayBuffer, **TREES),
    TensorDictReplayBuffer: buffer,
}

NOT_BUILT = {
    "Storage": "abstract",
    "StoreStorage": "its entries lie in a Redis server",
    "StorageEnsemble": "part of ReplayBufferEnsemble, see the test of an ensemble",
    "Sampler": "abstract",
    "SamplerEnsemble": "part of ReplayBufferEnsemble, see the test of an ensemble",
    "PromptGroupSampler": "draws prompts of language models",
    "Writer": "abstract",
    "WriterEnsemble": "part of ReplayBufferEnsemble, see the test of an ensemble",
    "RayReplayBuffer": "its entries lie in a Ray actor",
    "RemoteTensorDictReplayBuffer": "lies in another process of torch.distributed.rpc",
    "ReplayBufferEnsemble": "see the test of an ensemble",
}


def test_every_class_of_torchrl_has_been_looked_at():
    """A new storage, sampler, writer or buffer is listed here, or fails."""
    bases = tuple(getattr(replay_buffers, name) for name in ("Storage", "Sampler", "Writer", "ReplayBuffer"))
    classes = {name: item for name, item in vars(replay_buffers).items() if inspect.isclass(item)}
    exported = {name for name, item in classes.items() if issubclass(item, bases)}
    built = {item.__name__ for table in (STORAGES, SAMPLERS, WRITERS, BUFFERS) for item in table}
    assert len(exported) > 30
    assert exported == built | NOT_BUILT.keys()


@pytest.mark.parametrize("kind", STORAGES)
def test_a_storage_comes_back_with_its_nesting_and_goes_on(tmp_path, kind):
    """Entries, batch sizes, draws and the place of the next write."""
    full = buffer(STORAGES[kind]())
    full.extend(transitions())
    fresh = restored(full, buffer(STORAGES[kind]()), tmp_path)
    assert len(fresh) == len(full) == (PLACES if kind is TensorStorage else 8)
    assert same(all_of(fresh), all_of(full))
    assert all(same(*pair) for pair in zip(draws(full), draws(fresh), strict=True))
    for each in (full, fresh):
        each.extend(transitions(6, first=100))  # over the first places as well
    assert same(all_of(fresh), all_of(full))


def test_a_saved_replay_is_used_again_without_our_adapter(tmp_path):
    """The buffers of the fault as it was found."""
    full, fresh = (TensorDictReplayBuffer(storage=LazyTensorStorage(20), batch_size=4) for _ in range(2))
    full.extend(TensorDict({"obs": torch.zeros(8, 2), "next": {"obs": torch.zeros(8, 2)}}, [8]))
    VerifiedCheckpoint(replay=full).save(tmp_path / "checkpoint")
    VerifiedCheckpoint(replay=fresh).load(tmp_path / "checkpoint")
    assert fresh.storage._storage.batch_size == torch.Size([20])
    assert set(fresh.storage._storage.keys()) == {"index", "next", "obs"}
    assert fresh.sample()["next", "obs"].shape == (4, 2)


def test_a_storage_of_two_dimensions_comes_back(tmp_path):
    """Rows of four steps: time and environments stay apart."""
    full, fresh = (buffer(LazyTensorStorage(PLACES, ndim=2)) for _ in range(2))
    full.extend(transitions().view(2, 4))
    restored(full, fresh, tmp_path)
    assert fresh.storage._storage.batch_size == full.storage._storage.batch_size
    assert all(same(*pair) for pair in zip(draws(full), draws(fresh), strict=True))


@pytest.mark.parametrize("ndim", [1, 2])
def test_a_replay_written_before_batch_sizes_were_kept_still_loads(tmp_path, monkeypatch, ndim):
    """Its nesting is read from the names, its batch size from the shapes."""
    full, fresh = (buffer(LazyTensorStorage(PLACES, ndim=ndim)) for _ in range(2))
    full.extend(transitions() if ndim == 1 else transitions().view(2, 4))
    with monkeypatch.context() as before:
        before.setattr("torchrl_rtpd.files.states._batch_sizes", lambda state: {})
        before.setattr("torchrl_rtpd.files.verified.FORMAT_VERSION", 2)
        VerifiedCheckpoint(replay=ReplayState(full)).save(tmp_path / "checkpoint")
    VerifiedCheckpoint(replay=ReplayState(fresh)).load(tmp_path / "checkpoint")
    assert fresh.storage._storage.batch_size == full.storage._storage.batch_size
    assert all(same(*pair) for pair in zip(draws(full), draws(fresh), strict=True))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_sampler_goes_on_where_it_was(tmp_path, kind):
    """After one draw, the next two are those of the buffer that was saved."""
    full, fresh = (buffer(sampler=SAMPLERS[kind]()) for _ in range(2))
    full.extend(transitions())
    if issubclass(kind, PrioritizedSampler):
        full.update_priority(torch.arange(8), torch.arange(8) + 0.5)
    if kind is StalenessAwareSampler:
        full.sampler.consumer_version = 200
    full.sample()
    restored(full, fresh, tmp_path)
    assert all(same(*pair) for pair in zip(draws(full), draws(fresh), strict=True))
    for each in (full, fresh):
        each.extend(transitions(4, first=100))
    assert all(same(*pair) for pair in zip(draws(full), draws(fresh), strict=True))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_writer_goes_on_where_it_was(tmp_path, kind):
    """The next entries go to the places they would have gone to."""
    storage = (lambda: TensorStorage(transitions(PLACES))) if kind is ImmutableDatasetWriter else (lambda: None)
    full, fresh = (buffer(storage(), writer=WRITERS[kind]()) for _ in range(2))
    if kind is not ImmutableDatasetWriter:
        full.extend(transitions(10))
    restored(full, fresh, tmp_path)
    assert same(all_of(fresh), all_of(full))
    if kind is ImmutableDatasetWriter:
        with pytest.raises(RuntimeError, match="doesn't allow writing"):
            fresh.extend(transitions(5, first=100))
        return
    for each in (full, fresh):
        each.extend(transitions(5, first=100))
    assert same(all_of(fresh), all_of(full))
    assert fresh.write_count == full.write_count


@pytest.mark.parametrize("kind", BUFFERS)
def test_a_buffer_goes_on_where_it_was(tmp_path, kind):
    full, fresh = (BUFFERS[kind]() for _ in range(2))
    full.extend(transitions())
    if "Prioritized" in kind.__name__:
        full.update_priority(torch.arange(8), torch.arange(8) + 0.5)
    restored(full, fresh, tmp_path)
    assert all(same(*pair) for pair in zip(draws(full), draws(fresh), strict=True))
    fresh.extend(transitions(6, first=100))
    assert len(fresh) == PLACES


def test_an_ensemble_of_buffers_comes_back(tmp_path):
    """Each part with its storage, sampler and writer, prioritised, compressed and best-of ones among them."""

    def ensemble():
        parts = [
            buffer(sampler=SAMPLERS[PrioritizedSampler]()),
            buffer(writer=TensorDictMaxValueWriter(rank_key="rank")),
            buffer(CompressedListStorage(PLACES)),
        ]
        return parts, ReplayBufferEnsemble(*parts, batch_size=6, sample_from_all=True)

    (parts, full), (others, fresh) = ensemble(), ensemble()
    for first, part in zip((0, 100, 200), parts, strict=True):
        part.extend(transitions(first=first))
    parts[0].update_priority(torch.arange(8), torch.arange(8) + 0.5)
    restored(full, fresh, tmp_path)
    for part, other in zip(parts, others, strict=True):
        assert same(all_of(part), all_of(other))
        part.extend(transitions(3, first=300))
        other.extend(transitions(3, first=300))
        assert all(same(*pair) for pair in zip(draws(part), draws(other), strict=True))
    assert others[1].writer._current_top_values == parts[1].writer._current_top_values


def test_minibatches_drawn_ahead_come_back(tmp_path):
    """A prefetching buffer hands out the very minibatches that were waiting."""
    full, fresh = (buffer(prefetch=2) for _ in range(2))
    full.extend(transitions())
    full.sample()
    VerifiedCheckpoint(replay=ReplayState(full)).save(tmp_path / "checkpoint")
    VerifiedCheckpoint(replay=ReplayState(fresh)).load(tmp_path / "checkpoint")
    wanted = [full.sample() for _ in range(2)]
    assert all(same(*pair) for pair in zip(wanted, [fresh.sample() for _ in range(2)], strict=True))


def test_a_replay_of_another_size_is_left_out_and_said(tmp_path):
    """With both sizes; the buffer stays as it is."""
    full, fresh = buffer(), buffer(LazyTensorStorage(20))
    full.extend(transitions())
    with pytest.warns(UserWarning, match="the saved replay is not used: it has 12 places, this one 20"):
        restored(full, fresh, tmp_path)
    assert len(fresh) == 0


def test_priorities_that_are_not_finite_are_mended():
    """They become the priority of a new entry; all others stay, and draws are finite."""
    replay = buffer(sampler=PrioritizedSampler(PLACES, alpha=0.7, beta=0.5))
    replay.extend(transitions())
    replay.update_priority(torch.arange(8), torch.arange(8) + 0.5)
    before = replay.sampler._sum_tree[torch.arange(8)]
    replay.update_priority(torch.tensor([1, 3]), torch.tensor([float("nan"), float("inf")]))
    ReplayState(replay).mend_priorities()
    after = replay.sampler._sum_tree[torch.arange(8)]
    kept = torch.tensor([0, 2, 4, 5, 6, 7])
    assert torch.equal(after[kept], before[kept])
    assert after.isfinite().all()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replay.sample()["priority_weight"].isfinite().all()


@pytest.mark.parametrize("kind", ["entries", "items", "ensemble"])
def test_entries_that_are_no_tensors_are_refused_however_a_replay_is_registered(kind, tmp_path):
    """TorchRL leaves them out of the state without a word; nothing is written."""
    told = transitions().set("said", "text")
    full = buffer(ListStorage(PLACES) if kind == "items" else None)
    full.extend(told)
    replay = ReplayBufferEnsemble(full, buffer(), batch_size=4) if kind == "ensemble" else full
    for component in (replay, ReplayState(replay)):
        with pytest.raises(ValueError, match="a saved replay holds tensors only: got 'said', which is none"):
            VerifiedCheckpoint(replay=component).save(tmp_path / "checkpoint")
    assert not list(tmp_path.iterdir())
