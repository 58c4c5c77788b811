"""Parts of the tests of kickstarting and of learning on: a teacher for CartPole, a trainer of SAC, and pulls."""

from __future__ import annotations

from typing import Any

import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import Bounded, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import GymEnv, RewardSum, TransformedEnv
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate
from torchrl.trainers import Trainer
from torchrl.trainers.algorithms.sac import SACTrainer

from torchrl_rtpd import ContinuousDistillationLoss, DistillationLoss
from torchrl_rtpd.objectives.base import PolicyDistillationLoss
from torchrl_rtpd.trainers.policies import policy_of


class StateAction(nn.Module):
    """Value of an action in a state of the pendulum."""

    def __init__(self, units: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, units), nn.ReLU(), nn.Linear(units, 1))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.layers(torch.cat([observation, action], -1))


def balancing(sharpness: float = 2.0) -> TensorDictModule:
    """A policy that balances CartPole: logits that grow with how much the pole is about to fall to the right.

    The weights are those of a linear controller: position, speed, angle and its speed.
    """
    layer = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(sharpness * torch.tensor([[-1.0], [1.0]]) * torch.tensor([0.5, 1.0, 10.0, 3.0]))
    module = TensorDictModule(layer, in_keys=["observation"], out_keys=["logits"])
    return module.requires_grad_(False).eval()


def gaussian(units: int, seed: int, bound: float = 2.0) -> ProbabilisticActor:
    """A tanh-Gaussian policy of the pendulum."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(3, units), nn.Tanh(), nn.Linear(units, 2), NormalParamExtractor())
    return ProbabilisticActor(
        TensorDictModule(layers, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=Bounded(-bound, bound, (1,)),
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -bound, "high": bound},
    )


def sac_trainer(steps: int = 60, *, learner: ProbabilisticActor | None = None) -> SACTrainer:
    """A stock SAC trainer on Pendulum: batches of 20 steps, 4 updates each."""
    learner = gaussian(8, seed=1) if learner is None else learner
    torch.manual_seed(0)
    env = TransformedEnv(GymEnv("Pendulum-v1"), RewardSum(in_keys=["reward"], out_keys=["reward_sum"]))
    env.set_seed(0)
    loss = SACLoss(learner, ValueOperator(StateAction(), in_keys=["observation", "action"]), num_qvalue_nets=2)
    loss.make_value_estimator(gamma=0.9)
    return SACTrainer(
        collector=Collector(
            env, learner, frames_per_batch=20, total_frames=steps, auto_register_policy_transforms=False
        ),
        total_frames=steps,
        frame_skip=1,
        optim_steps_per_batch=4,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=1e-2),
        progress_bar=False,
        replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(steps), batch_size=16),
        target_net_updater=SoftUpdate(loss, tau=0.1),
    )


def pull_on(trainer: Trainer) -> PolicyDistillationLoss:
    """A pull of a trainer's network to a teacher that knows nothing, or balances."""
    learner: Any = policy_of(trainer.loss_module)
    if isinstance(trainer, SACTrainer):
        return ContinuousDistillationLoss(learner, gaussian(8, seed=2).requires_grad_(False))
    if learner.out_keys[0] == "action_value":
        return DistillationLoss(learner, balancing(), teacher_temperature=1.0, student_temperature=None)
    return DistillationLoss(learner, balancing(), teacher_temperature=1.0)


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Weights, target networks, optimiser and random stream of a trainer."""
    return {
        "loss": dict(trainer.loss_module.state_dict()),
        "optimizer": trainer.optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
