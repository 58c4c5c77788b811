#!/usr/bin/env bash
# `HardUpdate(loss, value_network_update_interval=5)` copies every sixth update.
#
# Versions: torch 2.15.0, torchrl 0.14.1, tensordict 0.14.3
# A good guess: The target is copied after updates 5, 10, 15, 20.
# Seen: It is copied after updates 6, 12, 18, 24: the step that copies resets the counter without counting itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss, HardUpdate

network = QValueActor(nn.Linear(2, 2), in_keys=["observation"], spec=Categorical(2))
loss = DQNLoss(network, action_space="categorical", delay_value=True)
updater, copied = HardUpdate(loss, value_network_update_interval=5), []
for update in range(1, 25):
    with torch.no_grad():
        for parameter in loss.value_network_params.parameters():
            parameter.add_(1.0)
    updater.step()
    pairs = zip(loss.value_network_params.values(True, True), loss.target_value_network_params.values(True, True))
    if all(bool((online == target).all()) for online, target in pairs):
        copied.append(update)
print("copied after updates", copied)
assert copied == [6, 12, 18, 24]
PY
