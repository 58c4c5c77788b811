#!/usr/bin/env bash
# `torch.set_num_threads` sets the number of the thread that calls it, and of those that begin to compute later.
#
# Versions: torch 2.15.0
# A good guess: It is one number for the process. Or, if threads have numbers of their own, a new one begins with the default.
# Seen: A thread that has computed before keeps its number. One that first computes afterwards takes the last number that any
#   thread has set: a worker's `set_num_threads(1)` makes the next worker slow, and leaves the main thread alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
from concurrent.futures import ThreadPoolExecutor

import torch

torch.set_num_threads(3)
early, worker, late = (ThreadPoolExecutor(1) for _ in range(3))
found = {"a thread that begins now": early.submit(torch.get_num_threads).result()}
worker.submit(torch.set_num_threads, 1).result()
found["the main thread, after a worker's set_num_threads(1)"] = torch.get_num_threads()
found["the thread that had begun before"] = early.submit(torch.get_num_threads).result()
found["a thread that begins after"] = late.submit(torch.get_num_threads).result()
for name, number in found.items():
    print(f"{name}: {number}")
assert list(found.values()) == [3, 3, 3, 1], "the behaviour has changed"
PY
