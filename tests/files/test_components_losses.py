"""Every loss of TorchRL that a trainer can hold survives a checkpoint, made before or after its first batch."""

import inspect

import pytest
import torch
import torchrl.objectives as O
import torchrl.objectives.llm as language_losses
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.data import Bounded, OneHot
from torchrl.modules import (
    Actor,
    DistributionalQValueActor,
    MultiAgentMLP,
    OneHotCategorical,
    ProbabilisticActor,
    QMixer,
    QValueActor,
    QValueModule,
    SafeSequential,
    TanhNormal,
    ValueOperator,
)
from torchrl.objectives import LossModule

from torchrl_rtpd import DistillationLoss, StudentDQNLoss, TeacherDQNLoss
from torchrl_rtpd.files.verified import VerifiedCheckpoint
from torchrl_rtpd.runs.components import LossState

pytestmark = [
    pytest.mark.filterwarnings("ignore:No target network updater"),  # nothing is updated here
    pytest.mark.filterwarnings("ignore:The name target_actor_network_params wasn't part"),  # BCLoss's own
]

BATCH, INPUTS, ACTIONS, AGENTS = 6, 4, 2, 3
SPEC = Bounded(-1.0, 1.0, (ACTIONS,))


class Joined(nn.Module):
    """One linear layer over everything it is given."""

    def __init__(self, outputs=1, inputs=INPUTS + ACTIONS):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, *tensors):
        return self.layer(torch.cat(tensors, -1))


class Judged(Joined):
    """A probability."""

    def forward(self, *tensors):
        return super().forward(*tensors).sigmoid()


def gaussian():
    layers = nn.Sequential(nn.Linear(INPUTS, 2 * ACTIONS), NormalParamExtractor())
    module = TensorDictModule(layers, in_keys=["observation"], out_keys=["loc", "scale"])
    return ProbabilisticActor(
        module, in_keys=["loc", "scale"], spec=SPEC, distribution_class=TanhNormal, return_log_prob=True
    )


def categorical():
    module = TensorDictModule(nn.Linear(INPUTS, ACTIONS), in_keys=["observation"], out_keys=["logits"])
    return ProbabilisticActor(
        module, in_keys=["logits"], spec=OneHot(ACTIONS), distribution_class=OneHotCategorical, return_log_prob=True
    )


def deterministic():
    return Actor(nn.Linear(INPUTS, ACTIONS), in_keys=["observation"], spec=SPEC)


def value():
    return ValueOperator(nn.Linear(INPUTS, 1), in_keys=["observation"])


def q_value(outputs=1):
    return ValueOperator(Joined(outputs), in_keys=["observation", "action"])


def all_values(key="action_value"):
    return TensorDictModule(nn.Linear(INPUTS, ACTIONS), in_keys=["observation"], out_keys=[key])


def q_actor():
    return QValueActor(nn.Linear(INPUTS, ACTIONS), in_keys=["observation"], spec=OneHot(ACTIONS))


def atoms_actor():
    layers = nn.Sequential(nn.Linear(INPUTS, 5 * ACTIONS), nn.Unflatten(-1, (5, ACTIONS)), nn.LogSoftmax(-2))
    support = torch.linspace(-1, 1, 5)
    return DistributionalQValueActor(layers, in_keys=["observation"], spec=OneHot(ACTIONS), support=support)


def agents(centralized, outputs):
    return MultiAgentMLP(
        n_agent_inputs=INPUTS,
        n_agent_outputs=outputs,
        n_agents=AGENTS,
        centralized=centralized,
        share_params=True,
        num_cells=8,
        depth=1,
    )


