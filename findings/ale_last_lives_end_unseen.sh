#!/usr/bin/env bash
# `life_loss_info` misses the loss of the last displayed life where a game goes on with none left.
#
# Versions: ale-py 0.12.1, gymnasium 1.4.0
# A good guess: `terminated` is True whenever `lives` falls.
# Seen: Bank Heist counts 4, 3, 2, 1, 0 and goes on playing with 0. Termination is reported for all changes but 1 to
#   0, then at the end of the game.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ale-py==0.12.1 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np
from ale_py.vector_env import AtariVectorEnv

env = AtariVectorEnv("bank_heist", 1, life_loss_info=True)
_, info = env.reset(seed=0)
lives, frames, changes = int(info["lives"][0]), 0, []
actions = np.random.default_rng(0)
for _ in range(4_000):
    *_, terminated, _, info = env.step(actions.integers(18, size=1))
    now, frame = int(info["lives"][0]), int(info["episode_frame_number"][0])
    if frame < frames:
        break
    if now != lives or terminated[0]:
        changes.append((lives, now, bool(terminated[0])))
    lives, frames = now, frame
print("lives before, lives after, terminated:", changes)
assert changes == [(4, 3, True), (3, 2, True), (2, 1, True), (1, 0, False), (0, 0, True)]
PY
