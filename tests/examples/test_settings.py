"""Keys of the main example and its twin: one home each, and help for all of them."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import hydra
import pytest
import rtpd_atari
import rtpd_classic
from checking import check
from command import spell_out
from omegaconf import OmegaConf
from settings import Config

from torchrl_rtpd.runs.config import settings_that_may_change

EXAMPLES = Path(__file__).parents[2] / "examples"
KEYS = [entry.name for entry in fields(Config)]
AGREED = """preset method game students divergence total_steps warmup_steps num_envs batch_size steps_per_update n_step
replay_capacity evaluate_every_steps evaluation_episodes seed device threads amp compile output_dir resume""".split()
EARLIER = """cudagraph overlap single_frames tensorboard progress_bar temperature student_temperature imitation td_coeff
distill_coeff learn_from acting teacher_from two_stage_epsilon rollout_steps gamma teacher_optimizer
teacher_learning_rate student_learning_rate teacher_settles student_settles recycle_every_updates target_every_updates
epsilon_end epsilon_steps loss_function evaluate_from_steps final_episodes evaluation_epsilon max_episode_steps
evaluation_seconds checkpoint_every_steps checkpoint_keep checkpoint_replay on_divergence
stop_after_evaluations""".split()
OURS = ["rtpd_atari.yaml", "rtpd_classic.yaml"]
OURS += [
    f"preset/{name}.yaml" for name in ("paper", "quick", "expert", "dqn_classic", "pqn", "pqn_quick", "pqn_classic")
]
OURS += ["teacher/pqn.yaml"]


def composed(script, *overrides):
    with hydra.initialize_config_dir(str(EXAMPLES / "config"), version_base="1.3"):
        return hydra.compose(script, list(overrides))


def test_all_keys_that_users_know_are_there():
    """Those of the contract, those of earlier versions, and the teacher's file under its new name."""
    assert set(AGREED) - {"preset"} | set(EARLIER) | {"teacher_checkpoint"} <= set(KEYS)
    assert len(KEYS) == len(set(KEYS)) > 55


@pytest.mark.parametrize(
    ("script", "overrides"),
    [
        *(("rtpd_atari", [f"preset={name}"]) for name in ("quick", "expert", "paper", "pqn_quick", "pqn")),
        ("rtpd_classic", []),
        ("rtpd_classic", ["teacher=pqn"]),
    ],
)
def test_every_key_has_a_value_that_it_takes(script, overrides):
    """From the schema, a script's file or a preset, and there are no others."""
    config = composed(script, *overrides)
    assert list(config) == KEYS and not OmegaConf.missing_keys(config)
    spell_out(config, {"rtpd_atari": rtpd_atari.ATARI, "rtpd_classic": rtpd_classic.CLASSIC}[script])
    check(config)


@pytest.mark.parametrize("name", OURS)
def test_files_hold_values_that_differ_from_the_defaults_and_nothing_else(name):
    """What a file would only repeat has its home in the schema; keys with an unset default are in each preset."""
    content = OmegaConf.to_container(OmegaConf.load(EXAMPLES / "config" / name))
    values = {key: value for key, value in content.items() if key not in ("defaults", "hydra")}
    assert values and values.keys() <= set(KEYS)
    plain = OmegaConf.structured(Config)
    repeated = [key for key in values if not OmegaConf.is_missing(plain, key) and plain[key] == values[key]]
    assert repeated == []


def test_a_key_is_explained_in_one_place():
    """No comment of a YAML file says what a key means: at most why this value, in a few words."""
    comments = {}
    for name in OURS:
        for line in (EXAMPLES / "config" / name).read_text().splitlines():
            found = re.match(r"(\w+): .*?# (.*)", line)
            if found and found[1] in KEYS:
                comments[found[1]] = found[2]
    assert 0 < len(comments) < 15
    assert all(len(comment) < 60 for comment in comments.values())


@pytest.mark.parametrize("script", ["rtpd_atari", "rtpd_classic"])
def test_help_explains_each_key_and_shows_the_scripts_own_values(script):
    """A line each, with the value that the script takes if none is given, and its meaning."""
    command = [sys.executable, str(EXAMPLES / f"{script}.py"), "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    config = composed(script)
    for entry in fields(Config):
        line = re.search(rf"^{entry.name} +(\S+) +{re.escape(entry.metadata['rule'].help)}", printed, re.MULTILINE)
        assert line and OmegaConf.create({"value": config[entry.name]}) == OmegaConf.create(f"value: {line[1]}"), entry
    assert "key=value" in printed and "--multirun" in printed
    assert f"Values are those of preset={'quick' if script == 'rtpd_atari' else 'dqn_classic'};" in printed


@pytest.mark.parametrize("given", ["teacher=pqn", "preset=pqn_quick"])
def test_help_shows_the_values_of_the_preset_that_is_taken(given):
    command = [sys.executable, str(EXAMPLES / "rtpd_atari.py"), given, "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Values are those of preset=pqn_quick;" in printed and re.search(r"^lmbda +0\.9 ", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["export=[onnx_int8]"], "rtpd_classic.py: export=onnx_int8 is for students that read raw bytes: got obs"),
        (["game=chess"], "rtpd_classic.py: game must be one of cartpole, acrobot: got 'chess'."),
        (
            ["resume=nowhere"],
            "rtpd_classic.py: no checkpoint in nowhere: there is no such folder",
        ),
        (
            ["teacher=pqn", "preset=dqn_classic"],
            "rtpd_classic.py: preset=dqn_classic is for teacher=dqn: got teacher=pqn; leave one of them out.",
        ),
        (["output_dir=used"], "rtpd_classic.py: used holds another run, of which results.json is left"),
    ],
)
def test_a_command_that_is_refused_is_answered_in_one_line(tmp_path, overrides, said):
    """Status 2, no traceback, and nothing is written."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "results.json").write_text("{}")
    command = [sys.executable, str(EXAMPLES / "rtpd_classic.py"), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["used", "results.json"]


def test_the_papers_preset_is_its_protocol():
    """25,000 updates an epoch, 100 epochs, 30 games, Nature DQN's settings."""
    config = composed("rtpd_atari", "preset=paper")
    assert config.evaluate_every_steps / config.steps_per_update == 25_000
    assert config.total_steps / config.evaluate_every_steps == 100
    assert (config.evaluation_episodes, config.evaluation_epsilon, config.gamma) == (30, 0.05, 0.99)
    assert (config.batch_size, config.replay_capacity, config.target_every_updates) == (32, 1_000_000, 10_000)
    assert (config.teacher_optimizer, config.n_step, config.teacher_settles) == ("rmsprop", 1, None)


def test_defaults_are_the_papers_where_it_has_them():
    for preset in ("paper", "expert"):
        config = composed("rtpd_atari", f"preset={preset}")
        assert (config.divergence, config.imitation, config.td_coeff) == ("forward_kl", True, 1)
        assert (config.distill_coeff, config.temperature, config.student_updates) == (1, 0.1, 1)
        assert (config.learn_from, config.acting, config.students) == ("latest", "teacher", ["net3", "net17"])


def test_a_resumed_run_may_change_how_it_is_run_and_not_what_it_learns():
    free = settings_that_may_change(Config)
    assert {"total_steps", "num_envs", "device", "threads", "schedules"} <= set(free)
    kept = {"game", "method", "students", "seed", "divergence", "temperature", "gamma", "n_step", "batch_size"}
    assert not kept & set(free)
