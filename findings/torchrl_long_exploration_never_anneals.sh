#!/usr/bin/env bash
# An `EGreedyModule` that is to anneal over 40 million steps never leaves epsilon 1.
#
# Versions: torch 2.15.0, torchrl 0.14.1, tensordict 0.14.3
# A good guess: Epsilon falls linearly, however long the schedule.
# Seen: Epsilon is a float32 buffer that loses a constant at each call. Over 40 million steps the constant is less
#   than half of the last digit of 1, so epsilon stays 1; over 10 million it is rounded up and falls a fifth too fast.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
from torchrl.data import Categorical
from torchrl.modules import EGreedyModule

found = {}
for total in (10_000_000, 40_000_000):
    exploration = EGreedyModule(Categorical(2), eps_init=1.0, eps_end=0.0, annealing_num_steps=total)
    for _ in range(100_000):
        exploration.step()
    found[total] = 1 - float(exploration.eps)
    print(f"{total:,} steps: after 100,000 calls epsilon has fallen by {found[total]:.5f}, exact would be {100_000 / total:.5f}")
assert found[40_000_000] == 0.0 and found[10_000_000] > 1.15 * 0.01
PY
