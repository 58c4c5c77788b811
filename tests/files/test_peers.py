"""Files that other libraries made themselves, in an environment of their own: ``tox -e peers``.

Each script ``tests/peers/make_*.py`` writes files by its library's own save, frames, and the greedy actions that the
library took in them. What became of each file is written to PEERS_RESULTS if that is set.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchrl.data import Categorical

from torchrl_rtpd.files.pretrained import load_pretrained
from torchrl_rtpd.networks.running import bare_network
from torchrl_rtpd.networks.towers import Tower, make_actor
from torchrl_rtpd.runs.environment import run_environment

pytestmark = [pytest.mark.peers, pytest.mark.timeout(900)]

SCRIPTS = Path(__file__).parents[1] / "peers"
COMMAND = "python -m pytest -m peers tests/files/test_peers.py"
"""The line of ``tox -e peers``, without folders of the machine."""
WIDE = Tower((32, 64, 64), 1024)
"""Two streams of 512 hidden units each, side by side."""
BOTH, SCALE = (
    rf"not tell {what}if its pixels were in \[0, 1\] or in 0\.\.255" for what in ("if .* first or last and ", "")
)


class Case(NamedTuple):
    """A file, and what becomes of it.

    Attributes:
        script: the one that makes it.
        what: a few words for the page.
        words: pattern of what is said about the file, or of the error.
        warns: pattern of the warning that says what the file does not tell.
        arguments: further arguments of load_pretrained.
        refused: True if the file is another network, or code.
        alone: True if the file is read rightly without check_frames.
        tower: the network that is to be filled.
    """

    script: str
    what: str
    words: str
    warns: str = ""
    arguments: dict[str, Any] = {}
    refused: bool = False
    alone: bool = True
    tower: Tower | str = "teacher"


FOLDED = r"pixels in 0\.\.255 were folded into the first layer"
ATOMS = "for each of 6 actions, as atoms or quantiles"
CASES = {
    "sb3_dqn": Case("sb3", "stable-baselines3: DQN, zip", r"by layers; 'q_net\.' was taken, not 'q_net_target\.'"),
    "sb3_dqn_policy": Case("sb3", "its `policy.pth` alone", r"'q_net\.' was taken, not 'q_net_target\.'"),
    "sb3_dqn_bytes": Case("sb3", "stable-baselines3: DQN, `normalize_images=False`", FOLDED),
    "sb3_dqn_bytes_policy": Case("sb3", "its `policy.pth` alone", FOLDED),
    "sb3_qrdqn": Case("sb3", "sb3-contrib: QR-DQN, zip", "its quantiles were averaged, which is exact"),
    "sb3_qrdqn_policy": Case("sb3", "its `policy.pth` alone", "its quantiles were averaged, which is exact"),
    "sb3_qrdqn_bytes": Case("sb3", "sb3-contrib: QR-DQN, `normalize_images=False`", FOLDED),
    "sb3_qrdqn_bytes_policy": Case("sb3", "its `policy.pth` alone", FOLDED),
    "sb3_ppo": Case("sb3", "stable-baselines3: PPO, zip", "by layers"),
    "sb3_ppo_policy": Case("sb3", "its `policy.pth` alone", "by layers"),
    "tianshou_bytes": Case("tianshou", "tianshou: policy of `DQNet`, small first layer", FOLDED),
    "tianshou_bytes_of_a_usual_size": Case(
        "tianshou",
        "tianshou: policy of `DQNet`, first layer as large as PyTorch draws it",
        "by layers",
        warns=SCALE,
        alone=False,
    ),
    "tianshou_policy": Case("tianshou", "tianshou: policy, scaled input", "by layers", warns=SCALE),
    "tianshou_algorithm": Case(
        "tianshou", "tianshou: whole DQN algorithm, scaled input", r"was taken, not 'model_old\.", warns=SCALE
    ),
    "tianshou_qrdqn": Case("tianshou", "tianshou: `QRDQNet`", f"1200 outputs, 200 {ATOMS}", refused=True),
    "tianshou_c51": Case("tianshou", "tianshou: `C51Net`", f"306 outputs, 51 {ATOMS}", refused=True),
    "tianshou_rainbow": Case(
        "tianshou", "tianshou: `RainbowNet`", "Layers with mu and sigma are noisy ones", refused=True
    ),
    "skrl_agent": Case(
        "skrl",
        "skrl: agent with optimiser",
        r"'q_network\.net_container\.' was taken, not 'target_q_network\.",
        warns=SCALE,
    ),
    "pfrl_dqn": Case("pfrl", "pfrl: `model.pt` of a DQN", "by layers", warns=BOTH),
    "pfrl_dueling": Case(
        "pfrl", "pfrl: `DuelingDQN`", "value and advantage streams were added", warns=BOTH, tower=WIDE
    ),
    "pfrl_categorical_dueling": Case(
        "pfrl",
        "pfrl: `DistributionalDuelingDQN`",
        "51 outputs for each action in its streams of value and advantage",
        refused=True,
    ),
    "d3rlpy_dqn": Case("d3rlpy", "d3rlpy: `save`, pixels scaled", "was taken, not 'targ_q_funcs"),
    "d3rlpy_dqn_model": Case(
        "d3rlpy", "d3rlpy: `save_model`, pixels scaled", "was taken, not 'targ_q_funcs", warns=SCALE
    ),
    "d3rlpy_bytes": Case("d3rlpy", "d3rlpy: `save`, its default without a scaler", FOLDED),
    "d3rlpy_bytes_model": Case("d3rlpy", "d3rlpy: `save_model`, the same", FOLDED),
    "d3rlpy_qrdqn": Case("d3rlpy", "d3rlpy: `save`, quantiles", f"192 outputs, 32 {ATOMS}", refused=True),
    "cleanrl_dqn": Case("layouts", "CleanRL's layout of `dqn_atari`", "by layers"),
    "safetensors": Case("layouts", "the same as safetensors", "by layers", warns=BOTH),
    "padded": Case(
        "layouts",
        "padded convolutions, as in Dopamine and RLlib",
        r"7,744 inputs are those of padded \(SAME\) convolutions",
        refused=True,
    ),
    "flax_port": Case("jax", "flax, kernels transposed, nothing else", "by layers", warns=BOTH, alone=False),
    "sbx_dqn": Case("jax", "sbx: DQN, zip", r"without policy\.pth, as sbx writes it, holds pickled code", refused=True),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder with the files of a script, which runs once."""
    python = os.environ.get("PEERS_PYTHON")
    if python is None:
        pytest.skip("needs the libraries in an environment of their own, which `tox -e peers` makes")
    folders: dict[str, Path] = {}

    def make(script: str) -> Path:
        if script not in folders:
            folders[script] = tmp_path_factory.mktemp(script)
            command = [python, str(SCRIPTS / f"make_{script}.py"), str(folders[script])]
            done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
            assert done.returncode == 0, done.stderr[-4000:]
        return folders[script]

    return make


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[str, dict[str, Any]]]:
    """What became of each file, written at the end."""
    found: dict[str, dict[str, Any]] = {}
    yield found
    if "PEERS_RESULTS" in os.environ and found.keys() == CASES.keys():
        ordered = {name: found[name] for name in CASES}
        result = {"environment": {**run_environment(), "command": COMMAND}, "files": ordered}
        Path(os.environ["PEERS_RESULTS"]).write_text(json.dumps(result, indent=1) + "\n")


