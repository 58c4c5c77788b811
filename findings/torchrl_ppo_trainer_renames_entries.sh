#!/usr/bin/env bash
# `PPOTrainer` undoes the `set_keys()` of the loss it is given.
#
# Versions: torch 2.15.0, torchrl 0.14.1, tensordict 0.14.3, gymnasium 1.4.0
# A good guess: A loss that was told which entry ends bootstrapping keeps to it in a trainer, as in `DQNTrainer`.
# Seen: The trainer sets reward, done and terminated to its own arguments, whose defaults are the usual names; so the loss
#   goes on with another entry, without a word. `PPOTrainer(terminated_key=...)` keeps it.
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
from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
from torchrl.envs import GymEnv
from torchrl.modules import ProbabilisticActor, QValueActor, ValueOperator
from torchrl.objectives import ClipPPOLoss, DQNLoss, SoftUpdate
from torchrl.trainers.algorithms.dqn import DQNTrainer
from torchrl.trainers.algorithms.ppo import PPOTrainer

env = GymEnv("CartPole-v1", categorical_action_encoding=True)
logits = TensorDictModule(nn.Linear(4, 2), ["observation"], ["logits"])
policy = ProbabilisticActor(
    logits, in_keys=["logits"], distribution_class=torch.distributions.Categorical, spec=env.action_spec, return_log_prob=True
)
values = QValueActor(nn.Linear(4, 2), in_keys=["observation"], spec=env.action_spec)


def kept(trainer_class: type, loss: nn.Module, actor: nn.Module, **options: object) -> str:
    """The entry that a loss takes for the end of bootstrapping, told before it came into the trainer."""
    loss.set_keys(terminated="life_lost")
    trainer_class(
        collector=Collector(env, actor, frames_per_batch=64, total_frames=64),
        total_frames=64,
        frame_skip=1,
        optim_steps_per_batch=None if trainer_class is PPOTrainer else 4,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters()),
        replay_buffer=ReplayBuffer(storage=LazyTensorStorage(64), sampler=SamplerWithoutReplacement(), batch_size=16),
        progress_bar=False,
        **options,
    )
    return loss.tensor_keys.terminated


def ppo_loss() -> ClipPPOLoss:
    return ClipPPOLoss(policy, ValueOperator(nn.Linear(4, 1), in_keys=["observation"]))


dqn_loss = DQNLoss(values, action_space=env.action_spec, delay_value=True)
found = {
    "DQNTrainer": kept(DQNTrainer, dqn_loss, values, target_net_updater=SoftUpdate(dqn_loss, eps=0.99)),
    "PPOTrainer": kept(PPOTrainer, ppo_loss(), policy),
    "PPOTrainer(terminated_key='life_lost')": kept(PPOTrainer, ppo_loss(), policy, terminated_key="life_lost"),
}
for name, key in found.items():
    print(f"set_keys(terminated='life_lost'), then {name}: the loss reads {key!r}")
assert list(found.values()) == ["life_lost", "terminated", "life_lost"], "the behaviour has changed"
PY