def many_agents(kind):
    layers = nn.Sequential(agents(False, 2 * ACTIONS), NormalParamExtractor())
    module = TensorDictModule(layers, [("agents", "observation")], [("agents", "loc"), ("agents", "scale")])
    actor = ProbabilisticActor(
        module,
        in_keys=[("agents", "loc"), ("agents", "scale")],
        out_keys=[("agents", "action")],
        distribution_class=TanhNormal,
        return_log_prob=True,
        log_prob_key=("agents", "action_log_prob"),
    )
    critic = TensorDictModule(agents(True, 1), [("agents", "observation")], [("agents", "state_value")])
    loss = kind(actor, critic)
    loss.set_keys(
        value=("agents", "state_value"), action=("agents", "action"), sample_log_prob=("agents", "action_log_prob")
    )
    return loss


def mixed():
    keys = {name: ("agents", name) for name in ("action", "action_value", "chosen_action_value")}
    module = TensorDictModule(nn.Linear(INPUTS, ACTIONS), [("agents", "observation")], [keys["action_value"]])
    choice = QValueModule(
        action_value_key=keys["action_value"], out_keys=list(keys.values()), action_space="categorical"
    )
    mixer = TensorDictModule(
        QMixer(state_shape=(INPUTS,), mixing_embed_dim=8, n_agents=AGENTS, device="cpu"),
        in_keys=[keys["chosen_action_value"], "state"],
        out_keys=["chosen_action_value"],
    )
    return O.QMixerLoss(SafeSequential(module, choice), mixer, action_space="categorical")


def student_loss(kind):
    return kind(QValueActor(nn.Linear(INPUTS, ACTIONS), in_keys=["observation"], spec=OneHot(ACTIONS)))


LOSSES = {
    O.A2CLoss: lambda: O.A2CLoss(gaussian(), value()),
    O.BCLoss: lambda: O.BCLoss(deterministic(), loss_function="l2"),
    O.CQLLoss: lambda: O.CQLLoss(gaussian(), q_value(), action_spec=SPEC),
    O.ClipPPOLoss: lambda: O.ClipPPOLoss(gaussian(), value()),
    O.CrossQLoss: lambda: O.CrossQLoss(gaussian(), q_value(), action_spec=SPEC),
    O.DDPGLoss: lambda: O.DDPGLoss(deterministic(), q_value()),
    O.DQNLoss: lambda: O.DQNLoss(q_actor(), action_space="one-hot"),
    O.DiscreteCQLLoss: lambda: O.DiscreteCQLLoss(q_actor(), action_space="one-hot"),
    O.DiscreteIQLLoss: lambda: O.DiscreteIQLLoss(
        categorical(), all_values("state_action_value"), value(), action_space="one-hot"
    ),
    O.DiscreteSACLoss: lambda: O.DiscreteSACLoss(
        categorical(), all_values(), num_actions=ACTIONS, action_space="one-hot"
    ),
    O.DistributionalDQNLoss: lambda: O.DistributionalDQNLoss(atoms_actor(), gamma=0.9),
    O.GAILLoss: lambda: O.GAILLoss(
        TensorDictModule(Judged(), in_keys=["observation", "action"], out_keys=["d_logits"])
    ),
    O.IPPOLoss: lambda: many_agents(O.IPPOLoss),
    O.IQLLoss: lambda: O.IQLLoss(gaussian(), q_value(), value()),
    O.KLPENPPOLoss: lambda: O.KLPENPPOLoss(gaussian(), value()),
    O.MAPPOLoss: lambda: many_agents(O.MAPPOLoss),
    O.PPOLoss: lambda: O.PPOLoss(gaussian(), value()),
    O.QMixerLoss: mixed,
    O.REDQLoss: lambda: O.REDQLoss(gaussian(), q_value(), action_spec=SPEC),
    O.RNDLoss: lambda: O.RNDLoss(nn.Linear(INPUTS, 3), nn.Linear(INPUTS, 3)),
    O.ReinforceLoss: lambda: O.ReinforceLoss(gaussian(), value()),
    O.SACLoss: lambda: O.SACLoss(gaussian(), q_value(), action_spec=SPEC),
    O.TD3BCLoss: lambda: O.TD3BCLoss(deterministic(), q_value(), action_spec=SPEC),
    O.TD3Loss: lambda: O.TD3Loss(deterministic(), q_value(), action_spec=SPEC),
    O.TQCLoss: lambda: O.TQCLoss(gaussian(), q_value(outputs=5), action_spec=SPEC),
    StudentDQNLoss: lambda: student_loss(StudentDQNLoss),
    DistillationLoss: lambda: student_loss(DistillationLoss),
    TeacherDQNLoss: lambda: TeacherDQNLoss(q_actor(), action_space="one-hot"),
}
DREAMERS = (O.DreamerActorLoss, O.DreamerV3ActorLoss)
# Their models are large; the estimator is made as every other one is.
ESTIMATORS = {kind: lambda kind=kind: kind(deterministic(), value(), nn.Linear(1, 1)) for kind in DREAMERS}
NOT_BUILT = {
    "LossModule": "abstract",
    **dict.fromkeys(
        ("ACTLoss", "DTLoss", "DiffusionBCLoss", "OnlineDTLoss"), "sequence models of their own; no estimator"
    ),
    **dict.fromkeys(
        (
            "DreamerModelLoss",
            "DreamerV3Loss",
            "DreamerV3ModelLoss",
            "DreamerV3ValueLoss",
            "DreamerValueLoss",
            "WorldModelLoss",
        ),
        "world models of their own; no estimator",
    ),
    "ExponentialQuadraticCost": "a cost without parameters to learn; no estimator",
    **dict.fromkeys(
        ("CISPOLoss", "DAPO", "DistillationLoss", "GRPOLoss", "SFTLoss"), "losses of language models (transformers)"
    ),
}


