"""Teachers from other people's files: found whatever wrote them, refused where they do not fit, never run."""

import os
import pickle
import warnings

import pytest
import torch
from parts import small_run
from safetensors.torch import save_file
from tensordict import NonTensorData, TensorDict
from torch import nn
from torchrl.checkpoint import Checkpoint, StateDictCheckpointAdapter
from torchrl.data import Categorical

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
    assert "by order" in load_pretrained(network, tmp_path / "other.pt")
    assert _same(teacher, network)


def test_another_number_of_actions_is_named(tmp_path):
    save_weights(_actor(actions=18), tmp_path / "big.safetensors")
    with pytest.raises(
        ValueError, match=r"chooses among 18 actions, this one among 3; take a teacher of the same game"
    ):
        load_pretrained(_actor(), tmp_path / "big.safetensors")


def test_another_architecture_is_named_tensor_by_tensor(tmp_path):
    save_weights(_actor(tower="net17"), tmp_path / "small.safetensors")
    network = _actor()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"another architecture, .* is \[[\d, ]+\] in the file and \[[\d, ]+\] in the"):
        load_pretrained(network, tmp_path / "small.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_file_without_the_network_lists_what_is_missing(tmp_path):
    torch.save({"linear": {"weight": torch.ones(2, 2)}}, tmp_path / "linear.pt")
    with pytest.raises(ValueError, match=r"head.bias is None in the file and \[3\] in the network"):
        load_pretrained(_actor(), tmp_path / "linear.pt")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    network = _actor()
    with torch.no_grad():
        next(network.parameters())[0, 0, 0, 0] = float("nan")
    save_weights(network, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match=r"must be finite: 'trunk\.0\.weight' is not"):
        load_pretrained(_actor(), tmp_path / "nan.safetensors")


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
