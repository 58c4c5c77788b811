"""The benchmarks, with as little work as they take, so that they are known to run when an idle machine can be had."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import runpy
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Categorical

from docs.pages.gpu import loop_lines
from torchrl_rtpd import DistillationLoss, PQNLoss, make_actor

BENCHMARKS = Path(__file__).parent / "benchmarks"
SMALL = {
    "bench_env.py": [
        *["--repetitions", "2", "--envs", "2", "--steps", "2"],
        *["--most_games", "8", "--sweep_steps", "2"],
    ],
    "bench_replay.py": ["--repetitions", "2", "--capacity", "640"],
    "bench_collector.py": ["--repetitions", "1", "--envs", "2"],
    "bench_objectives.py": ["--repetitions", "2"],
    "bench_fleet.py": ["--repetitions", "1", "--steps", "1700"],
    "bench_profile.py": ["total_steps=640", "warmup_steps=320"],
    "bench_memory.py": ["--capacity", "4096", "--updates", "800"],
    "bench_threads.py": ["--repeats", "1", "--steps", "128", "--start", "64"],
    "bench_arrangements.py": ["--repetitions", "1", "--batch", "4", "--threads", "1"],
    "bench_causes.py": ["--rounds", "1", "--repeats", "2"],
    "bench_loop.py": [
        *["--repeats", "1", "--steps", "640", "--start", "320"],
        *["--task", "student", "--neighbour", "none", "--threads", "1"],
    ],
    "bench_pqn.py": [
        *["--repeats", "1", "--rollouts", "2", "--threads", "1", "--sizes", "32 x 32", "--memory_envs", "2"],
    ],
    "bench_kills.py": ["--kills", "1"],
    "bench_checkpoint.py": ["--capacity", "4000", "--repetitions", "2"],
    "bench_deploy.py": [
        *["--games", "road_runner", "--networks", "net17", "--turns", "2"],
        *["--frames", "64", "--episodes", "2", "--max_steps", "100"],
    ],
    "bench_soak.py": ["--minutes", "1", "--threads", "1", "--capacity", "640"],
    "bench_search.py": ["--games", "1", "--seeds", "1", "--steps", "1024", "--episodes", "10"],
    "bench_cluster.py": ["--repetitions", "2", "--collectors", "2", "--batches", "8"],
    "bench_distributed.py": ["--seeds", "1", "--steps", "1024", "--games", "2"],
    "gpu.py": [
        *["--device", "cpu", "--no-compile", "--repetitions", "1", "--steps", "640", "--patience", "20"],
        *["--seconds", "1100", "--run"],
        *["preset=pqn_quick", "game=pong", "students=[net17]", "total_steps=256", "num_envs=4", "rollout_steps=16"],
        *["batch_size=32", "evaluate_every_steps=128", "evaluate_from_steps=0", "evaluation_episodes=2"],
        *["final_episodes=2", "max_episode_steps=30", "checkpoint_every_steps=64", "threads=1", "epsilon_steps=128"],
    ],
}


NEED_RAY = ("bench_cluster.py", "bench_distributed.py")


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize(
    "script", [pytest.param(name, marks=pytest.mark.ray if name in NEED_RAY else ()) for name in SMALL]
)
def test_every_benchmark_runs_and_says_where(script: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    subprocess.run([sys.executable, str(BENCHMARKS / script), "--out", str(out), *SMALL[script]], check=True)
    result = json.loads(out.read_text())
    assert len(result) > 1 and {"command", "commit", "cpu"} <= result["environment"].keys()


@pytest.fixture(scope="module")
def gpu():
    """Parts of the script for a machine with a GPU, as modules."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from gpu_parts import checks, game, loop, saving, update
    finally:
        sys.path.remove(str(BENCHMARKS))
    return types.SimpleNamespace(checks=checks, game=game, loop=loop, saving=saving, update=update)


def test_a_part_that_is_cut_off_leaves_what_it_found_and_goes_on_from_there(gpu, tmp_path: Path) -> None:
    """In the file as soon as it is found, and marked as unfinished until all of it is there."""
    out = tmp_path / "gpu.json"
    save = functools.partial(gpu.saving.add_to, out, "part", "cpu", time.perf_counter())
    seen = []

    def slow(found: dict) -> None:
        for name in [name for name in ("first", "second") if name not in found]:
            found[name] = 1
            seen.append(gpu.saving.read(out)["part"])
            time.sleep(30 if len(seen) == 1 else 0)

    cut = gpu.saving.limited(slow, 0.2, {}, save)
    assert cut == {"first": 1, "error": "OutOfTime: cut off after 0 s"}
    assert gpu.saving.limited(slow, 60, cut, save) == {"first": 1, "second": 1}
    assert seen == [{"first": 1, "error": "not finished"}, {"first": 1, "second": 1, "error": "not finished"}]
    assert gpu.saving.read(out)["made"]["part"].keys() == {"command", "commit", "device", "date", "seconds"}


