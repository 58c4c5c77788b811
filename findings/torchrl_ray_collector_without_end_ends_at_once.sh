#!/usr/bin/env bash
# `RayCollector(total_frames=-1)` yields no batch at all.
#
# Versions: torch 2.15.0, torchrl 0.14.1, tensordict 0.14.3, ray 2.60.0
# A good guess: As its documentation says of -1, there is no end, as with every other collector.
# Seen: It goes on while fewer than -1 frames are collected, which is never.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6 gymnasium==1.4.0 ray==2.60.0
"$folder/venv/bin/python" - <<'PY'
import itertools
from functools import partial

from torchrl.collectors import Collector
from torchrl.collectors.distributed import RayCollector
from torchrl.envs import GymEnv

make_env = partial(GymEnv, "Pendulum-v1")
here = Collector(make_env, frames_per_batch=8, total_frames=-1)
batches = {"Collector": len(list(itertools.islice(here, 3)))}
here.shutdown()
remote = RayCollector(
    [make_env],
    frames_per_batch=8,
    total_frames=-1,
    sync=True,
    ray_init_config={"num_cpus": 2, "include_dashboard": False},
    remote_configs={"num_cpus": 1, "memory": 0},
)
batches["RayCollector"] = len(list(itertools.islice(remote, 3)))
remote.shutdown()
print(f"batches of three that were asked for: {batches}")
assert batches == {"Collector": 3, "RayCollector": 0}
PY
