"""Teachers from other people's files: found whatever wrote them, refused where they do not fit, never run."""

import os
import pickle
import warnings

import pytest
import torch
from parts import small_run
from safetensors.torch import save_file
from tensordict import NonTensorData, TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.checkpoint import Checkpoint, StateDictCheckpointAdapter
from torchrl.data import Categorical
from torchrl.modules import ProbabilisticActor, QValueModule

from torchrl_rtpd import make_actor
from torchrl_rtpd.files.pretrained import load_pretrained
from torchrl_rtpd.files.weights import save_weights
from torchrl_rtpd.networks.running import bare_network


def _actor(seed=0, tower="net3", actions=3):
    return make_actor(tower, Categorical(actions), seed=seed)


def _trainer(folder):
    """A DQN trainer whose target network differs from its online one."""
    run = small_run(folder, 16)
    with torch.no_grad():
        for parameter in run.loss.target_value_network_params.values(True, True):
            parameter.data.add_(1.0)
    return run


def _same(first, second):
    return all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def _files(folder, run):
    """Every kind of file that may hold the trainer's teacher."""
    teacher, trainer = run.networks["teacher"], run.trainer
    save_weights(teacher, folder / "ours.safetensors")
    save_file(
        {f"agent.q.{name}": t.contiguous() for name, t in bare_network(teacher).state_dict().items()},
        folder / "q.safetensors",
    )
    torch.save(teacher.state_dict(), folder / "actor.pt")
    torch.save(bare_network(teacher).state_dict(), folder / "bare.pt")
    torch.save(run.loss.state_dict(), folder / "loss.pt")
    torch.save(trainer.state_dict(), folder / "trainer.pt")
    Checkpoint(loss_module=run.loss, optimizer=run.optimizer).save(folder / "torchrl")
    Checkpoint().register("loss_module", run.loss, adapter=StateDictCheckpointAdapter("torch")).save(
        folder / "torchrl_pt"
    )
    Checkpoint(policy=teacher).save(folder / "policy")
    run.saver.save(folder / "whole")
    TensorDict(dict(run.loss.state_dict())).unflatten_keys(".").dumps(folder / "memmap" / "loss_module")
    return [path for path in folder.iterdir() if path.name not in ("run",)]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_teacher_is_found_in_every_kind_of_file(tmp_path):
    """Safetensors, torch files, TorchRL's trainers and checkpoints, ours; the online network, not its target."""
    run = _trainer(tmp_path / "run")
    files = _files(tmp_path, run)
    assert len(files) == 11
    for path in files:
        network = _actor(seed=9)
        assert "by name" in load_pretrained(network, path), path
        assert _same(run.networks["teacher"], network), path


def test_the_same_layers_under_other_names_are_taken_in_order(tmp_path):
    """As TorchRL's own example has them, wrapped in other modules."""
    teacher = _actor(seed=1)
    state = {f"layers.{i}": tensor for i, tensor in enumerate(bare_network(teacher).state_dict().values())}
    torch.save({"step": 3, "model": state}, tmp_path / "other.pt")
    network = _actor(seed=2)
    with pytest.warns(UserWarning, match=r"other\.pt does not tell if its dense layer reads channels first or last"):
        assert "by order" in load_pretrained(network, tmp_path / "other.pt")
    assert _same(teacher, network)


def test_another_number_of_actions_is_named(tmp_path):
    save_weights(_actor(actions=18), tmp_path / "big.safetensors")
    with pytest.raises(
        ValueError,
        match=r"chooses among 18 actions, this one among 3; take a teacher of the same game and action set, or",
    ):
        load_pretrained(_actor(), tmp_path / "big.safetensors")


def test_another_architecture_is_named_tensor_by_tensor(tmp_path):
    save_weights(_actor(tower="net17"), tmp_path / "small.safetensors")
    network = _actor()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"another architecture, .* is \[[\d, ]+\] in the file and \[[\d, ]+\] in the"):
        load_pretrained(network, tmp_path / "small.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("saved", "wanted", "there", "here"), [("layer", None, "with", "without"), (None, "layer", "without", "with")]
)
def test_norms_on_one_side_alone_are_said(tmp_path, saved, wanted, there, here):
    """The sizes are the same; what differs is between the layers."""
    save_weights(make_actor("net17", Categorical(3), norm=saved), tmp_path / "net.safetensors")
    message = rf"saved {there} norms after its layers \(norm='layer'\) and this one is {here}\. Build the network"
    with pytest.raises(ValueError, match=message):
        load_pretrained(make_actor("net17", Categorical(3), norm=wanted), tmp_path / "net.safetensors")