def test_a_part_that_fails_says_so_and_does_not_end_the_script(gpu) -> None:
    assert gpu.saving.limited(lambda _: {"fine": 1}, 60, {"error": "before"}, lambda _: None) == {"fine": 1}
    found = gpu.saving.limited(lambda _: 1 / 0, 60, {"kept": 1}, lambda _: None)
    assert found == {"kept": 1, "error": "ZeroDivisionError: division by zero"}


def test_a_guard_in_an_update_of_the_script_leaves_out_what_is_not_finite(gpu, monkeypatch) -> None:
    monkeypatch.setitem(gpu.update.FLEETS, "the paper's five", ["net17"])
    found = gpu.checks.guarded("cpu", updates=14)
    assert (found["left_out"], found["finite"]) == (2, True)
    assert found["identical_to_never_made"] == {"teacher": True, "net17": True}


@pytest.mark.parametrize("method", ["dqn", "pqn"])
def test_a_captured_update_of_the_script_is_the_uncaptured_one(gpu, monkeypatch, method: str) -> None:
    monkeypatch.setitem(gpu.update.FLEETS, "the paper's five", ["net17"])
    found = gpu.checks.captured_is_same("cpu", 3, method)
    assert found["largest_difference_of_weights"] == {"teacher": 0.0, "net17": 0.0}
    assert found["teacher_identical_without_students"] == {"eager": True, "captured": True}


def test_loops_of_the_script_say_where_their_time_goes(gpu, monkeypatch) -> None:
    """Shares of one second add up to it; a second call measures what is missing alone. The page shows them."""
    monkeypatch.setattr(gpu.loop, "FLEETS", {"teacher": [], "one student": ["net17"]})
    kept = {"steps_per_second": 1.0, "shares": {"learning": 1.0}}
    found = {"dqn, teacher": kept, "pqn, teacher": kept, "dqn, one student": kept}
    gpu.loop.loops(found, "cpu", 0.0, gpu.loop.TINY)
    assert found["dqn, teacher"] is kept
    measured = found["pqn, one student"]
    assert measured["steps"] == 8 and measured["steps_per_second"] > 0
    assert measured["shares"].keys() == {"environment", "inference", "learning", "rest"}
    assert sum(measured["shares"].values()) == pytest.approx(1.0)
    assert all(share > 0 for share in measured["shares"].values())
    assert "| PQN, one student |" in "\n".join(loop_lines(found))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_of_the_script_that_is_cut_goes_on_with_the_next_call(gpu, tmp_path: Path) -> None:
    """It is told to stop, saves itself, and ends at the steps asked for. A busy machine needs a second try."""
    keys = ["preset=pqn_quick", "game=pong", "students=[net17]", "total_steps=8192", "num_envs=4", "rollout_steps=16"]
    keys += ["batch_size=32", "evaluate_every_steps=8192", "evaluate_from_steps=0", "evaluation_episodes=2"]
    keys += ["threads=1", "final_episodes=2", "max_episode_steps=30", "checkpoint_every_steps=1024"]
    found: dict = {}
    for seconds in (8, 16, 32, 64):
        if not found.get("steps"):
            with pytest.raises(TimeoutError, match=r"the run is at step [\d,]+; call again to go on"):
                gpu.game.game(found, "cpu", gpu.game.SAVING + seconds, tmp_path / "run", keys)
    cut = found["steps"]
    gpu.game.game(found, "cpu", 600.0, tmp_path / "run", keys)
    assert 0 < cut < found["finished"]["steps"] == 8192
    assert f"resume={tmp_path / 'run'}" in found["command"]


def test_a_run_of_the_script_that_fails_says_what_it_printed(gpu, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"the run is at step 0; [\s\S]* it printed: [\s\S]*no_such_key"):
        gpu.game.game({}, "cpu", 200.0, tmp_path / "run", ["no_such_key=1"])


def test_every_benchmark_is_among_them() -> None:
    helpers = {"main_example.py", "neighbours.py", "turns.py", "pqn_by_hand.py", "pqn_ours.py"}
    assert {path.name for path in BENCHMARKS.glob("*.py")} == SMALL.keys() | helpers


