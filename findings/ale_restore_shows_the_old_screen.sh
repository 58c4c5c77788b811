#!/usr/bin/env bash
# After `restore_state` ALE's RAM is the restored one and its screen is not.
#
# Versions: ale-py 0.12.1, gymnasium 1.4.0
# A good guess: Restoring a state restores what the environment shows.
# Seen: RAM, lives and frame number are the saved ones at once; `getScreenRGB` goes on showing the moment before the
#   restore until the next step.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ale-py==0.12.1 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import ale_py
import gymnasium

gymnasium.register_envs(ale_py)
env = gymnasium.make("ALE/Breakout-v5", repeat_action_probability=0.0).unwrapped
env.reset(seed=0)
for _ in range(30):
    env.step(1)
state, ram, screen = env.clone_state(), env.ale.getRAM().copy(), env.ale.getScreenRGB().copy()
for step in range(60):
    env.step(2 + step // 5 % 2)
late = env.ale.getScreenRGB().copy()
env.restore_state(state)
shown = env.ale.getScreenRGB()
same_ram, same_screen, old_screen = (env.ale.getRAM() == ram).all(), (shown == screen).all(), (shown == late).all()
print("restored RAM:", same_ram, "- restored screen:", same_screen, "- screen from before the restore:", old_screen)
assert same_ram and not same_screen and old_screen
PY