def test_a_file_without_the_network_lists_what_is_missing(tmp_path):
    torch.save({"linear": {"weight": torch.ones(2, 2)}}, tmp_path / "linear.pt")
    with pytest.raises(ValueError, match=r"head.bias is None in the file and \[3\] in the network"):
        load_pretrained(_actor(), tmp_path / "linear.pt")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    network = _actor()
    with torch.no_grad():
        next(network.parameters())[0, 0, 0, 0] = float("nan")
    save_weights(network, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match=r"must be finite: '.*trunk\.0\.weight' is not"):
        load_pretrained(_actor(), tmp_path / "nan.safetensors")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda weight: (100 * weight).to(torch.int8), r"must be floats: '.*weight' is int8; save them before"),
        (lambda weight: weight.to(torch.complex64), r"must be floats: '.*weight' is complex64"),
        (lambda weight: weight.to_sparse(), r"must hold dense tensors of numbers: '.*weight' is sparse or nested"),
        (lambda weight: weight.to("meta"), r"must hold dense tensors of numbers: '.*weight' is without data"),
    ],
)
def test_weights_that_are_no_floats_in_memory_are_refused(tmp_path, change, match):
    state = {"layer.weight": change(torch.ones(2, 3)), "layer.bias": torch.ones(2)}
    torch.save(state, tmp_path / "other.pt")
    network = torch.nn.Linear(3, 2)
    before = network.weight.clone()
    with pytest.raises(ValueError, match=match):
        load_pretrained(network, tmp_path / "other.pt")
    assert torch.equal(network.weight, before)


