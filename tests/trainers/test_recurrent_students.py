"""Recurrent students in TorchRL's own trainer: what they learn, and a teacher that does not notice."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from hook_parts import FAST, content, teacher_state
from recurrent_parts import Recall, memory_of, recurrent_actor, rows, stepped_values
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Categorical, LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
from torchrl.envs import Compose, InitTracker, RewardSum, TransformedEnv
from torchrl.modules import EGreedyModule, GRUModule, QValueActor, QValueModule, set_recurrent_mode
from torchrl.objectives import DQNLoss, SoftUpdate
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd.evaluation.evaluator import Evaluator
from torchrl_rtpd.networks.dormancy import dormant_share
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss
from torchrl_rtpd.objectives.teacher_dqn import TeacherDQNLoss
from torchrl_rtpd.trainers.checks import DormancyCheck
from torchrl_rtpd.trainers.concurrent import ConcurrentStepper
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.slices import SliceBatches
from torchrl_rtpd.trainers.teacher_copies import AverageTeacher, BestTeacher, LaggingTeacher
from torchrl_rtpd.trainers.teacher_values import CapturedValues

SLICE = 12


def recall_env(slots: int) -> TransformedEnv:
    sums = RewardSum(in_keys=["reward"], out_keys=["reward_sum"])  # the trainer logs them
    return TransformedEnv(Recall(slots), Compose(sums, InitTracker()))


def trainer_of_recall(
    batches: int, teacher: nn.Module | None = None, loss_class: type[DQNLoss] = DQNLoss
) -> DQNTrainer:
    """A stock DQN trainer whose replay hands out slices, of which games begin in the middle."""
    torch.manual_seed(0)
    if teacher is None:
        network = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        teacher = QValueActor(network, in_keys=["observation"], spec=Categorical(2))
    exploration = EGreedyModule(Categorical(2), eps_init=1.0, eps_end=0.2, annealing_num_steps=2_000)
    collector = Collector(
        recall_env(8),
        TensorDictSequential(teacher, exploration),
        frames_per_batch=8 * 24,
        total_frames=8 * 24 * batches,
        auto_register_policy_transforms=False,
    )
    loss = loss_class(teacher, action_space="categorical", delay_value=True)
    loss.make_value_estimator(gamma=0.9)
    return DQNTrainer(
        collector=collector,
        total_frames=8 * 24 * batches,
        frame_skip=1,
        optim_steps_per_batch=8,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=3e-3),
        replay_buffer=TensorDictReplayBuffer(
            storage=LazyTensorStorage(4_000),
            sampler=SliceSampler(slice_len=SLICE, end_key="slot_ends"),
            batch_size=8 * SLICE,
        ),
        target_net_updater=SoftUpdate(loss, tau=0.1),
        greedy_module=exploration,
        progress_bar=False,
    )


def glimpsing(kind: str) -> TensorDictSequential:
    """A student that sees the glimpse alone, with a memory or without."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if kind == "plain":
            hidden: Any = TensorDictModule(
                nn.Sequential(nn.Linear(1, 24), nn.ReLU()), in_keys=["glimpse"], out_keys=["features"]
            )
        else:
            hidden = GRUModule(input_size=1, hidden_size=24, in_key="glimpse", out_key="features")
        head = TensorDictModule(nn.Linear(24, 2), in_keys=["features"], out_keys=["action_value"])
    return TensorDictSequential(hidden, head, QValueModule(spec=Categorical(2)))


class MarkOnly(SliceBatches):
    """Lets the minibatches stay as the sampler draws them."""

    def split(self, sub_batch: TensorDictBase) -> TensorDictBase:
        return sub_batch


def distilled(trainer: DQNTrainer, losses: dict[str, DistillationLoss], **kwargs: Any) -> RealTimeDistillTrainer:
    """Train with students."""
    hook = RealTimeDistillTrainer(losses, optimizer=FAST, metrics_every_updates=1, **kwargs)
    SliceBatches(SLICE).register(trainer)
    hook.register(trainer)
    trainer.train()
    return hook


