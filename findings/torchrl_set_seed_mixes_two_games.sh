#!/usr/bin/env bash
# The first transition after `Collector.set_seed` joins two games.
#
# Versions: torch 2.15.0, torchrl 0.14.1, tensordict 0.14.3, gymnasium 1.4.0
# A good guess: A collector that is seeded, as `Trainer(seed=)` does, begins with the seeded game.
# Seen: The first observation is from the reset that the collector made when it was built, the next one from the
#   seeded game. CartPole's position must move by 0.02 times its velocity; it does in all transitions but the first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6 gymnasium==1.4.0
"$folder/venv/bin/python" - <<'PY'
import torch
from torchrl.collectors import Collector
from torchrl.envs import GymEnv
from torchrl.envs.utils import RandomPolicy

env = GymEnv("CartPole-v1")
collector = Collector(env, RandomPolicy(env.action_spec), frames_per_batch=4, total_frames=8)
collector.set_seed(0)
batch = next(iter(collector))
now, following = batch["observation"], batch["next", "observation"]
joined = torch.isclose(following[:, 0], now[:, 0] + 0.02 * now[:, 1], atol=1e-6).tolist()
collector.shutdown()
print("transitions that obey the game's own equation:", joined)
assert joined == [False, True, True, True]
PY
