#!/usr/bin/env bash
# Unseeded ALE emulators built in one second share their sticky-action draws.
#
# Versions: ale-py 0.12.1, gymnasium 1.4.0
# A good guess: Slots that are not seeded play different games: each emulator draws its own sticky actions.
# Seen: Without a seed every emulator seeds its generator from the clock in whole seconds. Two slots built in the same
#   second show the same frames for 200 steps under the same actions. With a seed they part.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ale-py==0.12.1 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import time

import numpy as np
from ale_py.vector_env import AtariVectorEnv


def part(seed):
    """Whether two slots that were built in one second, given the same actions, ever show different frames."""
    while True:
        time.sleep(1 - time.time() % 1)
        second = int(time.time())
        env = AtariVectorEnv("breakout", 2, repeat_action_probability=0.5, noop_max=0)
        if int(time.time()) == second:
            break
    env.reset(seed=seed)
    frames = [env.step(np.full(2, (2, 3)[step // 5 % 2]))[0][:, -1] for step in range(200)]
    return any(bool((first != second).any()) for first, second in frames)


unseeded, seeded = part(None), part(7)
print("slots part without a seed:", unseeded, "- with a seed:", seeded)
assert not unseeded and seeded
PY
