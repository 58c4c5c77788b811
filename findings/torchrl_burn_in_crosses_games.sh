#!/usr/bin/env bash
# TorchRL's `BurnInTransform` gives a game that begins behind the burn-in the memory of the game before.
#
# Versions: torch 2.15.0, torchrl 0.14.1, tensordict 0.14.3
# A good guess: The burn-in brings a recurrent network to the state that it would have at the first step that is kept. Where a
#   game begins at that very step (`is_init`), this is zero, as while the game was played.
# Seen: The state after the burn-in is that of the game before, whatever `is_init` says of the step it is put at. TorchRL's
#   recurrent mode starts a row from what the data hold and zeroes nothing there, so the network's output at that step is not
#   what it was when the game was played.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from tensordict import TensorDict
from torchrl.envs import BurnInTransform
from torchrl.modules import GRUModule, set_recurrent_mode

torch.manual_seed(0)
network = GRUModule(input_size=1, hidden_size=3, in_key="observation", out_key="features")
state = network.in_keys[1]
observation, begins = torch.randn(1, 6, 1), torch.zeros(1, 6, 1, dtype=torch.bool)
begins[:, [0, 3]] = True  # games begin at steps 0 and 3


def played() -> torch.Tensor:
    """Features step by step, as while the games are played: the state is zero where one begins."""
    features, memory = [], torch.zeros(1, 1, 3)
    for step in range(6):
        seen = {"observation": observation[:, step], state: memory, "is_init": begins[:, step]}
        out = network(TensorDict(seen, [1]))
        features.append(out["features"])
        memory = out["next", state]
    return torch.stack(features, 1)


rows = TensorDict(
    {"observation": observation, state: torch.zeros(1, 6, 1, 3), "is_init": begins}, [1, 6]
)
with torch.no_grad():
    wanted = played()[:, 3:]
    with set_recurrent_mode(True):
        whole = network(rows.clone())["features"][:, 3:]
        later = BurnInTransform([network], burn_in=3)(rows.clone())
        burned = network(later.select("observation", state, "is_init"))["features"]
memory = later[state][0, 0].flatten()
print("a row of six steps as played:", torch.allclose(whole, wanted, atol=1e-6))
print("memory at the game's first step, behind a burn-in of three:", [round(value, 3) for value in memory.tolist()])
print("the last three steps as played:", torch.allclose(burned, wanted, atol=1e-6))
assert torch.allclose(whole, wanted, atol=1e-6), "the behaviour has changed"
assert memory.any() and not torch.allclose(burned, wanted, atol=1e-3), "the behaviour has changed"
PY
