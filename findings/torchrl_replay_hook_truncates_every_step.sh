#!/usr/bin/env bash
# The hook by which TorchRL's trainers fill a replay buffer marks every step as truncated.
#
# Versions: torch 2.15.0, torchrl 0.14.1, tensordict 0.14.3, gymnasium 1.4.0
# A good guess: `ReplayBufferTrainer.extend` flattens a batch `[slots, T]` and marks the last step of each slot as truncated, so
#   that a `SliceSampler(end_key=("next", "truncated"))` draws no slice over the seam of two slots.
# Seen: The entry is `[slots, T, 1]`, and the mark is set along its last dimension, which is the one of size one: all steps are
#   truncated, in the batch that was given as well. With that end key every slice would be one step long, and the sampler refuses
#   to draw any.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 torchrl==0.14.1 tensordict==0.14.3 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PY'
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
from torchrl.envs import GymEnv, SerialEnv
from torchrl.trainers import ReplayBufferTrainer

env = SerialEnv(2, lambda: GymEnv("CartPole-v1"))
env.set_seed(0)
collector = Collector(env, frames_per_batch=16, total_frames=16)
batch = next(iter(collector))
sampler = SliceSampler(slice_len=2, end_key=("next", "truncated"), traj_key=None, strict_length=True)
buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(16), sampler=sampler, batch_size=4)
before = int(batch["next", "truncated"].sum())
ReplayBufferTrainer(buffer, flatten_tensordicts=True).extend(batch)
stored = buffer.storage[:]["next", "truncated"]
print(f"two slots of eight steps: {before} steps are truncated as played, {int(stored.sum())} of {len(stored)} as stored")
print(f"and {int(batch['next', 'truncated'].sum())} in the batch that was given")
try:
    drawn = buffer.sample()
    answer = f"slices are drawn: {list(drawn.shape)}"
except RuntimeError as error:
    answer = f"no slice of two steps is drawn: {type(error).__name__}"
print(answer)
collector.shutdown()
assert before == 0 and stored.all() and batch["next", "truncated"].all(), "the behaviour has changed"
assert answer.startswith("no slice"), "the behaviour has changed"
PY