# The main benchmark


@pytest.fixture(scope="module")
def bench_loop():
    """The benchmark, as a module."""
    return _benchmark("bench_loop")


@pytest.mark.parametrize("program", ["plain", "plain_kept"])
def test_the_speed_benchmark_times_the_method_by_hand(program: str, bench_loop) -> None:
    """The very file of the examples, which says a speed, with freed memory kept or not."""
    assert str(Path(__file__).parents[1] / "examples" / "by_hand.py") in " ".join(bench_loop.OTHERS[program])
    sizes = {"game": "road_runner", "steps": 48, "start": 32, "envs": 4, "batch": 4, "every": 4, "threads": 1}
    assert bench_loop.other(bench_loop.OTHERS[program], argparse.Namespace(**sizes), 0) > 0


def test_a_program_that_fails_is_named_with_what_it_printed(bench_loop) -> None:
    sizes = {"game": "pong", "steps": 1, "start": 1, "envs": 1, "batch": 1, "every": 1, "threads": 1}
    command = [sys.executable, "-c", "raise SystemExit('no such game')"]
    with pytest.raises(RuntimeError, match=r"--seed 3 --game pong .* failed:\nno such game"):
        bench_loop.other(command, argparse.Namespace(**sizes), 3)


def test_the_speed_benchmark_compares_with_others_in_one_task_only(bench_loop) -> None:
    """Other tasks have ours and the older commit; bfloat16 is left out where the CPU has no instructions for it."""
    options = argparse.Namespace(against=Path("old"), peers="python", cleanrl=Path("cleanrl"), cleanrl_python="python")
    assert list(bench_loop.programs("quick", options, True)) == ["ours", "ours_in_turn", "before"]
    everything = bench_loop.programs("student", options, True).keys()
    assert everything == {*bench_loop.VARIANTS, "before", *bench_loop.OTHERS, "stable_baselines3", "cleanrl"}
    assert everything - bench_loop.programs("student", options, False).keys() == {"ours_bfloat16"}


def test_ratios_of_the_speed_benchmark_are_medians_over_rounds(bench_loop) -> None:
    """6 / 3, 8 / 2 and 5 / 5."""
    found = bench_loop.summary({"quick": {"10": {"ours": [6.0, 8.0, 5.0], "before": [3.0, 2.0, 5.0]}}})
    assert found["medians"] == {"quick": {"10": {"ours": 6.0, "before": 3.0}}}
    assert found["ours_over"] == {"quick": {"10": {"ours": 1.0, "before": 2.0}}}


def test_another_checkout_runs_its_own_example_without_keys_that_it_does_not_know(bench_loop, tmp_path: Path) -> None:
    """The older example fails on any key but its three, and in another folder than its own."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "settings.py").write_text(
        "class Config:\n    output_dir: str = ''\n    threads: int = 2\n    seed: int = 0\n"
    )
    (tmp_path / "examples" / "rtpd_atari.py").write_text(
        "import json, os, sys\n"
        "keys = dict(word.split('=') for word in sys.argv[1:])\n"
        "folder = keys.pop('output_dir')\n"
        "assert keys == {'threads': '1', 'seed': '4'}, keys\n"
        "assert os.environ['PYTHONPATH'].split(os.pathsep)[0] == os.getcwd()\n"
        "json.dump({'steps_per_second': 12.5}, open(f'{folder}/results.json', 'w'))\n"
    )
    numbers = {"steps": 8, "start": 4, "envs": 2, "batch": 4, "every": 4, "rollout_steps": 2, "threads": 1}
    options = argparse.Namespace(against=tmp_path, game="pong", **numbers)
    assert bench_loop.before("student", options, 4) == 12.5


def test_a_neighbour_has_the_niceness_asked_for_and_ends_with_its_parent() -> None:
    """Its parent is killed, and so cannot end it."""
    parent = (
        "import os, time\n"
        "from pathlib import Path\n"
        "from neighbours import neighbour\n"
        "with neighbour(3):\n"
        "    time.sleep(1)\n"
        "    child = Path(f'/proc/self/task/{os.getpid()}/children').read_text().strip()\n"
        "    print(child, os.getpriority(os.PRIO_PROCESS, int(child)) - os.nice(0), flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, cwd=BENCHMARKS)
    child, nicer = done.stdout.split()
    assert nicer == "3"
    status = Path(f"/proc/{child}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError(f"process {child} still runs")


@pytest.fixture(scope="module")
def cleanrl_dqn():
    """The runner of CleanRL's script, as the names in it."""
    pytest.importorskip("tensorboard")
    return types.SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "peers" / "cleanrl_dqn.py")))


