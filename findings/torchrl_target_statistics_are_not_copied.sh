#!/usr/bin/env bash
# Target updaters never copy the running statistics of BatchNorm.
#
# Versions: torch 2.15.0, torchrl 0.14.1, tensordict 0.14.3
# A good guess: After a `HardUpdate` or a `SoftUpdate(tau=1)` the target network is the online network.
# Seen: Only entries that require a gradient are followed. After 50 batches and 50 updates the target's running mean
#   and count are still those of the beginning.
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
from torchrl.objectives import DQNLoss, HardUpdate, SoftUpdate

torch.manual_seed(0)
for make in (lambda loss: HardUpdate(loss, value_network_update_interval=1), lambda loss: SoftUpdate(loss, tau=1.0)):
    layers = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    loss = DQNLoss(QValueActor(layers, in_keys=["observation"], spec=Categorical(2)), action_space="categorical", delay_value=True)
    updater = make(loss)
    for _ in range(50):
        with loss.value_network_params.to_module(loss.value_network):
            loss.value_network(TensorDict({"observation": 25 + torch.randn(32, 3)}, [32]))
        updater.step()
    (online_mean, online_count), (target_mean, target_count) = (
        [next(value for key, value in params.flatten_keys(".").items() if key.endswith(name)) for name in ("running_mean", "num_batches_tracked")]
        for params in (loss.value_network_params, loss.target_value_network_params)
    )
    print(f"{type(updater).__name__}: mean {online_mean.mean():.1f} online, {target_mean.mean():.1f} target; batches {online_count}, {target_count}")
    assert online_mean.min() > 20 and online_count == 50 and target_mean.abs().max() == 0 and target_count == 0
PY