def batch():
    """Transitions ``[6]`` that every loss of the table can read; values are drawn."""
    torch.manual_seed(5)
    draw = lambda *shape: torch.randn(BATCH, *shape)  # noqa: E731
    flags = {name: torch.zeros(BATCH, 1, dtype=torch.bool) for name in ("done", "terminated")}
    group = TensorDict({"observation": draw(AGENTS, INPUTS)}, [BATCH, AGENTS])
    following = TensorDict({"observation": draw(INPUTS), "reward": draw(1), "state": draw(INPUTS), **flags}, [BATCH])
    following["agents"] = TensorDict(
        {"observation": draw(AGENTS, INPUTS), "reward": draw(AGENTS, 1), "done": torch.zeros(BATCH, AGENTS, 1).bool()},
        [BATCH, AGENTS],
    )
    following["agents", "terminated"] = following["agents", "done"]
    return TensorDict(
        {"observation": draw(INPUTS), "state": draw(INPUTS), "agents": group, "next": following, **flags}, [BATCH]
    )


def filled(kind, data):
    """The batch with the actions that the loss wants to see."""
    discrete = kind in DISCRETE
    index = torch.arange(BATCH) % ACTIONS
    data["action"] = nn.functional.one_hot(index, ACTIONS) if discrete else torch.tanh(torch.randn(BATCH, ACTIONS))
    data["action_log_prob"] = torch.zeros(BATCH)
    data["loc"], data["scale"] = torch.zeros(BATCH, ACTIONS), torch.ones(BATCH, ACTIONS)
    for level in (data, data["next"]):
        level["teacher", "action_value"] = torch.randn(BATCH, ACTIONS)
    if kind is O.QMixerLoss:
        data["agents", "action"] = torch.zeros(BATCH, AGENTS, dtype=torch.int64)
    else:
        data["agents", "action"] = torch.tanh(torch.randn(BATCH, AGENTS, ACTIONS))
    data["agents", "action_log_prob"] = torch.zeros(BATCH, AGENTS)
    for who in ("collector", "expert"):
        data[f"{who}_action"], data[f"{who}_observation"] = data["action"].clone(), data["observation"].clone()
    return data