def foreign_dqn(checkout: Path, script: str) -> argparse.Namespace:
    """Options of a run of a checkout that has this script as its DQN."""
    (checkout / "cleanrl").mkdir()
    (checkout / "cleanrl" / "dqn_atari.py").write_text(script)
    numbers = {"steps": 640, "start": 320, "batch": 32, "every": 4, "threads": 3, "seed": 1}
    return argparse.Namespace(cleanrl=checkout, game="road_runner", **numbers)


LOG_SPEEDS = """import os, sys
from torch.utils.tensorboard import SummaryWriter
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert given["--env-id"] == "RoadRunnerNoFrameskip-v4" and given["--train-frequency"] == "4"
assert os.environ["OMP_NUM_THREADS"] == "3" and os.environ["PYTHONPATH"] == {checkout!r}
with SummaryWriter("runs/one") as writer:
    for step, seconds in {points}:
        writer.add_scalar("charts/SPS", 1, step, walltime=seconds)
"""


def test_a_foreign_dqn_is_timed_between_the_points_that_it_logs(cleanrl_dqn, tmp_path: Path) -> None:
    """From step 400 at 10 s to step 600 at 14 s: 50 steps a second."""
    points = [(400, 10.0), (500, 13.0), (600, 14.0)]
    options = foreign_dqn(tmp_path, LOG_SPEEDS.format(checkout=str(tmp_path), points=points))
    assert cleanrl_dqn.trained(options) == 50.0
    assert [path.name for path in tmp_path.iterdir()] == ["cleanrl"]  # nothing is written into the checkout


def test_a_foreign_dqn_that_fails_or_logs_too_little_is_refused(cleanrl_dqn, tmp_path: Path) -> None:
    options = foreign_dqn(tmp_path, "raise SystemExit('no ROM')")
    with pytest.raises(RuntimeError, match=r"dqn_atari.py --no-cuda .* failed:\nno ROM"):
        cleanrl_dqn.trained(options)
    script = LOG_SPEEDS.format(checkout=str(tmp_path), points=[(400, 10.0)])
    (tmp_path / "cleanrl" / "dqn_atari.py").write_text(script)
    with pytest.raises(RuntimeError, match=r"points of charts/SPS in the script's log: 1, two are needed"):
        cleanrl_dqn.trained(options)


# The plain loop of PQN


@pytest.fixture(scope="module")
def pqn_by_hand():
    """The plain loop, as a module."""
    return _benchmark("pqn_by_hand")


@pytest.fixture(scope="module")
def bench_pqn():
    """The benchmark, as a module."""
    return _benchmark("bench_pqn")


def _benchmark(name: str):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_the_plain_loop_of_pqn_needs_nothing_of_the_package(pqn_by_hand) -> None:
    """At most 250 lines; what it takes on request is a setting of the C library."""
    text = Path(pqn_by_hand.__file__).read_text()
    assert len(text.splitlines()) <= 250
    assert [line.strip() for line in text.splitlines() if "import" in line and "rtpd" in line] == [
        "from torchrl_rtpd.runs.process import keep_freed_memory"
    ]
    assert "torchrl." not in text.replace("torchrl_rtpd.", "")


def test_the_plain_loop_has_the_returns_of_a_rollout(pqn_by_hand) -> None:
    """Rewards 1, 2, 3 and a life lost at the second: 3 + 0.99 * 40; 2; 1 + 0.99 * (0.35 * 10 + 0.65 * 2)."""
    rollout = pqn_by_hand.Rollout(3, 1)
    for row, values in zip(
        (rollout.reward, rollout.over, rollout.worth), ([1, 2, 3], [0, 1, 0], [5, 10, 20]), strict=True
    ):
        row.copy_(torch.tensor(values, dtype=torch.float32)[:, None])
    found = rollout.returns(torch.tensor([40.0])).flatten().tolist()
    assert found == pytest.approx([5.752, 2.0, 42.6])


