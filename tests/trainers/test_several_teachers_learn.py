"""One student of several teachers, live or frozen, in TorchRL's trainer: it learns from all, and they do not notice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hook_parts import TwoSteps, content, minibatches, teacher_state, update
from tensordict import TensorDict
from torch import Tensor, nn
from torch.optim import Adam
from torchrl.checkpoint import Checkpoint
from torchrl.data import Categorical, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Compose, EnvBase, RewardSum, SerialEnv, TransformedEnv, UnaryTransform
from torchrl.modules import MLP, EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, HardUpdate
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import (
    AverageTeacher,
    ConcurrentStepper,
    DistillationLoss,
    DualNetworkCollector,
    RealTimeDistillTrainer,
    StudentDQNLoss,
    TeacherByKey,
    TeacherDQNLoss,
    TeacherMixture,
)

FAST = partial(Adam, lr=5e-3)
# Of the game of two steps with discount 0.9; in the mirrored one actions 0 and 1 have changed places.
VALUES = torch.tensor([[0.9, 0.45], [1.0, 0.0], [0.2, 0.5]])


class Mirrored(TwoSteps):
    """The same game, in which the two actions have changed places."""

    def _step(self, tensordict: TensorDict) -> TensorDict:
        return super()._step(TensorDict({"action": 1 - tensordict["action"]}, self.batch_size))


def game(number: int) -> EnvBase:
    """The game or its mirror, with its number under ``teacher_id`` and, for the student, at the end of ``seen``."""

    def marked(state: Tensor) -> Tensor:
        return torch.cat([state, torch.full_like(state[..., :1], number)], -1)

    return TransformedEnv(
        (TwoSteps, Mirrored)[number](4),
        Compose(
            UnaryTransform(["observation"], ["seen"], fn=marked),
            UnaryTransform(["seen"], ["teacher_id"], fn=lambda seen: seen[..., -1:].long()),
            RewardSum(in_keys=["reward"], out_keys=["reward_sum"]),
        ),
    )


def actor(key: str, features: int, units: int, seed: int) -> QValueActor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MLP(features, 2, num_cells=[units], activation_class=nn.ReLU)
    return QValueActor(network, in_keys=[key], spec=Categorical(2))


def trainer_of(steps: int, *, loss_class: type[DQNLoss] = DQNLoss, seed: int = 0, **kwargs: Any) -> DQNTrainer:
    """TorchRL's trainer of two live teachers, one a game, as one network."""
    torch.manual_seed(seed)
    teachers = TeacherByKey({name: actor("observation", 3, 32, seed + i) for i, name in enumerate(("game", "mirror"))})
    policy = QValueActor(teachers, spec=Categorical(2))
    exploration = EGreedyModule(Categorical(2), eps_init=1.0, eps_end=1.0)
    env = SerialEnv(2, [partial(game, 0), partial(game, 1)])
    loss = loss_class(policy, action_space="categorical", delay_value=True)
    loss.make_value_estimator(gamma=0.9)
    return DQNTrainer(
        collector=DualNetworkCollector(env, policy, exploration=exploration, frames_per_batch=32, total_frames=steps),
        total_frames=steps,
        frame_skip=1,
        optim_steps_per_batch=4,
        loss_module=loss,
        optimizer=Adam(loss.parameters(), lr=5e-3),
        replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(1_000), batch_size=32),
        target_net_updater=HardUpdate(loss, value_network_update_interval=20),
        greedy_module=exploration,
        progress_bar=False,
        **kwargs,
    )


def students() -> dict[str, DistillationLoss]:
    return {
        "paper": StudentDQNLoss(actor("seen", 4, 16, 11)),
        "pure": DistillationLoss(actor("seen", 4, 8, 12), teacher_temperature="auto"),
    }


def states_of(game: int) -> TensorDict:
    """The three states of a game, as both networks see them."""
    seen = torch.cat([torch.eye(3), torch.full((3, 1), float(game))], -1)
    return TensorDict({"observation": torch.eye(3), "seen": seen, "teacher_id": seen[:, -1:].long()}, [3])


@pytest.mark.parametrize("loss_class", [DQNLoss, TeacherDQNLoss])
def test_one_student_learns_the_known_answers_of_two_live_teachers(loss_class: type[DQNLoss]) -> None:
    """Go to the state that pays 1 and take it: in one game by action 0 and 0, in its mirror by 1 and 1."""
    trainer = trainer_of(3_200, loss_class=loss_class)
    hook = RealTimeDistillTrainer(students(), optimizer=FAST)
    hook.register(trainer)
    policy = trainer.collector.dual_policy.teacher
    trainer.train()
    assert hook.updates == 400
    for number, expected in enumerate((VALUES, VALUES.flip(-1))):
        states = states_of(number)
        torch.testing.assert_close(policy(states.copy())["action_value"].detach(), expected, atol=0.1, rtol=0)
        for loss in hook.students.values():
            greedy = loss.student_q_values(states).argmax(-1)
            assert greedy.tolist() == expected.argmax(-1).tolist()
        paper = hook.students["paper"].student_q_values(states).detach()
        torch.testing.assert_close(paper, expected, atol=0.15, rtol=0)