def test_only_a_student_with_a_memory_learns_what_it_saw_before() -> None:
    """The teacher sees the cue when it is asked, the students two steps before.

    The first cue of a row may have been shown before it began, hence the burn-in of a game. A student without a
    memory acts the same in every game, and is paid for one of two.
    """
    trainer = trainer_of_recall(60)
    students = {kind: glimpsing(kind) for kind in ("recurrent", "plain")}
    losses = {
        "recurrent": DistillationLoss(students["recurrent"], teacher_temperature=0.1, burn_in=3),
        "plain": DistillationLoss(students["plain"], teacher_temperature=0.1),
    }
    distilled(trainer, losses)
    evaluator = Evaluator(partial(recall_env, 64), episodes=64, epsilon=0.0)
    teacher = trainer.loss_module.value_network
    scores = {name: evaluator(each, seed=1).mean for name, each in {"teacher": teacher, **students}.items()}
    assert scores["teacher"] == scores["recurrent"] == 1.0
    assert 0.3 < scores["plain"] < 0.7


@pytest.mark.parametrize("loss_class", [DQNLoss, TeacherDQNLoss])
def test_recurrent_students_do_not_change_the_teacher(loss_class: type[DQNLoss]) -> None:
    """Bit for bit, against a trainer without students and without rows: flat slices are what it learned from.

    Beside it learns a student without a memory, by temporal differences.
    """
    alone = trainer_of_recall(4, loss_class=loss_class)
    MarkOnly(SLICE).register(alone)
    alone.train()
    joint = trainer_of_recall(4, loss_class=loss_class)
    loss = DistillationLoss(glimpsing("recurrent"), burn_in=2)
    before = copy.deepcopy(dict(loss.state_dict()))
    distilled(joint, {"student": loss, "plain": StudentDQNLoss(glimpsing("plain"))})
    assert teacher_state(alone) == teacher_state(joint)
    moved = [not torch.equal(value, before[name]) for name, value in loss.state_dict().items() if "params" in name]
    assert moved and all(moved)


def test_a_restored_hook_goes_on_as_if_it_had_never_stopped() -> None:
    trainer = trainer_of_recall(3)
    hook = distilled(trainer, {"student": DistillationLoss(glimpsing("recurrent"), burn_in=2)})
    rest = [SliceBatches(SLICE).split(trainer.replay_buffer.sample()) for _ in range(4)]
    twin = RealTimeDistillTrainer({"student": DistillationLoss(glimpsing("recurrent"), burn_in=2)}, optimizer=FAST)
    twin.attach(trainer)
    twin.load_state_dict(copy.deepcopy(hook.state_dict()))
    for batch in rest:
        for each in (hook, twin):
            trainer.loss_module(batch)
            each.step(batch)
    assert content(hook.state_dict()["students"]) == content(twin.state_dict()["students"])
    assert content(hook.state_dict()["optimizers"]) == content(twin.state_dict()["optimizers"])


def test_students_beside_the_trainers_thread_learn_the_same() -> None:
    """TorchRL's recurrent mode belongs to a thread."""
    states = []
    for concurrent in (False, True):
        trainer = trainer_of_recall(3)
        losses = {"student": DistillationLoss(glimpsing("recurrent"), burn_in=2)}
        hook = RealTimeDistillTrainer(losses, optimizer=FAST)
        SliceBatches(SLICE).register(trainer)
        (ConcurrentStepper(hook) if concurrent else hook).register(trainer)
        trainer.train()
        states.append(content(hook.state_dict()["students"]))
    assert states[0] == states[1]


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_recurrent_teachers_values_are_captured_where_games_begin_within_rows(kind: str) -> None:
    """TorchRL's modules then put a copy in the place of the observation they were given."""
    teacher = recurrent_actor(kind, 3, seed=1).double()
    values = CapturedValues(teacher)
    batch, loss = rows().exclude("teacher"), DistillationLoss(recurrent_actor("gru", 2).double())
    with set_recurrent_mode(True):
        teacher(batch.clone(recurse=False))
    found = values.add_to(batch, [loss])["teacher", "action_value"]
    torch.testing.assert_close(found, stepped_values(teacher, batch).detach())


