#!/usr/bin/env bash
# A trainer clips the gradient's norm only if two arguments say so.
#
# Versions: torch 2.15.0, torchrl 0.14.1, tensordict 0.14.3
# A good guess: `clip_grad_norm=True` clips to some norm, and `clip_norm=1.0` alone clips the norm to 1.
# Seen: The first alone does not clip at all; the second alone, with `clip_grad_norm=False`, clips each element. Only
#   both clip the norm.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import warnings

import torch
from tensordict import TensorDict
from torch import nn
from torchrl.trainers.trainers import OptimizerHook

warnings.simplefilter("ignore")
found = []
for clip_grad_norm, clip_norm in ((True, None), (False, 1.0), (True, 1.0)):
    parameter = nn.Parameter(torch.zeros(3))
    losses = TensorDict({"loss": (parameter * torch.tensor([3.0, 4.0, 0.5])).sum()}, [])
    OptimizerHook(torch.optim.SGD([parameter], lr=1.0))(losses, clip_grad_norm, clip_norm, 0)
    found.append([round(value, 2) for value in (-parameter.detach()).tolist()])
    print(f"clip_grad_norm={clip_grad_norm}, clip_norm={clip_norm}: gradient (3, 4, 0.5) acts as {found[-1]}")
assert found == [[3.0, 4.0, 0.5], [1.0, 1.0, 0.5], [0.6, 0.8, 0.1]]
PY
