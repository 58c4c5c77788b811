#!/usr/bin/env bash
# `VecNormV2` scales observations wrongly for thousands of steps if their mean is not zero.
#
# Versions: torch 2.15.0, torchrl 0.14.1, tensordict 0.14.3, gymnasium 1.4.0
# A good guess: After a thousand steps observations are normalised to a deviation of about 1.
# Seen: The variance is taken from averages that still lean towards zero. For observations around 10 with deviation 1
#   the normalised deviation is 0.11 between steps 1,000 and 3,000; around 0 it is 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6 gymnasium==1.4.0
"$folder/venv/bin/python" - <<'PY'
import gymnasium
import numpy as np
from torchrl.envs import GymWrapper, TransformedEnv, VecNormV2


class Draws(gymnasium.Env):
    """Observations drawn from a normal distribution with deviation 1."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, mean):
        self.mean, self.generator = mean, np.random.default_rng(0)

    def drawn(self):
        return self.generator.normal(self.mean, 1, 1).astype(np.float32)

    def reset(self, seed=None, options=None):
        return self.drawn(), {}

    def step(self, action):
        return self.drawn(), 0.0, False, False, {}


found = {}
for mean in (0, 10):
    env = TransformedEnv(GymWrapper(Draws(mean)), VecNormV2(in_keys=["observation"]))
    found[mean] = float(env.rollout(3_000, break_when_any_done=False)["next", "observation"][1_000:].std())
    print(f"mean {mean}: deviation of the normalised observations {found[mean]:.2f}")
assert 0.9 < found[0] < 1.1 and found[10] < 0.2
PY
