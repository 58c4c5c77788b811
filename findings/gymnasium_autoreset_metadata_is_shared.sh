#!/usr/bin/env bash
# The autoreset mode in a vector environment's metadata is that of the environment built last.
#
# Versions: ale-py 0.12.1, gymnasium 1.4.0
# A good guess: `metadata["autoreset_mode"]` tells the mode of this environment, and wrappers that read it are right.
# Seen: The metadata is one dictionary of the class. An environment built in SAME_STEP says NEXT_STEP as soon as
#   another one is built with the default, and `RecordEpisodeStatistics` believes it; the attribute `autoreset_mode`
#   stays right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ale-py==0.12.1 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

first = AtariVectorEnv("pong", 1, autoreset_mode=AutoresetMode.SAME_STEP)
before = first.metadata["autoreset_mode"]
second = AtariVectorEnv("pong", 1)
wrapper = RecordEpisodeStatistics(first)
print("at first:", before, "- after another was built:", first.metadata["autoreset_mode"])
print("attribute:", first.autoreset_mode, "- the wrapper assumes:", wrapper._autoreset_mode)
assert before is first.autoreset_mode is AutoresetMode.SAME_STEP
assert first.metadata["autoreset_mode"] is wrapper._autoreset_mode is AutoresetMode.NEXT_STEP
PY
