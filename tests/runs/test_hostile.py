"""Malformed configurations, tensors and files, made up by hypothesis: each is a clear error, or harmless.

Clear is a ValueError, TypeError, CheckpointError or OSError whose text says what was got; never another exception, a
hang or a wrong number. Together more than two hundred cases a run.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import struct
import tempfile
from pathlib import Path

import hydra
import pytest
import torch
from ale_py import roms
from checking import check
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from parts import SLOTS, WalkEnv, small_run
from rtpd_atari import check_names
from settings import Config
from tensordict import TensorDict
from torchrl.checkpoint import CheckpointError
from torchrl.data import Categorical

from torchrl_rtpd import DistillationLoss, FrameStackStorage, make_actor, make_replay_buffer
from torchrl_rtpd import functional as RF
from torchrl_rtpd.files.pretrained import load_pretrained
from torchrl_rtpd.files.verified import StateAdapter, VerifiedCheckpoint
from torchrl_rtpd.files.weights import load_weights, save_weights
from torchrl_rtpd.runs.checkpoints import newest_checkpoint
from torchrl_rtpd.runs.metrics import MetricsFile, read_metrics

EXAMPLES = Path(__file__).parents[2] / "examples"
many = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
some = settings(many, max_examples=30)

RULES = {entry.name: entry.metadata["rule"] for entry in dataclasses.fields(Config)}
NUMBERS = [key for key, rule in RULES.items() if rule.within is not None]
TYPED = [key for key in NUMBERS if not RULES[key].choices]  # the others take names as well
FAR = st.one_of(
    st.integers(-(2**62), -1), st.floats(max_value=-1e-6), st.just(float("nan")), st.just(float("-inf")), st.just(2**63)
)
TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="'\"\\$,=[]{}()#:~"), min_size=3)


@pytest.fixture(scope="module")
def config():
    """The quick run's, resolved."""
    with hydra.initialize_config_dir(str(EXAMPLES / "config"), version_base="1.3"):
        return hydra.compose("rtpd_atari", ["output_dir=unused", "stop_after_evaluations=3", "export=[]"])


@many
@given(key=st.sampled_from(NUMBERS), value=FAR)
def test_a_number_out_of_range_is_an_error_that_names_its_key(config, key, value):
    """Refused by the schema, or by the range that the message holds."""
    changed = OmegaConf.create(OmegaConf.to_container(config))
    changed[key] = value
    with pytest.raises(ValueError, match=rf"^{key} must lie in .*: got "):
        check(changed)


@many
@given(key=st.sampled_from(TYPED), value=TEXT)
def test_a_word_where_a_number_belongs_is_refused_by_the_schema(config, key, value):
    """With the key's name."""
    changed = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.to_container(config))
    with contextlib.suppress(ValueError):
        float(value)
        return  # a number after all, such as "1e5"
    with pytest.raises(OmegaConfBaseException, match=key):
        changed[key] = value


@many
@given(
    key=st.sampled_from(["method", "divergence", "loss_function", "on_divergence", "device", "temperature", "game"]),
    value=TEXT,
)
def test_an_unknown_name_is_an_error_that_names_it(config, key, value):
    assume(
        value not in RULES[key].choices and value not in ("cpu", *roms.get_all_rom_ids())
    )  # hypothesis draws our words, too
    changed = OmegaConf.create(OmegaConf.to_container(config))
    changed[key] = value
    with pytest.raises(ValueError, match=r"(must be one of|must be cpu|must lie in|unknown game).*"):
        check(changed)
        check_names(changed)


SHAPES = st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple)


@many
@given(
    function=st.sampled_from(
        [RF.forward_kl, RF.reverse_kl, RF.jensen_shannon, RF.q_mse, RF.q_huber, RF.greedy_nll, RF.greedy_agreement]
    ),
    teacher=SHAPES,
    student=SHAPES,
)
def test_tensors_of_different_shapes_are_refused_with_both(function, teacher, student):
    """Nothing is broadcast."""
    if teacher == student:
        student = (*student, 2)
    with pytest.raises(ValueError, match=r"shape|got \["):
        function(torch.zeros(teacher), torch.zeros(student))


