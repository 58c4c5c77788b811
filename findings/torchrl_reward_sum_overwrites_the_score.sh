#!/usr/bin/env bash
# `RewardSum` silently replaces an `episode_reward` that the environment already writes.
#
# Versions: torch 2.15.0, torchrl 0.14.1, tensordict 0.14.3, gymnasium 1.4.0
# A good guess: An entry that exists is kept, or its name is refused.
# Seen: An environment reports its true score under `episode_reward` beside a scaled reward. With the usual
#   `RewardSum()` appended the entry holds the sum of scaled rewards, without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6 gymnasium==1.4.0
"$folder/venv/bin/python" - <<'PY'
from torchrl.envs import Compose, GymEnv, RewardClipping, RewardSum, TransformedEnv

scored = [RewardSum(), RewardClipping(0.0, 0.1)]  # an environment with a raw score and clipped rewards
before = TransformedEnv(GymEnv("CartPole-v1"), Compose(*scored)).rollout(5)["next", "episode_reward"]
after = TransformedEnv(GymEnv("CartPole-v1"), Compose(RewardSum(), RewardClipping(0.0, 0.1), RewardSum())).rollout(5)["next", "episode_reward"]
print("score", before.flatten().tolist(), "- after another RewardSum", [round(value, 1) for value in after.flatten().tolist()])
assert before[-1] == 5.0 and abs(float(after[-1]) - 0.5) < 1e-5
PY