def test_an_update_of_the_plain_loop_is_the_packages(pqn_by_hand) -> None:
    """Teacher and student, from the same weights and minibatch: the same new weights."""
    torch.manual_seed(0)
    learners = pqn_by_hand.make_learners(6)
    actors = [make_actor(name, Categorical(6), norm="layer") for name in ("teacher", "net17")]
    for learner, network in zip(learners, actors, strict=True):
        for one, other in zip(learner.network.parameters(), network.parameters(), strict=True):
            other.data.copy_(one.data)
    pixels = torch.randint(256, (8, 4, 84, 84), dtype=torch.uint8)
    action, target = torch.randint(6, (8,)), torch.randn(8)
    losses = PQNLoss(actors[0]), DistillationLoss(actors[1], teacher_temperature=0.1, student_temperature=0.1)
    optimizers = (
        torch.optim.RAdam(losses[0].parameters(), lr=2.5e-4),
        torch.optim.Adam(losses[1].parameters(), lr=1e-3, eps=1e-5, fused=True),
    )
    batch = TensorDict({"pixels": pixels, "action": action, "value_target": target[:, None]}, [8])

    pqn_by_hand.learn(pqn_by_hand.scaled(pixels), action, target, *learners)
    for loss, optimizer, norm in zip(losses, optimizers, (10.0, None), strict=True):
        out = loss(batch)
        sum(value for key, value in out.items() if key.startswith("loss")).backward()
        if norm is not None:
            torch.nn.utils.clip_grad_norm_(loss.parameters(), norm)
        optimizer.step()

    for learner, network in zip(learners, actors, strict=True):
        pairs = list(zip(learner.network.parameters(), network.parameters(), strict=True))
        assert len(pairs) == 18
        for one, other in pairs:
            torch.testing.assert_close(one.data, other.data, rtol=0, atol=2e-5)


def test_the_plain_loop_plays_and_learns(pqn_by_hand, capsys: pytest.CaptureFixture[str]) -> None:
    """Two rollouts of 8 steps in minibatches of 4, two epochs: eight updates."""
    numbers = {"envs": 2, "rollout": 4, "batch": 4, "epochs": 2, "steps": 16, "threads": 1}
    returned = pqn_by_hand.main([word for name, number in numbers.items() for word in (f"--{name}", str(number))])
    assert json.loads(capsys.readouterr().out) == returned
    assert returned["updates"] == 8 and returned["steps_per_second"] > 0


def test_a_foreign_script_is_timed_by_the_lines_that_it_prints(bench_pqn, tmp_path: Path) -> None:
    """A script that works for 0.2 s after its first rollout of 8 steps, which takes longer and is left out."""
    (tmp_path / "cleanrl").mkdir()
    (tmp_path / "cleanrl" / "pqn_atari_envpool.py").write_text(
        "import time\n"
        "def work(seconds):\n"
        "    end = time.process_time() + seconds\n"
        "    while time.process_time() < end: pass\n"
        "work(0.6)\nprint('SPS: 1')\nwork(0.2)\nprint('SPS: 2')\n"
    )
    options = argparse.Namespace(
        game="space_invaders", rollouts=2, threads=1, cleanrl=tmp_path, cleanrl_python=sys.executable
    )
    found = bench_pqn.run_cleanrl(options, 0, {"envs": 2, "rollout": 4, "batch": 4, "epochs": 1})
    assert found["steps_per_cpu_second"] == pytest.approx(8 / 0.2, rel=0.25)
    assert 0 < found["steps_per_second"] < 1.1 * 8 / 0.2


def test_a_foreign_script_that_fails_is_named(bench_pqn, tmp_path: Path) -> None:
    options = argparse.Namespace(game="pong", rollouts=2, threads=1, cleanrl=tmp_path, cleanrl_python=sys.executable)
    with pytest.raises(RuntimeError, match=r"--env-id Pong-v5 .* failed or printed no speeds; run it by hand"):
        bench_pqn.run_cleanrl(options, 0, {"envs": 2, "rollout": 4, "batch": 4, "epochs": 1})


def test_ratios_are_those_of_programs_with_the_same_networks(bench_pqn) -> None:
    """Ours with a student over the loop with one; ours alone over CleanRL's script. Medians over three rounds."""
    runs = {
        "ours": [2.0, 6.0, 5.0],
        "plain": [1.0, 2.0, 5.0],
        "ours_alone": [9.0, 8.0, 6.0],
        "cleanrl": [3.0, 2.0, 6.0],
    }
    found = bench_pqn.summary({"steps_per_second": runs})["steps_per_second"]
    assert found["ours_over"] == {"plain": 2.0, "cleanrl": 3.0}
    assert found["medians"] == {"ours": 5.0, "plain": 2.0, "ours_alone": 8.0, "cleanrl": 3.0}