def agreement(network: nn.Module, observations: Tensor, actions: Tensor) -> float:
    """Share of observations in which the network takes the recorded action."""
    with torch.no_grad():
        return (bare_network(network)(observations).argmax(-1) == actions).float().mean().item()


def fresh(case: Case) -> nn.Module:
    return make_actor(case.tower, Categorical(6), seed=9)


def load(network: nn.Module, path: Path, **arguments: Any) -> tuple[str, str]:
    """Return what is said and the warning, if there is one, without the folder."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        said = load_pretrained(network, path, **arguments)
    assert len(caught) < 2
    warning = "".join(str(one.message) for one in caught)
    return said.replace(f"{path.parent}/", ""), warning.replace(f"{path.parent}/", "")


@pytest.mark.parametrize("name", CASES)
def test_a_file_that_a_library_made_plays_as_it_did_there_or_is_refused(
    name: str, made: Callable[[str], Path], rows: dict[str, dict[str, Any]]
) -> None:
    """At least 99 % of the actions are the library's; whatever the file does not tell is warned of."""
    case = CASES[name]
    folder = made(case.script)
    about = json.loads((folder / f"{name}.json").read_text())
    path, row = folder / about["file"], {**about, "what": case.what, "refused": case.refused, "warning": ""}
    rows[name] = row
    network = fresh(case)
    if case.refused:
        before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        with pytest.raises(ValueError, match=case.words) as error:
            load_pretrained(network, path)
        row["said"] = str(error.value).replace(f"{folder}/", "")
        assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
        return
    recorded = np.load(folder / f"{name}.npz")
    frames, actions = (torch.from_numpy(recorded[key]) for key in ("frames", "actions"))
    row["said"], row["warning"] = load(network, path, **case.arguments)
    row["agreement"] = agreement(network, frames, actions)
    assert re.search(case.words, row["said"])
    assert bool(row["warning"]) == bool(case.warns)
    assert re.search(case.warns, row["warning"])
    assert (row["agreement"] >= 0.99) == case.alone
    row["frames"] = len(frames)
    network = fresh(case)
    row["said_with_frames"], warning = load(network, path, check_frames=(frames, actions), **case.arguments)
    row["agreement_with_frames"] = agreement(network, frames, actions)
    assert not warning
    assert row["agreement_with_frames"] >= 0.99
