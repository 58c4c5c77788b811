#!/usr/bin/env bash
# Asking for all 18 actions changes the first observation of some games.
#
# Versions: ale-py 0.12.1, gymnasium 1.4.0
# A good guess: The set of actions on offer has no effect before the first action.
# Seen: At a reset ALE's vector environment plays FIRE if the action set in use has it. Freeway's and Ms. Pac-Man's
#   minimal sets have none, the full set has: one frame is played, and the first observation differs. Breakout, whose
#   minimal set has FIRE, starts equal.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ale-py==0.12.1 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
from ale_py.vector_env import AtariVectorEnv


def start(game, full):
    observation, info = AtariVectorEnv(game, 1, full_action_space=full, noop_max=0).reset(seed=0)
    return observation, int(info["episode_frame_number"][0])


found = {}
for game in ("freeway", "ms_pacman", "breakout"):
    (minimal, frames), (full, frames_full) = start(game, False), start(game, True)
    found[game] = (frames, frames_full, bool((minimal == full).all()))
    print(f"{game}: frames played {frames} and {frames_full}, equal first observation {found[game][2]}")
assert found == {"freeway": (0, 1, False), "ms_pacman": (0, 1, False), "breakout": (1, 1, True)}
PY
