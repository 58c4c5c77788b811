"""A DQN teacher learns to balance a pole, and a student a tenth of its size learns with it, from the same minibatches.

Run ``python examples/minimal.py``: 11 to 18 s. Random play scores about 20, a perfect game 500.
"""

import warnings
from functools import partial

import torch
from torch.optim import Adam
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import GymEnv, RewardSum, SerialEnv
from torchrl.modules import MLP, EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, SoftUpdate
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import DistillationLoss, DualNetworkCollector, Evaluator, RealTimeDistillTrainer

STEPS = 3_072
torch.set_num_threads(1)
torch.manual_seed(0)
warnings.filterwarnings("ignore", "DQNTrainer is an experimental")
warnings.filterwarnings("ignore", category=FutureWarning, module="torchrl")


def make_env(slots):
    games = SerialEnv(slots, lambda: GymEnv("CartPole-v1", categorical_action_encoding=True))
    return games.append_transform(RewardSum())


def make_actor(units, env):
    network = MLP(in_features=4, out_features=2, num_cells=[units, units], activation_class=torch.nn.ReLU)
    return QValueActor(network, in_keys=["observation"], spec=env.action_spec_unbatched)


env = make_env(8)
env.set_seed(0)
teacher, student = make_actor(64, env), make_actor(16, env)
exploration = EGreedyModule(env.action_spec_unbatched, eps_end=0.05, annealing_num_steps=STEPS // 2)
loss = DQNLoss(teacher, action_space="categorical", delay_value=True)
trainer = DQNTrainer(
    collector=DualNetworkCollector(env, teacher, exploration=exploration, frames_per_batch=64, total_frames=STEPS),
    total_frames=STEPS,
    frame_skip=1,
    optim_steps_per_batch=6,
    loss_module=loss,
    optimizer=Adam(loss.parameters(), lr=3e-3),
    replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(STEPS), batch_size=128),
    target_net_updater=SoftUpdate(loss, tau=0.05),
    greedy_module=exploration,
    episode_reward_key="episode_reward",
    progress_bar=False,
)
hook = RealTimeDistillTrainer(DistillationLoss(student, teacher_temperature=0.1), optimizer=partial(Adam, lr=1e-2))
hook.register(trainer)

evaluator = Evaluator(lambda: make_env(10), episodes=10, epsilon=0.0)
print(f"before: teacher {evaluator(teacher).mean:.0f}, student {evaluator(student).mean:.0f}")
trainer.train()
print(f"after:  teacher {evaluator(teacher).mean:.0f}, student {evaluator(student).mean:.0f}")
