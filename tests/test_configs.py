"""Our configurations stand in TorchRL's groups, say what the constructors say, and compose with stock YAML."""

from __future__ import annotations

import inspect
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields
from pathlib import Path
from typing import Any

import hydra
import omegaconf
import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.trainers.algorithms.configs.collectors import CollectorConfig
from torchrl.trainers.algorithms.configs.common import ConfigBase

from torchrl_rtpd import configs
from torchrl_rtpd.collectors.collector import DualNetworkCollector
from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.networks.towers import NatureTower
from torchrl_rtpd.objectives.continuous import ContinuousDistillationLoss
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.pqn import StudentPQNLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss
from torchrl_rtpd.replay.storage import FrameStackStorage
from torchrl_rtpd.runs.checkpoints import SaveCheckpoints
from torchrl_rtpd.runs.guards import DivergenceGuard
from torchrl_rtpd.runs.stopping import StopOnSignal
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.off_policy import BoundedHistory, KeepWarmupData, SampleToDevice
from torchrl_rtpd.trainers.slices import SliceBatches

PARTS = {
    configs.DistillationLossConfig: DistillationLoss,
    configs.ContinuousDistillationLossConfig: ContinuousDistillationLoss,
    configs.StudentDQNLossConfig: StudentDQNLoss,
    configs.RealTimeDistillTrainerConfig: RealTimeDistillTrainer,
    configs.BoundedHistoryConfig: BoundedHistory,
    configs.KeepWarmupDataConfig: KeepWarmupData,
    configs.SampleToDeviceConfig: SampleToDevice,
    configs.SliceBatchesConfig: SliceBatches,
    configs.StudentPQNLossConfig: StudentPQNLoss,
    configs.SaveCheckpointsConfig: SaveCheckpoints,
    configs.DivergenceGuardConfig: DivergenceGuard,
    configs.StopOnSignalConfig: StopOnSignal,
    configs.AtariVecEnvConfig: AtariVecEnv,
    configs.FrameStackStorageConfig: FrameStackStorage,
    configs.NatureTowerConfig: NatureTower,
}

STOCK = """
defaults:
  - env@training_env: gym
  - model@teacher: qvalue
  - network@teacher_network: mlp
  - loss: dqn
  - target_net_updater: hard
  - optimizer: adam
  - collector: sync
  - replay_buffer: tensordict
  - storage: lazy_tensor
  - trainer: dqn
  - transform@reward_sum: reward_sum
  - env@gym_env: transformed_env
{more}
  - _self_

training_env: {{env_name: CartPole-v1, categorical_action_encoding: true}}
reward_sum: {{in_keys: [reward], out_keys: [reward_sum]}}
gym_env: {{base_env: "${{training_env}}", transform: "${{reward_sum}}"}}
teacher_network: {{in_features: 4, out_features: 2, depth: 1, num_cells: 16}}
teacher: {{network: "${{teacher_network}}", in_keys: [observation], action_space: categorical}}
loss: {{_partial_: true, action_space: categorical}}
target_net_updater: {{value_network_update_interval: 10}}
storage: {{max_size: 1000}}
replay_buffer: {{storage: "${{storage}}", batch_size: 8}}
collector: {{_partial_: true, create_env_fn: "${{gym_env}}", frames_per_batch: 20, total_frames: 80}}
{extra}
trainer:
  collector: "${{collector}}"
  total_frames: 80
  optim_steps_per_batch: 2
  loss_module: "${{loss}}"
  optimizer: "${{optimizer}}"
  logger: null
  save_trainer_file: null
  replay_buffer: "${{replay_buffer}}"
  target_net_updater: "${{target_net_updater}}"
  value_network: "${{teacher}}"
  progress_bar: false
  {hooks}
"""
MORE = """  - hook@distill: real_time_distill
  - loss@distill.students.tiny: student_dqn
  - model@distill.students.tiny.student_network: qvalue
  - network@distill.students.tiny.student_network.network: mlp
  - optimizer@distill.optimizer: adam
  - hook@warmup: keep_warmup_data"""
