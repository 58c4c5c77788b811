#!/usr/bin/env bash
# A reset with a seed takes more than ten times as long as one without.
#
# Versions: ale-py 0.12.1, gymnasium 1.4.0
# A good guess: A seed sets the random generators, so a reset takes the same time with and without one.
# Seen: ALE reads a seed only when it loads a ROM. The vector environment therefore loads the ROM of every seeded game
#   again, and each load fills tables for averaging colours, which only the option `color_averaging` reads. It takes as
#   long as hundreds of steps. Building the environment takes the same once more, one game after the other.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ale-py==0.12.1 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import time

import numpy as np
from ale_py.vector_env import AtariVectorEnv

GAMES = 8


def milliseconds(call):
    """Processor time of a call for one game, which other programs change little."""
    before = time.process_time()
    call()
    return 1e3 * (time.process_time() - before) / GAMES


made = []
opening = milliseconds(lambda: made.append(AtariVectorEnv("pong", GAMES, num_threads=1)))
env = made[0]
env.reset(seed=0)
seeded = milliseconds(lambda: env.reset(seed=0))
plain = milliseconds(env.reset)
step = milliseconds(lambda: [env.step(np.zeros(GAMES, dtype=np.int64)) for _ in range(100)]) / 100
print(f"ms a game: opening {opening:.1f}, reset with a seed {seeded:.1f}, without {plain:.1f}, a step {step:.2f}")
assert seeded > 5 * plain and opening > 5 * plain and seeded > 50 * step
PY