@some
@given(actions=st.integers(1, 7).filter(lambda actions: actions != 3), batch=st.integers(1, 4))
def test_a_teacher_with_other_actions_is_refused(actions, batch):
    student = make_actor("net17", Categorical(3), seed=0)
    loss = DistillationLoss(student)
    pixels = torch.zeros(batch, 4, 84, 84, dtype=torch.uint8)
    values = TensorDict({"pixels": pixels, ("teacher", "action_value"): torch.zeros(batch, actions)}, [batch])
    with pytest.raises(ValueError, match=r"teacher and student disagree"):
        loss(values)


@pytest.fixture(scope="module")
def rollout():
    """Two games of four steps, as a collector yields them."""
    return WalkEnv().rollout(4, break_when_any_done=False).reshape(-1)


@many
@given(
    key=st.sampled_from(["pixels", ("next", "pixels"), ("next", "done"), ("next", "reward"), "action"]),
    change=st.sampled_from(["drop", "float", "cut", "narrow", "noise"]),
    seed=st.integers(0, 99),
)
def test_a_malformed_write_is_refused_and_stores_nothing(rollout, key, change, seed):
    """After a sound one; entries that are only stored may hold whatever fits."""
    storage = FrameStackStorage(16, num_envs=SLOTS, steps_per_write=4, n_step=2)
    buffer = make_replay_buffer(storage, batch_size=2)
    buffer.extend(rollout)
    storage.cut()
    bad = rollout.clone()
    value = bad[key]
    if change == "drop":
        bad = bad.exclude(key)
    elif change == "float":
        bad[key] = value.double() / 3
    elif change == "cut":
        bad = bad[: 1 + seed % 7]
    elif change == "narrow":
        bad[key] = value[..., :0] if value.ndim > 1 else value[:, None]
    else:
        noise = torch.randint(0, 255, value.shape, generator=torch.Generator().manual_seed(seed))
        bad[key] = noise.to(value.dtype)
    harmless = change == "noise" and key in (("next", "reward"), "action")
    if harmless:
        return
    with pytest.raises((ValueError, TypeError), match="got"):
        buffer.extend(bad)
    assert len(buffer) == 8 and storage._num_written == 8


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A whole checkpoint, and a run that could be put there."""
    folder = tmp_path_factory.mktemp("run")
    run = small_run(folder, 32)
    run.trainer.train()
    return run.saver.latest(), small_run(folder, 32)


def _damage(file: Path, how: str, where: float, length: int, byte: int) -> None:
    content = bytearray(file.read_bytes())
    place = min(int(where * len(content)), len(content) - 1)
    if how == "change":
        content[place] ^= byte or 1
    elif how == "truncate":
        content = content[:place]
    elif how == "insert":
        content[place:place] = bytes([byte]) * length
    elif how == "zero":
        content[place : place + length] = bytes(len(content[place : place + length]))
    else:
        content = bytearray()
    file.write_bytes(content)


DAMAGE = {
    "how": st.sampled_from(["change", "truncate", "insert", "zero", "empty"]),
    "where": st.floats(0, 1),
    "length": st.integers(1, 1000),
    "byte": st.integers(0, 255),
}


@many
@given(number=st.integers(0, 1000), **DAMAGE)
def test_a_damaged_checkpoint_is_refused_whatever_was_damaged(
    checkpoint, tmp_path_factory, number, how, where, length, byte
):
    """Before anything is loaded."""
    source, _ = checkpoint
    path = tmp_path_factory.mktemp("damaged") / source.name
    shutil.copytree(source, path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    file = files[number % len(files)]
    before = file.read_bytes()
    _damage(file, how, where, length, byte)
    if file.name == "sealed.json" and _same_seal(before, file.read_bytes()):
        VerifiedCheckpoint.verify(path)  # blanks between its words, say
    elif file.read_bytes() != before:
        with pytest.raises(CheckpointError, match=r"damaged|must be a checkpoint folder|files of its seal|read: got"):
            newest_checkpoint(path)
    shutil.rmtree(path.parent)


def _same_seal(before: bytes, after: bytes) -> bool:
    try:
        first, second = json.loads(before), json.loads(after)
        return first["files"] == second["files"] and second["format"] == first["format"] and 1 <= second["version"] <= 2
    except (ValueError, TypeError, KeyError):
        return False


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FORGED = st.one_of(
    JUNK,
    JUNK.map(lambda junk: {"dict": junk}),
    JUNK.map(lambda junk: {"tensor": junk}),
    st.text(max_size=6).map(lambda name: {"dict": [[name, {"tensor": "000000"}]]}),
    st.lists(st.integers(-9, 9), max_size=5).map(lambda stride: {"tensor": "000000", "stride": stride}),
)


COMPONENTS = ["loss_module", "optimizer", "random", "collector", "replay_buffer", "trainer_state"]
COMPONENTS += ["trainer_module.run_monitor", "trainer_module.real_time_distill"]


def _forge(path: Path, component: str, state: object) -> None:
    """Write another state under a seal that fits: somebody who can write the folder can do that."""
    folder = next(path.glob(f"components/*-{component}"))
    text = json.dumps({"version": 2, "state": state}).encode()
    (folder / "state.json").write_bytes(text)
    seal = json.loads((path / "sealed.json").read_text())
    entry = seal["files"][(folder / "state.json").relative_to(path).as_posix()]
    entry.update(size=len(text), sha256=hashlib.sha256(text).hexdigest())
    (path / "sealed.json").write_text(json.dumps(seal))


@many
@given(
    component=st.sampled_from(COMPONENTS),
    state=FORGED,
)
def test_a_forged_state_is_refused_by_the_name_of_its_part(forged, component, state):
    """Also where the checksums fit; the part is named, and nothing is run."""
    _refused(*forged, component, state)


def _refused(source, run, folder, component, state):
    path = Path(tempfile.mkdtemp(dir=folder)) / source.name
    shutil.copytree(source, path)
    _forge(path, component, state)
    with pytest.raises(CheckpointError, match=component.replace(".", r"\.")):
        run.saver.restore(path)
    shutil.rmtree(path)


@pytest.fixture
def forged(checkpoint, tmp_path):
    """A checkpoint to forge, a run to restore, a folder, in one, so that a failing case prints little."""
    return (*checkpoint, tmp_path)


def test_a_state_nested_beyond_measure_is_refused(checkpoint, tmp_path):
    """Whatever the depth at which Python itself would give up."""
    source, run = checkpoint
    path = tmp_path / source.name
    shutil.copytree(source, path)
    text = '{"version": 2, "state": ' + '{"list": [' * 100_000 + "]}" * 100_000 + "}"
    folder = next(path.glob("components/*-random"))
    (folder / "state.json").write_text(text)
    seal = json.loads((path / "sealed.json").read_text())
    digest = hashlib.sha256(text.encode()).hexdigest()
    seal["files"][f"components/{folder.name}/state.json"] = {"size": len(text), "sha256": digest}
    (path / "sealed.json").write_text(json.dumps(seal))
    with pytest.raises(CheckpointError, match=r"component 'random' of a checkpoint must be .* RecursionError"):
        run.saver.restore(path)


@pytest.mark.parametrize("escape", ["../outside", "/etc/passwd", "components/../../outside"])
def test_a_path_that_leaves_the_checkpoint_is_refused(checkpoint, tmp_path, escape):
    """In the seal, in the manifest and as a link."""
    source, _ = checkpoint
    (tmp_path / "outside").write_text("secret")
    for place in ("sealed.json", "manifest.json"):
        path = tmp_path / place / source.name
        shutil.copytree(source, path)
        text = (path / place).read_text()
        name = next(path.glob("components/*loss_module")).relative_to(path).as_posix()
        (path / place).write_text(text.replace(name, escape))
        if place == "manifest.json":
            seal = json.loads((path / "sealed.json").read_text())
            content = (path / place).read_bytes()
            seal["files"][place] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            (path / "sealed.json").write_text(json.dumps(seal))
        with pytest.raises(CheckpointError, match=r"files of its seal|Unsafe archive member path"):
            VerifiedCheckpoint.verify(path)
    path = tmp_path / "link" / source.name
    shutil.copytree(source, path)
    file = next(path.glob("components/*loss_module/state.json"))
    shutil.move(file, tmp_path / "moved.json")
    file.symlink_to(tmp_path / "moved.json")
    with pytest.raises(CheckpointError, match="is a link or leads elsewhere"):
        VerifiedCheckpoint.verify(path)


@some
@given(**DAMAGE)
def test_a_damaged_weights_file_is_refused_or_holds_other_numbers(tmp_path_factory, how, where, length, byte):
    """Weights alone have no seal: what is read fits the network, or is an error."""
    folder = tmp_path_factory.mktemp("weights")
    network = make_actor("net17", Categorical(3), seed=0)
    save_weights(network, folder / "w.safetensors")
    torch.save(network.state_dict(), folder / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        _damage(folder / name, how, where, length, byte)
        with contextlib.suppress(ValueError):  # OSError, RuntimeError and the like would be seen
            load_pretrained(make_actor("net17", Categorical(3), seed=1), folder / name)
        if name.endswith("safetensors"):
            with contextlib.suppress(ValueError):
                load_weights(make_actor("net17", Categorical(3), seed=1), folder / name)
    shutil.rmtree(folder)


@some
@given(
    header=st.one_of(st.binary(max_size=60), JUNK.map(lambda junk: json.dumps(junk).encode())),
    size=st.integers(0, 2**63),
)
def test_a_crafted_header_is_refused(tmp_path_factory, header, size):
    """Also one that claims to be larger than any memory."""
    folder = tmp_path_factory.mktemp("crafted")
    for claimed in (size, len(header)):
        (folder / "w.safetensors").write_bytes(struct.pack("<Q", claimed) + header)
        with pytest.raises(ValueError, match=r"must hold tensors|another architecture"):
            load_pretrained(make_actor("net17", Categorical(3), seed=1), folder / "w.safetensors")
    shutil.rmtree(folder)


@some
@given(**DAMAGE)
def test_a_damaged_metrics_file_is_refused_by_its_line_or_read_as_numbers(tmp_path_factory, how, where, length, byte):
    folder = tmp_path_factory.mktemp("metrics")
    metrics = MetricsFile(folder / "metrics.csv", ["steps", "teacher/score"])
    for step in range(20):
        metrics.append({"steps": step, "teacher/score": step / 3})
    _damage(metrics.path, how, where, length, byte)
    with contextlib.suppress(ValueError):
        columns = read_metrics(metrics.path)
        assert all(isinstance(value, float) for column in columns.values() for value in column)
    shutil.rmtree(folder)


@some
@given(**DAMAGE)
def test_a_damaged_storage_file_is_refused_or_holds_other_bytes(tmp_path_factory, rollout, how, where, length, byte):
    folder = tmp_path_factory.mktemp("storage")
    storage = FrameStackStorage(16, num_envs=SLOTS, steps_per_write=4)
    make_replay_buffer(storage, batch_size=2).extend(rollout)
    storage.dumps(folder)
    _damage(folder / "frames.pt", how, where, length, byte)
    with contextlib.suppress(ValueError):
        FrameStackStorage(16, num_envs=SLOTS, steps_per_write=4).loads(folder)
    shutil.rmtree(folder)


@some
@given(number=st.integers(0, 6), shape=SHAPES)
def test_a_replay_of_other_shapes_is_refused(number, shape):
    """Tensor by tensor, with both shapes."""
    storage = FrameStackStorage(16, num_envs=2, steps_per_write=4)
    state = dict(storage.state_dict())
    name = [name for name in storage._STATE if isinstance(state[name], torch.Tensor)][number % 5]
    if shape == tuple(state[name].shape):
        return
    state[name] = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"a saved storage of 16 transitions has"):
        storage.load_state_dict(state)


@pytest.mark.parametrize("value", [object(), {1, 2}, torch.device("cpu"), b"bytes", 1j])
def test_a_state_that_is_no_data_is_refused_when_it_is_saved(tmp_path, value):
    """By the name of its place; nothing is written."""

    class Part:
        def state_dict(self):
            return {"inner": [value]}

        def load_state_dict(self, state_dict):
            """Nothing."""

    with pytest.raises(TypeError, match=rf"got {type(value).__name__} at part\.inner\[0\]"):
        VerifiedCheckpoint(part=Part()).save(tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []


def test_only_adapters_without_pickle_are_taken():
    from torchrl.checkpoint import StateDictCheckpointAdapter

    with pytest.raises(TypeError, match="holds no pickle, so its adapters are StateAdapter: got StateDictCheckpointA"):
        VerifiedCheckpoint().register("part", torch.nn.Linear(1, 1), adapter=StateDictCheckpointAdapter())
    VerifiedCheckpoint().register("part", torch.nn.Linear(1, 1), adapter=StateAdapter("part"))