EXTRA = """
distill:
  students:
    tiny:
      gamma: 0.9
      student_network:
        in_keys: [observation]
        action_space: categorical
        network: {in_features: 4, out_features: 2, depth: 1, num_cells: 4}
  optimizer: {lr: 0.01}
"""


def composed(folder: Path, yaml: str, *overrides: str) -> Any:
    (folder / "run.yaml").write_text(yaml)
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        return hydra.compose("run", list(overrides))


def arguments(part: Any) -> dict[str, Any]:
    """Constructor arguments with their defaults; those without are missing."""
    parameters = list(inspect.signature(part.__init__).parameters.values())[1:]
    return {
        parameter.name: omegaconf.MISSING if parameter.default is parameter.empty else parameter.default
        for parameter in parameters
        if parameter.kind is not parameter.VAR_KEYWORD
    }


def declared(config: Any) -> dict[str, Any]:
    """Fields with their defaults."""
    return {
        entry.name: entry.default_factory() if entry.default is NO_DEFAULT else entry.default
        for entry in fields(config)
        if not entry.name.startswith("_")
    }


@pytest.mark.parametrize("config", PARTS, ids=lambda config: config.__name__)
def test_fields_are_the_constructors_arguments_with_their_defaults(config: Any) -> None:
    """Beyond them a loss has its keys and a discount factor."""
    wanted, found = arguments(PARTS[config]), declared(config)
    keys = getattr(PARTS[config], "_AcceptedKeys", None)
    extra = {f"{key.name}_key" for key in fields(keys)} if keys else set()
    extra |= {"gamma"} if config is configs.StudentDQNLossConfig else set()
    assert found.keys() == wanted.keys() | extra
    assert all(found[name] is None for name in extra)
    for name, default in wanted.items():
        assert (tuple(found[name]) if name == "filters" else found[name]) == default, name


def test_the_collectors_fields_are_torchrls_and_ours() -> None:
    """Whatever TorchRL's collector takes, its configuration gives to ours."""
    found, stock = declared(configs.DualNetworkCollectorConfig), declared(CollectorConfig)
    own = {name: value for name, value in arguments(DualNetworkCollector).items() if name != "create_env_fn"}
    assert {name: value for name, value in found.items() if name not in stock} == own
    assert set(inspect.signature(Collector.__init__).parameters) - {"self", "args", "kwargs"} <= stock.keys()


def test_every_configuration_is_registered_in_a_group_of_torchrls() -> None:
    store = ConfigStore.instance().repo
    nodes = {
        type(node.node._metadata.object_type) and node.node._metadata.object_type: (group, name)
        for group in ("loss", "hook", "collector", "env", "storage", "network")
        for name, node in store[group].items()
        if node.provider == "torchrl_rtpd"
    }
    ours = {getattr(configs, name) for name in configs.__all__}
    assert nodes.keys() == ours
    assert all(issubclass(config, ConfigBase) for config in ours)


