#!/usr/bin/env bash
# With sticky actions the FIRE that is to start a game is swallowed in about a quarter of Breakout's games.
#
# Versions: ale-py 0.12.1, gymnasium 1.4.0
# A good guess: `use_fire_reset` starts every game.
# Seen: FIRE is played for a single emulator frame, which is subject to stickiness like any other, and what sticks is
#   the no-op before it. With probability 0.25 about three quarters of the games are served; an agent that never fires
#   waits for ever in the others.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ale-py==0.12.1 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np
from ale_py.vector_env import AtariVectorEnv


def served(sticky):
    """Games of 32 in which a ball is lost under no-ops alone, so that it must have been served."""
    env = AtariVectorEnv("breakout", 32, repeat_action_probability=sticky, noop_max=0, num_threads=1)
    env.reset(seed=0)
    lost = np.zeros(32, bool)
    for _ in range(100):
        *_, info = env.step(np.zeros(32, int))
        lost |= info["lives"] < 5
    return int(lost.sum())


exact, sticky = served(0.0), served(0.25)
print(f"served of 32: {exact} without sticky actions, {sticky} with 0.25")
assert exact == 32 and 16 <= sticky < 30
PY
