#!/usr/bin/env bash
# `reset()` of a gymnasium vector environment shows the observations of the step before it.
#
# Versions: torch 2.15.0, torchrl 0.14.1, tensordict 0.14.3, gymnasium 1.4.0
# A good guess: `env.reset()`, seeded, begins new games in all slots, and shows their first observations.
# Seen: If games of some slots, but not of all, ended in the step before, the games begin but the observations shown,
#   of all slots, are those of that step. Otherwise the reset shows the same as that of a new environment. An evaluation
#   that stops when its last game has ended always ends with such a step, so that the next one begins with it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6 gymnasium==1.4.0
"$folder/venv/bin/python" - <<'PY'
import gymnasium
import torch
from gymnasium.vector import AutoresetMode
from torchrl.envs import GymWrapper, step_mdp

games = gymnasium.make_vec("CartPole-v1", 3, "sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP})
env = GymWrapper(games, categorical_action_encoding=True)
env.set_seed(0)
fresh = env.reset()["observation"].clone()
found = {}
for until_one_ends in (False, True):
    torch.manual_seed(0)
    state, step = env.reset(), None
    for _ in range(200):
        step = env.rand_step(state)
        if not until_one_ends or step["next", "done"].any():
            break
        state = step_mdp(step)
    some_ended = bool(step["next", "done"].any() and not step["next", "done"].all())
    env.set_seed(0)
    found[some_ended] = torch.equal(env.reset()["observation"], fresh)
    print(f"some games ended in the step before: {some_ended}; the seeded reset shows new games: {found[some_ended]}")
assert found == {False: True, True: False}
PY
