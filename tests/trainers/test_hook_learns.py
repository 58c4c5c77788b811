"""Students that learn known answers, and stay alive on a real game."""

from __future__ import annotations

from functools import partial

import torch
from hook_parts import (
    TwoSteps,
    actor,
    atari_trainer,
    minibatches,
    trained,
)
from tensordict import TensorDict
from torch.optim import Adam
from torchrl.data import Categorical, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import RewardSum, TransformedEnv
from torchrl.modules import EGreedyModule
from torchrl.objectives import DQNLoss, HardUpdate
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd.collectors.collector import DualNetworkCollector
from torchrl_rtpd.networks.dormancy import dormant_share
from torchrl_rtpd.networks.towers import make_actor
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss
from torchrl_rtpd.trainers.checks import DormancyCheck


def test_a_student_learns_the_known_answer_of_a_game_of_two_steps_with_its_teacher() -> None:
    """With discount 0.9 the values are 0.9 and 0.45, then 1 and 0, 0.2 and 0.5: go to state 1, take action 0 there."""
    torch.manual_seed(0)
    teacher, student = actor(32, seed=0, features=3), actor(8, seed=1, features=3)
    env = TransformedEnv(TwoSteps(8), RewardSum(in_keys=["reward"], out_keys=["reward_sum"]))
    exploration = EGreedyModule(Categorical(2), eps_init=1.0, eps_end=1.0)
    collector = DualNetworkCollector(env, teacher, exploration=exploration, frames_per_batch=32, total_frames=3_200)
    loss = DQNLoss(teacher, action_space="categorical", delay_value=True)
    loss.make_value_estimator(gamma=0.9)
    trainer = DQNTrainer(
        collector=collector,
        total_frames=3_200,
        frame_skip=1,
        optim_steps_per_batch=4,
        loss_module=loss,
        optimizer=Adam(loss.parameters(), lr=5e-3),
        replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(1_000), batch_size=32),
        target_net_updater=HardUpdate(loss, value_network_update_interval=20),
        greedy_module=exploration,
        progress_bar=False,
    )
    student_loss = StudentDQNLoss(student)
    student_loss.make_value_estimator(gamma=0.9)
    trained(trainer, {"net": student_loss}, optimizer=partial(Adam, lr=5e-3))
    states = TensorDict({"observation": torch.eye(3)}, [3])
    expected = torch.tensor([[0.9, 0.45], [1.0, 0.0], [0.2, 0.5]])
    for network in (teacher, student):
        assert network(states.clone())["action"].tolist() == [0, 0, 1]
        torch.testing.assert_close(network(states.clone())["action_value"].detach(), expected, atol=0.1, rtol=0)
    assert trainer._log_dict["distill/net/agreement"][-1] == 1.0


def test_the_tiniest_student_stays_alive_on_a_real_game_with_the_default_settings() -> None:
    """Road Runner, 200 updates from the teacher's first one on: units work, and values depend on the state."""
    trainer = atari_trainer(
        game="road_runner", steps=1_600, teacher="net3", batch_size=32, capacity=1_600, max_frames=4_000
    )
    student = make_actor("net17", trainer.collector.env.action_spec, seed=0)
    loss = StudentDQNLoss(student)
    loss.set_keys(terminated="end_of_life")
    hook = trained(trainer, {"net17": loss}, optimizer=partial(Adam, lr=2e-4, eps=1e-5), checks=[DormancyCheck(50)])
    assert hook.updates == 200
    states = torch.cat(minibatches(trainer, 4)).select("pixels")
    assert dormant_share(student, states) < 0.7  # of the worst layer; 1 once a layer is dead
    with torch.no_grad():
        values = student(states)["action_value"]
    assert values.std(0).max() > 1e-3
    assert len(values.unique(dim=0)) > 64  # of 128 states, some of them alike
