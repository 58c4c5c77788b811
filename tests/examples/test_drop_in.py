"""Students in stock trainers: a handful of lines, a teacher that does not notice, a score as good as the teacher's."""

import inspect
import json
import types
from pathlib import Path

import drop_in_dqn
import drop_in_ppo
import drop_in_pqn
import drop_in_two_phase
import pytest
import torch

STOCK = [drop_in_dqn, drop_in_ppo]
LIVE = [*STOCK, drop_in_pqn]  # a teacher of ours in the last
STEPS = 256  # two short batches
MARK = "# added"


@pytest.fixture
def short(monkeypatch):
    """Small batches in every script."""
    for script in (*LIVE, drop_in_two_phase):
        monkeypatch.setattr(script, "STEPS_PER_BATCH", STEPS // 2)
    for script in (drop_in_dqn, drop_in_two_phase):
        monkeypatch.setattr(script, "UPDATES_PER_BATCH", 8)


def _name(script):
    return script.__name__


def _marked(source):
    return [line for line in source.splitlines() if line.endswith(MARK)]


def _without_added_lines(script):
    """The script as its user had it: every marked line replaced by ``pass``."""
    lines = []
    for line in inspect.getsource(script).splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        lines.append(f"{indent}pass" if line.endswith(MARK) else line)
    stock = types.ModuleType(f"{script.__name__}_without_student")
    source = "\n".join(lines)
    exec(compile(source, stock.__name__, "exec"), stock.__dict__)
    for name in {"STEPS_PER_BATCH", "UPDATES_PER_BATCH"} & vars(script).keys():
        setattr(stock, name, getattr(script, name))  # shortened or not
    return stock, source


def _bits(value):
    """A state as nested plain values, so that ``==`` compares it bit for bit."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.detach().contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return {key: _bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_bits(item) for item in value]
    return value


def _teacher(trained):
    """All that the teacher is at the end of its training, and the random stream it leaves."""
    trainer, networks = trained
    return _bits(
        {
            "network": dict(networks["teacher"].state_dict()),
            "loss": dict(trainer.loss_module.state_dict()),
            "optimizer": trainer.optimizer.state_dict(),
            "updates": trainer._optim_count,
            "random": torch.get_rng_state(),
        }
    )


@pytest.mark.parametrize("script", STOCK, ids=_name)
def test_at_most_five_lines_are_added_to_a_stock_script(script):
    """Import included; what is left uses nothing of this package, and the marked lines hold one statement each."""
    source = inspect.getsource(script)
    added = _marked(source)
    assert 1 <= len(added) <= 5
    assert any("import" in line and "torchrl_rtpd" in line for line in added)
    assert not any(";" in line for line in added)
    _, stock = _without_added_lines(script)
    code = [line.split("#")[0] for line in stock.splitlines()]
    assert not any("torchrl_rtpd" in line or "Distill" in line for line in code)


@pytest.mark.parametrize("script", LIVE, ids=_name)
def test_the_teacher_is_bit_identical_without_the_added_lines(script, short):
    """Parameters, optimiser state, updates and random stream, against the same script with the lines taken out.

    The student, far smaller, has moved each of its weights.
    """
    stock, _ = _without_added_lines(script)
    alone = stock.train(STEPS, seed=3)
    alone_state = _teacher(alone)
    joint = script.train(STEPS, seed=3)
    assert list(alone[1]) == ["teacher"] and list(joint[1]) == ["teacher", "student"]
    assert alone_state["updates"] > 0
    assert alone_state == _teacher(joint)
    _check_moved(joint[1]["student"], _fresh_student(script, seed=3))
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in joint[1].items()}
    assert sizes["student"] < 0.05 * sizes["teacher"]


@pytest.mark.parametrize("script", LIVE, ids=_name)
def test_a_short_run_prints_a_table_and_leaves_results(script, short, tmp_path, capsys):
    """results.json is what run returned: command, seed, versions and the scores of both."""
    results = script.run(steps=STEPS, seed=0, episodes=2, out=tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    _check_results(results)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("teacher", "student", "random player"))


def test_two_phases_meet_in_a_checkpoint(short, tmp_path):
    """The weights drop_in_dqn.py saves are the teacher of drop_in_two_phase.py, which never changes them."""
    path = tmp_path / "teacher.pt"
    drop_in_dqn.run(steps=STEPS, seed=0, with_student=False, episodes=2, save=path)
    saved = torch.load(path, weights_only=True)
    teacher = drop_in_two_phase.load_teacher(path)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    trainer, networks = drop_in_two_phase.train(STEPS, teacher, seed=0)
    assert trainer._optim_count == 2 * drop_in_two_phase.UPDATES_PER_BATCH
    assert _bits(dict(networks["teacher"].state_dict())) == _bits(dict(saved))
    _check_moved(networks["student"], _fresh_student(drop_in_two_phase, seed=0))


def test_two_phases_in_one_command(short, tmp_path):
    """Without a checkpoint a teacher is trained first, and kept beside the results."""
    results = drop_in_two_phase.run(steps=STEPS, teacher_steps=STEPS, episodes=2, out=tmp_path)
    _check_results(results)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (tmp_path / "teacher.pt").exists()


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    """PyTorch names the tensor that does not fit."""
    path = tmp_path / "small.pt"
    torch.save(drop_in_dqn.make_actor(8, drop_in_dqn.make_env(1), seed=0).state_dict(), path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        drop_in_two_phase.load_teacher(Path(path))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("script", [*LIVE, drop_in_two_phase], ids=_name)
def test_the_full_run_ends_with_a_student_as_good_as_its_teacher(script):
    """At least 90 % of the teacher's score, the random player's taken off both; and the teacher can balance."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        results = script.run(seed=0)
    finally:
        torch.set_num_threads(threads)
    teacher, student = results["networks"]
    assert teacher["score_mean"] > 200
    assert student["normalised"] >= 0.9


def _fresh_student(script, *, seed):
    """The student before training."""
    if script is drop_in_ppo:
        return script.make_policy(16, seed=seed + 1_000)
    return script.make_actor(16, script.make_env(1), seed=seed + 1_000)


def _check_moved(network, fresh):
    pairs = list(zip(network.parameters(), fresh.parameters(), strict=True))
    assert pairs and all(not torch.equal(now, before) for now, before in pairs)


def _check_results(results):
    assert results["seed"] == 0 and results["steps"] == STEPS and results["seconds"] > 0
    assert {"command", "versions"} <= results["environment"].keys()
    assert 5 < results["random_score"] < 100
    teacher, student = results["networks"]
    assert (teacher["role"], student["role"]) == ("teacher", "student")
    assert teacher["episodes"] == student["episodes"] == 2
    assert student["score_mean"] > 5 and student["parameter_ratio"] < 0.05
