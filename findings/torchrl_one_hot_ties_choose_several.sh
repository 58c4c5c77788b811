#!/usr/bin/env bash
# With tied values a one-hot `QValueModule` chooses several actions and adds up their values.
#
# Versions: torch 2.15.0, torchrl 0.14.1, tensordict 0.14.3
# A good guess: One action comes out, as with categorical actions.
# Seen: Values 1, 2, 2, 0 give the action 0, 1, 1, 0 and a chosen value of 4. Ties are common in bfloat16.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from tensordict import TensorDict
from torchrl.modules import QValueModule

found = {}
for space in ("one_hot", "categorical"):
    chosen = QValueModule(action_space=space)(TensorDict({"action_value": torch.tensor([1.0, 2.0, 2.0, 0.0])}, []))
    found[space] = (chosen["action"].tolist(), chosen["chosen_action_value"].tolist())
    print(space, *found[space])
assert found == {"one_hot": ([0, 1, 1, 0], [4.0]), "categorical": (1, [2.0])}
PY
