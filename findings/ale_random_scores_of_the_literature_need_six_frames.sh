#!/usr/bin/env bash
# A random player at the usual frame skip of 4 scores more in Atlantis than the random player that papers normalise by.
#
# Versions: ale-py 0.12.1, numpy 2.4.6
# A good guess: (score - random) / (human - random), with the random scores printed in tables since Mnih et al. 2015
#   (12,850 in Atlantis), is 0 for a random player under the common settings, a frame skip of 4 without sticky actions.
# Seen: The printed score is that of a player who chooses an action every 6 frames, ten a second. With the same 30 seeds
#   one who chooses every 4 frames scores about 16,200, which counts as a fifth of a human, every 2 frames about 22,900.
#   So a table of human-normalised scores of such games needs a random player of its own beside it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ale-py==0.12.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import random
import statistics

from ale_py import ALEInterface, LoggerMode, roms

ALEInterface.setLoggerMode(LoggerMode.Error)
PRINTED, HUMAN = 12_850.0, 29_028.1


def score(frame_skip, seed):
    ale = ALEInterface()
    ale.setInt("random_seed", seed)
    ale.setInt("frame_skip", frame_skip)
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(roms.get_rom_path("atlantis"))
    actions, chance, total = ale.getMinimalActionSet(), random.Random(seed), 0
    while not ale.game_over():
        total += ale.act(chance.choice(actions))
    return total


means, errors = {}, {}
for frame_skip in (2, 4, 6):
    scores = [score(frame_skip, seed) for seed in range(30)]
    means[frame_skip], errors[frame_skip] = statistics.mean(scores), statistics.stdev(scores) / len(scores) ** 0.5
    share = (means[frame_skip] - PRINTED) / (HUMAN - PRINTED)
    print(f"an action every {frame_skip} frames: {means[frame_skip]:,.0f} +- {errors[frame_skip]:,.0f}, {share:.2f} of a human")
assert abs(means[6] - PRINTED) < 2 * errors[6]
assert means[4] - PRINTED > 3 * errors[4] and means[2] > means[4]
PY
