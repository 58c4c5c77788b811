#!/usr/bin/env bash
# One Atari id makes two different tasks, depending on the vectorisation mode.
#
# Versions: ale-py 0.12.1, gymnasium 1.4.0
# A good guess: `make_vec` with another mode gives the same task on other workers.
# Seen: Without a mode `ALE/Breakout-v5` is ALE's own vector environment: grey stacks of four, clipped int32 rewards.
#   With `sync` it is the raw screen in colour with unclipped float64 rewards.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ale-py==0.12.1 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import ale_py
import gymnasium

gymnasium.register_envs(ale_py)
found = []
for mode in (None, "sync"):
    env = gymnasium.make_vec("ALE/Breakout-v5", num_envs=2, vectorization_mode=mode)
    observation, _ = env.reset(seed=0)
    rewards = env.step(env.action_space.sample())[1]
    found.append((type(env.unwrapped).__name__, observation.shape, str(rewards.dtype)))
    print(mode, *found[-1])
assert found == [("AtariVectorEnv", (2, 4, 84, 84), "int32"), ("SyncVectorEnv", (2, 210, 160, 3), "float64")]
PY