@pytest.fixture
def quiet() -> Any:
    """TorchRL warns of its own hook stages when a trainer is configured."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("loss", ["dqn", "teacher_dqn"])
def test_a_stock_yaml_takes_a_student_by_naming_a_hook_and_its_teacher_stays_bit_identical(
    tmp_path: Path, quiet: Any, loss: str
) -> None:
    states = []
    for students in (False, True):
        yaml = STOCK.format(
            more=MORE if students else "",
            extra=EXTRA if students else "",
            hooks='hooks: ["${distill}", "${warmup}"]' if students else "",
        )
        yaml = yaml.replace("loss: dqn", f"loss: {loss}") if students else yaml
        torch.manual_seed(0)
        trainer = instantiate(composed(tmp_path, yaml).trainer)
        if students:
            hook = trainer._modules["real_time_distill"]
            before = {name: tensor.clone() for name, tensor in hook.students["tiny"].state_dict().items()}
        torch.manual_seed(1)  # the students' networks were drawn from the same stream as the teacher's
        trainer.loss_module.value_network_params.apply_(lambda parameter: parameter.data.normal_())
        trainer.target_net_updater.init_()
        trainer.collector.set_seed(0)
        trainer.collector.reset()
        torch.manual_seed(2)
        trainer.train()
        states.append({name: tensor.clone() for name, tensor in trainer.loss_module.state_dict().items()})
    assert hook.updates == 8
    assert any(not torch.equal(tensor, before[name]) for name, tensor in hook.students["tiny"].state_dict().items())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_keys_and_the_discount_reach_the_loss() -> None:
    """Lists stand for nested keys, as in TorchRL's configurations."""
    network = {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 3}
    config = configs.StudentDQNLossConfig(
        student_network=network,
        gamma=0.5,
        terminated_key="end_of_life",
        priority_weight_key=["replay", "weight"],
        teacher_temperature="auto",
    )
    loss = instantiate(config)
    assert loss.tensor_keys.terminated == "end_of_life"
    assert loss.tensor_keys.priority_weight == ("replay", "weight")
    assert loss.tensor_keys.reward == "reward"
    assert loss.auto_temperature
    loss.value_estimator  # noqa: B018
    assert float(loss.value_estimator.gamma) == 0.5


def test_a_continuous_student_is_built_from_torchrls_actor_group(tmp_path: Path) -> None:
    """The actor of TorchRL's SAC configurations, and keys as lists."""
    yaml = """
defaults:
  - loss@distillation: continuous_distillation
  - model@distillation.student_network: tanh_normal
  - network@distillation.student_network.network: mlp
  - _self_
distillation:
  divergence: reverse_kl
  teacher_loc_key: [expert, loc]
  student_network:
    in_keys: [observation]
    param_keys: [loc, scale]
    out_keys: [action]
    network: {in_features: 3, out_features: 4, depth: 1, num_cells: 8}
"""
    loss = instantiate(composed(tmp_path, yaml).distillation)
    assert isinstance(loss, ContinuousDistillationLoss)
    assert loss.divergence == "reverse_kl"
    assert loss.tensor_keys.teacher_loc == ("expert", "loc")
    batch = TensorDict(
        {
            "observation": torch.zeros(5, 3),
            "expert": {"loc": torch.zeros(5, 2)},
            "teacher": {"scale": torch.ones(5, 2)},
        },
        [5],
    )
    assert loss(batch)["loss_distill"].isfinite()


def test_the_atari_parts_are_built_from_their_groups(tmp_path: Path) -> None:
    """Environment, network in a stock Q-value model, collector and storage."""
    yaml = """
defaults:
  - env@game: atari_vec
  - model@teacher: qvalue
  - network@tower: nature_tower
  - collector: dual_network
  - storage: frame_stack
  - _self_
game: {game: pong, num_envs: 2, seed: 0}
tower: {num_actions: 6, filters: [2, 2, 2], units: 8}
teacher: {network: "${tower}", in_keys: [pixels], action_space: categorical}
collector: {create_env_fn: "${game}", teacher: "${teacher}", frames_per_batch: 8, total_frames: 8}
storage: {max_size: 64, num_envs: 2, steps_per_write: 4}
"""
    config = composed(tmp_path, yaml)
    collector, storage = instantiate(config.collector), instantiate(config.storage)
    assert isinstance(collector, DualNetworkCollector)
    (batch,) = list(collector)
    storage.set(range(8), batch.reshape(-1))
    assert storage.get(3)["pixels"].shape == (4, 84, 84)
    collector.shutdown()


def test_an_unknown_field_is_refused_by_hydra(tmp_path: Path) -> None:
    with pytest.raises(hydra.errors.ConfigCompositionException, match="temprature"):
        composed(tmp_path, "defaults:\n  - loss: policy_distillation\n", "loss.temprature=1")
