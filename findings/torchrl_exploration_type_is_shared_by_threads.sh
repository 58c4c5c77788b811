#!/usr/bin/env bash
# `set_exploration_type` in one thread changes what a policy does in all others.
#
# Versions: torch 2.15.0, torchrl 0.14.1, tensordict 0.14.3
# A good guess: The context is the thread's own, as `torch.no_grad()` is. So a collector in a thread (`collector.start()`)
#   explores while the trainer's thread computes a loss.
# Seen: There is one type for the whole process. TorchRL's losses ask for the deterministic one while they are computed, and
#   `EGreedyModule` leaves every action alone meanwhile, whatever its share of random actions, in whichever thread it runs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import threading

import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss

explores = EGreedyModule(Categorical(4), eps_init=1.0, eps_end=1.0)
found: dict[str, bool] = {}


def collect(when: str) -> None:
    """What a collector's thread does: whether any of a thousand actions, all to be random, is another than 0."""
    with set_exploration_type(ExplorationType.RANDOM):
        inside.set()
        go_on.wait(10)
        actions = explores(TensorDict({"action": torch.zeros(1_000, dtype=torch.long)}, [1_000]))["action"]
    found[when] = bool(actions.any())
    grad[when] = torch.is_grad_enabled()


class Slow(nn.Linear):
    """A network in whose forward pass the other thread acts."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        go_on.set()
        collector.join(10)
        return super().forward(observation)


grad: dict[str, bool] = {}
for when in ("alone", "while a loss is computed"):
    inside, go_on = threading.Event(), threading.Event()
    collector = threading.Thread(target=collect, args=(when,))
    collector.start()
    inside.wait(10)
    if when == "alone":
        go_on.set()
    else:
        actor = QValueActor(Slow(3, 4), in_keys=["observation"], spec=Categorical(4))
        rest = {"reward": torch.zeros(2, 1), "done": torch.zeros(2, 1, dtype=torch.bool)}
        following = {"observation": torch.zeros(2, 3), "terminated": torch.zeros(2, 1, dtype=torch.bool), **rest}
        batch = {"observation": torch.zeros(2, 3), "action": torch.zeros(2, dtype=torch.long), "next": following}
        with torch.no_grad():
            DQNLoss(actor, action_space="categorical", delay_value=False)(TensorDict(batch, [2]))
    collector.join(10)
    print(f"{when}: random actions are drawn: {found[when]}; gradients are on in that thread: {grad[when]}")
assert found == {"alone": True, "while a loss is computed": False}, "the behaviour has changed"
assert grad == {"alone": True, "while a loss is computed": True}, "the behaviour has changed"
PY
