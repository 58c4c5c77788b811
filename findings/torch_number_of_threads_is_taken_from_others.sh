#!/usr/bin/env bash
# A `torch.set_num_threads` in a worker thread undoes that of the main thread, unless it has computed before.
#
# Versions: torch 2.15.0
# A good guess: There is one number for the process, or each thread has its own.
# Seen: A thread has a number of its own from the first time it computes or asks for it. Until then it takes the last one that
#   any thread has set, even if it has set another itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
from concurrent.futures import ThreadPoolExecutor

import torch

early, worker, late = (ThreadPoolExecutor(1) for _ in range(3))
torch.set_num_threads(3)
found = {"a thread that asks now": early.submit(torch.get_num_threads).result()}
worker.submit(torch.set_num_threads, 1).result()
found["that thread, after a worker's set_num_threads(1)"] = early.submit(torch.get_num_threads).result()
found["the main thread, which has set 3 and not computed since"] = torch.get_num_threads()
found["a thread that begins now"] = late.submit(torch.get_num_threads).result()
torch.set_num_threads(3)
worker.submit(torch.set_num_threads, 2).result()
found["the main thread, which has asked before, after set_num_threads(3) and a worker's (2)"] = torch.get_num_threads()
for name, number in found.items():
    print(f"{name}: {number}")
assert list(found.values()) == [3, 3, 1, 1, 3], "the behaviour has changed"
PY
