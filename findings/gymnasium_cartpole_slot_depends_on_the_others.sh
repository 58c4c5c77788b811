#!/usr/bin/env bash
# With gymnasium's own vector CartPole the first slot's game depends on how many slots there are.
#
# Versions: gymnasium 1.4.0
# A good guess: Slot 0 under seed 0 is the single environment under seed 0.
# Seen: The vector class draws the states of all slots from one generator, so slot 0 changes with the number of slots
#   and equals no single environment. With `vectorization_mode="sync"` it is as expected.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import gymnasium

single = gymnasium.make("CartPole-v1").reset(seed=0)[0]
found = {}
for mode in ("vector_entry_point", "sync"):
    one, three = (gymnasium.make_vec("CartPole-v1", n, vectorization_mode=mode).reset(seed=0)[0][0] for n in (1, 3))
    found[mode] = (bool((one == three).all()), bool((three == single).all()))
    print(f"{mode}: same for 1 and 3 slots {found[mode][0]}, same as the single environment {found[mode][1]}")
assert found == {"vector_entry_point": (False, False), "sync": (True, True)}
PY
