#!/usr/bin/env bash
# With `optim_steps_per_batch` equal to the minibatches of a rollout, every other epoch of `OnPolicyTrainer` is empty.
#
# Versions: torch 2.15.0, torchrl 0.14.1, tensordict 0.14.3, gymnasium 1.4.0
# A good guess: A rollout of 64 steps in minibatches of 16, `optim_steps_per_batch=4` and `num_epochs=4` make 16 updates.
# Seen: 8. The iterator over the replay is only found to be at its end when the next epoch asks for its first minibatch,
#   and that epoch ends there. `optim_steps_per_batch=None` makes all 16.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 torchrl==0.14.1 tensordict==0.14.3 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import warnings

warnings.simplefilter("ignore")
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs import GymEnv
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.trainers.algorithms.ppo import PPOTrainer


def updates(steps_per_batch: int | None) -> int:
    """Number of optimiser steps that one rollout brings."""
    env = GymEnv("CartPole-v1", categorical_action_encoding=True)
    logits = TensorDictModule(nn.Linear(4, 2), ["observation"], ["logits"])
    actor = ProbabilisticActor(
        logits, in_keys=["logits"], distribution_class=torch.distributions.Categorical, spec=env.action_spec, return_log_prob=True
    )
    loss = ClipPPOLoss(actor, ValueOperator(nn.Linear(4, 1), in_keys=["observation"]))
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.0)
    made = []
    optimizer.register_step_post_hook(lambda *_: made.append(1))
    trainer = PPOTrainer(
        collector=Collector(env, actor, frames_per_batch=64, total_frames=64),
        total_frames=64,
        frame_skip=1,
        optim_steps_per_batch=steps_per_batch,
        num_epochs=4,
        loss_module=loss,
        optimizer=optimizer,
        replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(64), sampler=SamplerWithoutReplacement(), batch_size=16),
        progress_bar=False,
    )
    trainer.train()
    return len(made)


found = {"4": updates(4), "None": updates(None)}
print(f"updates of 4 epochs over 4 minibatches: optim_steps_per_batch=4 makes {found['4']}, None makes {found['None']}")
assert found == {"4": 8, "None": 16}, "the behaviour has changed"
PY