def test_recurrent_teachers_teach_recurrent_students_in_a_trainer() -> None:
    """Each keeps a memory of its own, though both have TorchRL's default keys: the data hold none."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        memory = GRUModule(input_size=4, hidden_size=16, in_key="observation", out_key="features")
        head = TensorDictModule(nn.Linear(16, 2), in_keys=["features"], out_keys=["action_value"])
    teacher = TensorDictSequential(memory, head, QValueModule(spec=Categorical(2)))
    hook = distilled(trainer_of_recall(3, teacher), {"student": DistillationLoss(glimpsing("recurrent"), burn_in=2)})
    assert hook.updates == 24
    assert 0 <= hook.metrics["distill/student/agreement"] <= 1


COPIES = {"average": lambda: AverageTeacher(0.5), "lagging": lambda: LaggingTeacher(2), "best": BestTeacher}


@pytest.mark.parametrize("stored", [False, True], ids=["zeros", "stored"])
@pytest.mark.parametrize("burn_in", [0, 3])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("choice", COPIES)
def test_versions_of_a_recurrent_teacher_teach_what_a_loop_over_steps_gives(
    choice: str, kind: str, burn_in: int, stored: bool
) -> None:
    """After two updates: half-way averages by hand, the weights at the second, or those that scored best.

    The first rows' values are those of the whole row, so that a burn-in needs nothing more.
    """
    teacher, copied = recurrent_actor(kind, 3, seed=1, memory="teacher").double(), COPIES[choice]()
    loss = DistillationLoss(recurrent_actor("gru", 4, seed=2).double(), burn_in=burn_in, reduction="mean")
    given: list[TensorDictBase] = []
    terms = loss._terms
    loss._terms = lambda batch, metrics: given.append(batch) or terms(batch, metrics)
    hook = RealTimeDistillTrainer(loss, optimizer=FAST, teacher=copied)
    hook.attach(_Trainer(DQNLoss(teacher, action_space="categorical")))
    params = hook._teacher_loss.value_network_params.data
    history = [params.clone()]
    batch = rows(remembers=(teacher,) if stored else ()).exclude("teacher")
    for score in (1.0, 0.5):
        params.update_(params.apply(lambda value: 1.1 * value + 0.01))
        history.append(params.clone())
        hook.step(batch)
        hook.report_returns({}, teacher_return=score, random_return=0.0)
    hook.step(batch)
    average = (
        history[0].apply(lambda a, b: 0.5 * a + 0.5 * b, history[1]).apply(lambda a, b: 0.5 * a + 0.5 * b, history[2])
    )
    expected = {"average": average, "lagging": history[2], "best": history[1]}[choice]
    with expected.to_module(teacher):
        values = stepped_values(teacher, batch).detach()
    torch.testing.assert_close(given[-1]["teacher", "action_value"], values[:, burn_in:], rtol=1e-10, atol=1e-12)


def test_versions_of_a_recurrent_teacher_teach_in_a_trainer_and_do_not_change_it() -> None:
    """Bit for bit the teacher of a trainer without students, whose rows it learns from."""

    def teacher() -> TensorDictSequential:
        with torch.random.fork_rng():
            torch.manual_seed(2)
            memory = GRUModule(input_size=4, hidden_size=16, in_key="observation", out_key="features")
            head = TensorDictModule(nn.Linear(16, 2), in_keys=["features"], out_keys=["action_value"])
        return TensorDictSequential(memory, head, QValueModule(spec=Categorical(2)))

    alone = trainer_of_recall(3, teacher())
    SliceBatches(SLICE).register(alone)
    alone.train()
    for make in COPIES.values():
        joint = trainer_of_recall(3, teacher())
        hook = distilled(joint, {"student": DistillationLoss(glimpsing("recurrent"), burn_in=2)}, teacher=make())
        assert hook.updates == 24 and teacher_state(joint) == teacher_state(alone)


def test_a_version_with_a_memory_is_not_asked_for_the_next_state() -> None:
    plain = QValueActor(nn.Linear(1, 2), in_keys=["observation"], action_space="categorical")
    trainer = _Trainer(DQNLoss(recurrent_actor("gru", 3), action_space="categorical"))
    trainer.target_net_updater = SoftUpdate(DQNLoss(plain, action_space="categorical", delay_value=True), tau=0.1)
    for imitation in (False, True):
        hook = RealTimeDistillTrainer(
            StudentDQNLoss(copy.deepcopy(plain), imitation=imitation), optimizer=FAST, teacher=LaggingTeacher(2)
        )
        if imitation:
            with pytest.raises(ValueError, match=r"remembers \['recurrent_state'\] .* got \['student'\], which im"):
                hook.attach(trainer)
        else:
            hook.attach(trainer)


def test_a_student_does_not_begin_with_its_teachers_memory() -> None:
    """Of one key and one size, so that nothing else would tell."""
    teacher, student = recurrent_actor("lstm", 3, seed=1).double(), recurrent_actor("lstm", 3, seed=2).double()
    loss = DQNLoss(teacher, action_space="categorical")
    hook = RealTimeDistillTrainer(DistillationLoss(student), optimizer=FAST)
    hook.attach(_Trainer(loss))
    with pytest.raises(
        ValueError, match=r"'student' must not begin with its teacher's memory: got \['recurrent_state_h'"
    ):
        hook.step(rows(remembers=(teacher,)))
    hook.step(rows().exclude(*memory_of(teacher)))


class _Trainer:
    """What a hook attaches to."""

    def __init__(self, loss: DQNLoss) -> None:
        self.loss_module, self.optimizer, self.target_net_updater = loss, None, None


def test_dormant_units_of_a_recurrent_student_are_counted_by_unit() -> None:
    """Three of four units before the memory never fire; rows have more steps than there are units."""
    layer = nn.Linear(1, 4)
    with torch.no_grad():
        layer.weight.fill_(0.0)
        layer.bias.copy_(torch.tensor([1.0, -1.0, -1.0, -1.0]))
    encoder = TensorDictModule(nn.Sequential(layer, nn.ReLU()), in_keys=["observation"], out_keys=["encoded"])
    memory = GRUModule(input_size=4, hidden_size=3, in_key="encoded", out_key="features")
    head = TensorDictModule(nn.Linear(3, 2), in_keys=["features"], out_keys=["action_value"])
    network = TensorDictSequential(encoder, memory, head).double()
    assert dormant_share(network, rows()) == 0.75
    teacher = recurrent_actor("gru", 2).double()
    hook = RealTimeDistillTrainer(DistillationLoss(network, teacher), optimizer=FAST, checks=[DormancyCheck()])
    hook.attach(_Trainer(DQNLoss(recurrent_actor("gru", 2), action_space="categorical")))
    hook.step(rows().exclude("teacher"))
    assert hook.log()["distill/student/dormant"] == 0.75


def test_a_feed_forward_students_units_are_counted_by_unit_in_rows() -> None:
    layer = nn.Linear(1, 4)
    with torch.no_grad():
        layer.weight.fill_(0.0)
        layer.bias.copy_(torch.tensor([1.0, 1.0, -1.0, -1.0]))
    network = QValueActor(
        nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 2)).double(), in_keys=["observation"], spec=Categorical(2)
    )
    assert dormant_share(network, rows()) == 0.5