DISCRETE = {
    O.DQNLoss,
    O.DiscreteCQLLoss,
    O.DiscreteIQLLoss,
    O.DiscreteSACLoss,
    O.DistributionalDQNLoss,
    StudentDQNLoss,
    DistillationLoss,
    TeacherDQNLoss,
}


def losses_of(loss, kind):
    """Values of a loss on the batch, after one seed."""
    data = filled(kind, batch())
    torch.manual_seed(9)
    found = loss(data)
    return {key: value.detach().clone() for key, value in found.items() if key.startswith("loss")}


def moved(loss):
    """The loss, with every parameter and estimator moved away from where it began."""
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return loss


def restored(saved, loss, folder):
    VerifiedCheckpoint(loss_module=LossState(saved)).save(folder / "checkpoint")
    VerifiedCheckpoint(loss_module=LossState(loss)).load(folder / "checkpoint")
    return loss


def test_every_loss_of_torchrl_has_been_looked_at():
    """A new one is listed here, or fails; those that are left out make no estimator at their first batch."""
    modules = (O, language_losses)
    exported = {
        name: item
        for module in modules
        for name, item in vars(module).items()
        if inspect.isclass(item) and issubclass(item, LossModule)
    }
    built = {
        kind.__name__ for table in (LOSSES, ESTIMATORS) for kind in table if kind.__module__.startswith("torchrl.")
    }
    assert len(exported) > 40
    assert exported.keys() == built | NOT_BUILT.keys()
    assert all(exported[name].default_value_estimator is None for name, why in NOT_BUILT.items() if "no est" in why)


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.__name__)
def test_a_loss_that_has_seen_a_batch_is_restored_into_one_that_has_not(tmp_path, kind):
    """As a resumed run does, whose loss has no estimator yet."""
    torch.manual_seed(0)
    saved = LOSSES[kind]()
    losses_of(saved, kind)
    loss = restored(moved(saved), LOSSES[kind](), tmp_path)
    wanted, found = losses_of(saved, kind), losses_of(loss, kind)
    assert wanted and all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert loss.state_dict().keys() == saved.state_dict().keys()


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.__name__)
def test_a_loss_from_before_its_first_batch_is_restored_into_one_that_has_learned(tmp_path, kind):
    """As a rollback to the first checkpoint does."""
    torch.manual_seed(0)
    saved, loss = LOSSES[kind](), LOSSES[kind]()
    losses_of(moved(loss), kind)
    restored(saved, loss, tmp_path)
    wanted, found = losses_of(saved, kind), losses_of(loss, kind)
    assert wanted and all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("kind", ESTIMATORS, ids=lambda kind: kind.__name__)
def test_an_estimator_made_at_the_first_batch_is_restored(tmp_path, kind):
    saved, loss = ESTIMATORS[kind](), ESTIMATORS[kind]()
    assert saved.value_estimator is not None
    restored(saved, loss, tmp_path)
    assert loss.state_dict().keys() == saved.state_dict().keys()
    unused = ESTIMATORS[kind]()
    restored(unused, loss, tmp_path)


def test_an_estimator_comes_back_with_its_own_discount(tmp_path):
    """Not with that of the default which was made to take it."""
    saved, loss = LOSSES[O.DQNLoss](), LOSSES[O.DQNLoss]()
    saved.make_value_estimator(gamma=0.8)
    restored(saved, loss, tmp_path)
    assert loss.value_estimator.gamma == pytest.approx(0.8)


def test_networks_of_another_size_are_refused(tmp_path):
    """Only the estimator may be there or not."""
    other = O.DQNLoss(
        QValueActor(nn.Linear(INPUTS + 1, ACTIONS), in_keys=["observation"], spec=OneHot(ACTIONS)),
        action_space="one-hot",
    )
    with pytest.raises(RuntimeError, match="Failed to load checkpoint component 'loss_module'"):
        restored(LOSSES[O.DQNLoss](), other, tmp_path)