@pytest.mark.parametrize("name", ["weights", "weights.pt", "weights.SAFETENSORS"])
def test_safetensors_are_known_by_their_content(tmp_path, name):
    network, path = torch.nn.Linear(3, 2), tmp_path / name
    save_file({"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}, path)
    load_pretrained(network, path)
    assert network.weight.tolist() == [[1.0] * 3] * 2


class _Crafted:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def _crafted_files(folder, mark):
    torch.save({"weight": _Crafted(mark)}, folder / "torch.pt")
    (folder / "pickle.pt").write_bytes(pickle.dumps(_Crafted(mark)))
    (folder / "renamed.safetensors").write_bytes(pickle.dumps(_Crafted(mark)))
    Checkpoint(loss_module=nn.Linear(1, 1)).save(folder / "torchrl")
    state = next((folder / "torchrl").glob("components/*/state"))
    TensorDict({"tensor_00000000": torch.ones(1), "code": NonTensorData(data=object)}).dumps(state)
    for pickled in state.rglob("*.pickle"):
        pickled.write_bytes(pickle.dumps({"data": _Crafted(mark)}))
    Checkpoint().register("loss_module", nn.Linear(1, 1), adapter=StateDictCheckpointAdapter("torch")).save(
        folder / "pt"
    )
    torch.save(_Crafted(mark), next((folder / "pt").glob("components/*/state.pt")))
    return list(folder.iterdir())


def test_a_crafted_file_is_refused_and_runs_nothing(tmp_path):
    """TorchRL 0.14.1's own loader runs the third of them, which is why ours reads the files itself."""
    mark = tmp_path / "executed"
    (tmp_path / "files").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        files = _crafted_files(tmp_path / "files", mark)
    assert len(files) == 5
    for path in files:
        with pytest.raises(ValueError, match="must hold tensors and nothing that runs"):
            load_pretrained(_actor(), path)
        assert not mark.exists(), path


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no teacher at .*nowhere\.pt: give a safetensors or torch file"):
        load_pretrained(_actor(), tmp_path / "nowhere.pt")


@pytest.mark.parametrize("keep", [0, 1, 9, 100, 5000])
@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt"])
def test_a_truncated_file_is_refused(tmp_path, name, keep):
    path = tmp_path / name
    if name.endswith("pt"):
        torch.save(_actor().state_dict(), path)
    else:
        save_weights(_actor(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"must hold tensors|is damaged"):
        load_pretrained(_actor(), path)


def test_a_network_without_layers_is_refused(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "any.pt")
    with pytest.raises(ValueError, match="network must have layers to fill: got ReLU without a parameter"):
        load_pretrained(nn.ReLU(), tmp_path / "any.pt")


# Networks of several parts


def _parts(kind):
    """Actors whose layers lie in several parts, with inputs of four numbers."""
    first = TensorDictModule(nn.Linear(4, 8), ["obs"], ["h"])
    head = TensorDictModule(nn.Linear(8, 3), ["h"], ["action_value"])
    choice = QValueModule(spec=Categorical(3))
    if kind == "encoder and head":
        return TensorDictSequential(first, head, choice)
    if kind == "normaliser and network":
        norm = TensorDictModule(nn.BatchNorm1d(4), ["obs"], ["normed"])
        network = TensorDictModule(nn.Linear(4, 3), ["normed"], ["action_value"])
        return TensorDictSequential(norm, network, choice)
    if kind == "two inputs":
        both = TensorDictModule(nn.Bilinear(4, 2, 8), ["obs", "goal"], ["h"])
        return TensorDictSequential(both, head, choice)
    if kind == "policy":
        logits = TensorDictModule(nn.Linear(8, 3), ["h"], ["logits"])
        return ProbabilisticActor(
            TensorDictSequential(first, logits), in_keys=["logits"], distribution_class=torch.distributions.Categorical
        )
    memory = TensorDictModule(nn.GRUCell(4, 8), ["obs", "h"], [("next", "h")])
    values = TensorDictModule(nn.Linear(8, 3), [("next", "h")], ["action_value"])
    return TensorDictSequential(memory, values, choice)


KINDS = ["encoder and head", "normaliser and network", "two inputs", "policy", "recurrent first part"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["own", "other"])
def test_a_network_of_several_parts_is_filled_whole(tmp_path, kind, names):
    torch.manual_seed(0)
    saved, loaded = _parts(kind), _parts(kind)
    state = bare_network(saved).state_dict()
    if names == "other":
        state = {f"agent.{name.replace('module', 'part')}": tensor for name, tensor in state.items()}
    torch.save({"model": state}, tmp_path / "parts.pt")
    count = sum(tensor.numel() for tensor in bare_network(saved).parameters())
    said = load_pretrained(loaded, tmp_path / "parts.pt")
    assert int(said.split(" tensors of ")[1].split()[0].replace(",", "")) >= count
    for name, tensor in bare_network(loaded).named_parameters():
        assert torch.equal(tensor, bare_network(saved).state_dict()[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_has_only_a_part_of_the_network_is_refused_and_changes_nothing(tmp_path, kind):
    network = _parts(kind)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = bare_network(network).state_dict()
    last = list(state)[-1].rpartition(".")[0]
    torch.save({name: tensor + 1 for name, tensor in state.items() if not name.startswith(last)}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=rf"{last}\.bias is None in the file and \[3\] in the network"):
        load_pretrained(network, tmp_path / "part.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("network", [nn.Sequential(nn.Linear(4, 3)), nn.Linear(4, 3), nn.Linear(3, 2)])
@pytest.mark.parametrize("kind", ["a sequence", "two modules"])
def test_a_network_that_is_a_part_of_the_files_is_refused(tmp_path, network, kind):
    whole = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).state_dict()
    if kind == "two modules":
        whole = {name.replace("0.", "encoder.").replace("2.", "head."): tensor for name, tensor in whole.items()}
    torch.save(whole, tmp_path / "longer.pt")
    with pytest.raises(ValueError, match=r"another architecture|has more layers than this one"):
        load_pretrained(network, tmp_path / "longer.pt")


@pytest.mark.parametrize("compiled", ["saved", "loaded", "both"])
def test_a_compiled_network_has_the_names_of_a_plain_one(tmp_path, compiled):
    teacher, network = _actor(seed=1), _actor(seed=2)
    if compiled != "loaded":
        teacher.module[0].module = torch.compile(teacher.module[0].module)
    if compiled != "saved":
        network.module[0].module = torch.compile(network.module[0].module)
    torch.save(teacher.state_dict(), tmp_path / "compiled.pt")
    assert "by name" in load_pretrained(network, tmp_path / "compiled.pt")
    assert _same(bare_network(teacher), bare_network(network))


# Several networks in one file


def _state(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict()


def _adam(network):
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


TWICE = {
    "target first": lambda a, b: {"target": b, "online": a},
    "online first": lambda a, b: {"online": a, "target": b},
    "q and q_target": lambda a, b: {"q_target": b, "q": a},
    "tianshou": lambda a, b: {f"{part}.{n}": t for part, s in (("model_old", b), ("model", a)) for n, t in s.items()},
    "d3rlpy": lambda a, b: {"targ_q_funcs": {"0": b}, "q_funcs": {"0": a}},
    "camel case": lambda a, b: {"targetNet": b, "policyNet": a},
    "lists": lambda a, b: {"old": [b], "networks": [a]},
    "local": lambda a, b: {"qnetwork_target": b, "qnetwork_local": a},
    "online and average": lambda a, b: {"ema": b, "online": a},
    "new and old": lambda a, b: {"old": b, "new": a},
}


@pytest.mark.parametrize("kind", TWICE)
@pytest.mark.parametrize("named", ["own names", "other names"])
def test_the_online_network_is_taken_and_said(tmp_path, kind, named):
    online, copy = _state(0), _state(1)
    if named == "other names":
        online, copy = ({f"layers_{name}": tensor for name, tensor in state.items()} for state in (online, copy))
    torch.save(TWICE[kind](online, copy), tmp_path / "two.pt")
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    said = load_pretrained(network, tmp_path / "two.pt")
    assert "was taken, not '" in said
    assert all(torch.equal(tensor, _state(0)[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    "names", [("first", "second"), ("q1", "q2"), ("student", "teacher"), ("model", "ema"), ("seed0", "seed1")]
)
def test_two_networks_that_may_both_be_meant_are_named(tmp_path, names):
    torch.save({names[0]: _state(0), names[1]: _state(1)}, tmp_path / "two.pt")
    with pytest.raises(
        ValueError, match=rf"holds 2 networks of these shapes, under '{names[0]}\.', '{names[1]}\.'; sa"
    ):
        load_pretrained(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), tmp_path / "two.pt")


def test_equal_copies_are_one_network(tmp_path):
    torch.save({"best": _state(0), "last": _state(0)}, tmp_path / "two.pt")
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert "2 equal copies were found" in load_pretrained(network, tmp_path / "two.pt")


def test_a_file_with_nothing_but_a_target_is_taken(tmp_path):
    torch.save({"target_net": _state(0)}, tmp_path / "target.pt")
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert "by name" in load_pretrained(network, tmp_path / "target.pt")


def test_moments_of_adam_are_no_network(tmp_path):
    """Their shapes are those of the weights."""
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    moments = _adam(network)
    wanted = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = {f"net_{name}": tensor for name, tensor in wanted.items()}
    for number, content in enumerate([{"optim": moments, "m": state}, {"a": moments["state"], "m": state}]):
        torch.save(content, tmp_path / f"{number}.pt")
        loaded = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        assert load_pretrained(loaded, tmp_path / f"{number}.pt").startswith("4 tensors of 67 values, by layers, from")
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.state_dict().items())


def test_layers_that_a_file_names_twice_are_read_once(tmp_path):
    """As in stable-baselines3's PPO: policy and value share an extractor, which has three names."""
    state = _state(0)
    body = {name: tensor for name, tensor in state.items() if name.startswith("0.")}
    parts = {f"{part}features_extractor.{name}": t for part in ("", "pi_", "vf_") for name, t in body.items()}
    heads = {"action_net.weight": state["2.weight"], "action_net.bias": state["2.bias"]}
    critic = {"value_net.weight": torch.zeros(1, 8), "value_net.bias": torch.zeros(1)}
    torch.save({**parts, **heads, **critic}, tmp_path / "policy.pth")
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert load_pretrained(network, tmp_path / "policy.pth").startswith("4 tensors of 67 values")
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_a_critic_beside_the_policy_is_passed_over(tmp_path):
    """As stable-baselines3's PPO and others have one, of the same sizes but the head."""
    critic = {"mlp.0.weight": torch.zeros(8, 4), "mlp.0.bias": torch.zeros(8), "head.weight": torch.zeros(1, 8)}
    torch.save({"actor": _state(0), "critic": {**critic, "head.bias": torch.zeros(1)}}, tmp_path / "both.pt")
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    load_pretrained(network, tmp_path / "both.pt")
    assert torch.equal(network[0].weight, _state(0)["0.weight"])
