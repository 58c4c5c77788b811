#!/usr/bin/env bash
# `DQNLoss` writes the squared error as priority.
#
# Versions: torch 2.15.0, torchrl 0.14.1, tensordict 0.14.3
# A good guess: `td_error`, which prioritised replay takes as its priority, is the absolute error of Schaul et al.
#   2015.
# Seen: Errors of 1, 3 and 10 are written as 1, 9 and 100, also with the smooth L1 loss, so `alpha=0.6` acts as 1.2 on
#   the absolute error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss

layer = nn.Linear(2, 2)
nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
loss = DQNLoss(QValueActor(layer, in_keys=["observation"], spec=Categorical(2)), action_space="categorical", loss_function="smooth_l1")
loss.make_value_estimator(gamma=0.9)
over = torch.ones(3, 1, dtype=torch.bool)
following = {"observation": torch.zeros(3, 2), "reward": torch.tensor([[1.0], [3.0], [10.0]]), "done": over, "terminated": over}
batch = TensorDict({"observation": torch.zeros(3, 2), "action": torch.zeros(3, dtype=torch.int64), "next": following}, [3])
loss(batch)
print("errors 1, 3, 10 are written as", batch["td_error"].flatten().tolist())
assert batch["td_error"].flatten().tolist() == [1.0, 9.0, 100.0]
PY