@pytest.mark.parametrize("loss_class", [DQNLoss, TeacherDQNLoss])
def test_teachers_learn_bit_for_bit_as_without_the_student(loss_class: type[DQNLoss]) -> None:
    """Weights of both, targets, optimiser, and the random stream; with the hook and with students beside."""

    def by_hook(trainer: DQNTrainer) -> None:
        RealTimeDistillTrainer(students(), optimizer=FAST).register(trainer)

    def beside(trainer: DQNTrainer) -> None:
        ConcurrentStepper(RealTimeDistillTrainer(students(), optimizer=FAST)).register(trainer)

    found = []
    for attach in (lambda trainer: None, by_hook, beside):
        trainer = trainer_of(160, loss_class=loss_class)
        attach(trainer)
        trainer.train()
        found.append(teacher_state(trainer))
    assert found[0]["updates"] == 20
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("loss_class", [DQNLoss, TeacherDQNLoss])
@pytest.mark.parametrize("teacher", ["latest", AverageTeacher])
def test_students_learn_beside_their_teachers_what_they_learn_with_the_hook(
    teacher: Any, loss_class: type[DQNLoss]
) -> None:
    found = []
    for stepper in (False, True):
        made = teacher if teacher == "latest" else teacher(0.9)
        hook = RealTimeDistillTrainer(students(), optimizer=FAST, teacher=made)
        trainer = trainer_of(160, loss_class=loss_class)
        (ConcurrentStepper(hook).register if stepper else hook.register)(trainer)
        trainer.train()
        found.append(content(hook.state_dict()))
    assert found[0] == found[1]


def test_checkpoints_hold_both_teachers_and_their_student(tmp_path: Path) -> None:
    """Saved by TorchRL's trainer and loaded into another one with other weights; both go on identically."""
    arguments = {"save_trainer_file": tmp_path / "run", "save_trainer_interval": 10_000}
    pairs = []
    for seed, more in ((0, arguments), (1, {})):
        trainer = trainer_of(160, seed=seed, checkpoint=Checkpoint(), **more)
        hook = RealTimeDistillTrainer(students(), optimizer=FAST)
        hook.register(trainer)
        pairs.append((trainer, hook))
    pairs[0][0].train()
    pairs[1][0].load_from_file(tmp_path / "run")
    batches = minibatches(pairs[0][0], 5)
    states = []
    for trainer, hook in pairs:
        for batch in batches:
            update(trainer, hook, batch.clone())
        state = teacher_state(trainer)
        del state["random"]
        states.append((state, content(hook.state_dict()["students"])))
    pairs[1][0].collector.shutdown()
    assert states[0] == states[1]


def test_a_student_of_a_mixture_of_live_teachers_learns_the_mixture() -> None:
    """Beside the trainer's hook: in the game and in its mirror alike, the mean of both policies, near one half."""
    trainer = trainer_of(3_200)
    teachers = trainer.collector.dual_policy.teacher[0].teachers
    mixture = TeacherMixture(dict(teachers.items()), temperature=0.1, weights=[0.8, 0.2])
    loss = DistillationLoss(actor("observation", 3, 16, 11), mixture, teacher_temperature=0.1)
    RealTimeDistillTrainer(loss, optimizer=FAST).register(trainer)
    trainer.train()
    states = states_of(0)
    policies = [(teacher(states.copy())["action_value"] / 0.1).softmax(-1) for teacher in teachers.values()]
    target = (0.8 * policies[0] + 0.2 * policies[1]).detach()
    found = loss.student_q_values(states).softmax(-1).detach()
    torch.testing.assert_close(found, target, atol=0.06, rtol=0)
    assert 0.7 < found[1, 0] < 0.9


# Frozen teachers of made-up tasks: states are drawn, the last number says which task it is.

FEATURES, TASKS = 4, 2


def drawn(count: int, generator: torch.Generator) -> TensorDict:
    states = torch.randn(count, FEATURES, generator=generator)
    task = torch.randint(TASKS, (count, 1), generator=generator)
    return TensorDict({"observation": states, "seen": torch.cat([states, task], -1), "teacher_id": task}, [count])


def frozen_teachers() -> TeacherByKey:
    """Two random networks of three actions, which know nothing of each other."""
    actors = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        network = MLP(FEATURES, 3, num_cells=[16], activation_class=nn.Tanh)
        actors.append(QValueActor(network, in_keys=["observation"], spec=Categorical(3)).requires_grad_(False))
    return TeacherByKey(actors)


def taught(ids_of: Callable[[TensorDict], Tensor], updates: int = 1_200) -> Mapping[int, float]:
    """Agreement of a student with the right teacher of each task, after learning with ids as they were given."""
    with torch.random.fork_rng():
        teachers = frozen_teachers()
        torch.manual_seed(3)
        network = MLP(FEATURES + 1, 3, num_cells=[48, 48], activation_class=nn.ReLU)
    student = QValueActor(network, in_keys=["seen"], spec=Categorical(3))
    loss = DistillationLoss(student, teachers, teacher_temperature=0.05)
    optimizer, generator = Adam(loss.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    for _ in range(updates):
        batch = drawn(128, generator)
        batch["teacher_id"] = ids_of(batch)
        loss.evaluate(batch, metrics=False)["loss_distill"].backward()
        optimizer.step()
        optimizer.zero_grad()
    fresh = drawn(4_000, generator)
    with torch.no_grad():
        same = teachers(fresh)["action_value"].argmax(-1) == loss.student_q_values(fresh).argmax(-1)
    return {task: same[fresh["teacher_id"][:, 0] == task].float().mean().item() for task in range(TASKS)}


def test_one_student_reaches_two_frozen_teachers_and_with_wrong_ids_it_does_not() -> None:
    """Three actions: chance is a third. Wrong are the ids of the other task, and ids that are drawn."""
    right = taught(lambda batch: batch["teacher_id"])
    assert min(right.values()) > 0.9, right
    swapped = taught(lambda batch: 1 - batch["teacher_id"])
    assert max(swapped.values()) < 0.7, swapped
    generator = torch.Generator().manual_seed(5)
    random = taught(lambda batch: torch.randint(TASKS, (len(batch), 1), generator=generator))
    assert max(random.values()) < 0.85, random
