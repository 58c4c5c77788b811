#!/usr/bin/env bash
# Loading an optimiser's state replaces the options the optimiser was built with.
#
# Versions: torch 2.15.0
# A good guess: `load_state_dict` restores moments and step counts; learning rate, eps and the fused kernel are those
#   given to the constructor.
# Seen: All options come from the file: an Adam built with lr 5e-4, eps 1e-5 and `fused=True` has lr 1e-3, eps 1e-8
#   and `fused=None` after loading the state of a plain Adam.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch


def adam(**options):
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    optimizer = torch.optim.Adam([parameter], **options)
    optimizer.step()
    return optimizer


optimizer = adam(lr=5e-4, eps=1e-5, fused=True)
optimizer.load_state_dict(adam(lr=1e-3).state_dict())
found = {name: optimizer.param_groups[0][name] for name in ("lr", "eps", "fused")}
print("after loading:", found)
assert found == {"lr": 1e-3, "eps": 1e-8, "fused": None}
PY
