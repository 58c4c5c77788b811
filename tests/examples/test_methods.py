"""The methods of the main example, compared on equal terms: claims on short runs of its twin on classic control."""

import csv
import shutil
from pathlib import Path

import hydra
import pytest
import rtpd_atari
import rtpd_classic
import torch
from command import resumed_phases
from safetensors.torch import load_file

from torchrl_rtpd.runs.metrics import read_metrics

EXAMPLES = Path(__file__).parents[2] / "examples"
BATCH, WARMUP, TOTAL, EVERY = 64, 128, 512, 8
SHORT = [
    f"total_steps={TOTAL}",
    f"warmup_steps={WARMUP}",
    "rollout_steps=8",
    "batch_size=16",
    f"steps_per_update={EVERY}",
    "replay_capacity=512",
    "target_every_updates=10",
    "evaluate_every_steps=192",
    "evaluation_episodes=2",
    "final_episodes=2",
    "students=[mlp16]",
    "progress_bar=false",
]
UPDATES = (TOTAL - WARMUP + BATCH) // EVERY  # the batch that ends the warm-up already learns


def _run(folder, *overrides):
    """The results of a short run."""
    with hydra.initialize_config_dir(str(EXAMPLES / "config"), version_base="1.3"):
        config = hydra.compose("rtpd_classic", [*SHORT, f"output_dir={folder}", *overrides])
    return rtpd_atari.run(config, rtpd_classic.CLASSIC)


def _last(folder, name):
    return load_file(folder / "weights" / "last" / f"{name}.safetensors")


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of every method with one seed: folders and results by method."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("rtpd", "two_stage", "scratch", "teacher_only")}
    return {name: (folder, _run(folder, f"method={name}")) for name, folder in folders.items()}


def test_the_teacher_of_a_seed_is_the_same_in_every_method(made):
    """Alone, with a student, and as the first phase of two: equal to the last bit, and frozen in the second phase."""
    alone = _last(made["teacher_only"][0], "teacher")
    assert _equal(alone, _last(made["rtpd"][0], "teacher"))
    assert _equal(alone, _last(made["two_stage"][0] / "teacher", "teacher"))
    assert _equal(alone, _last(made["two_stage"][0], "teacher"))


def test_students_begin_with_the_same_weights_in_every_method(tmp_path):
    """Without a step of learning the student of a seed is the same network, so that differences are the method's."""
    runs = ("rtpd", "two_stage", "scratch")
    for name in runs:
        _run(tmp_path / name, f"method={name}", "student_learning_rate=0", "evaluate_every_steps=null")
    first, *others = [_last(tmp_path / name, "mlp16") for name in runs]
    assert all(_equal(first, other) for other in others)


@pytest.mark.parametrize("name", ["rtpd", "two_stage", "scratch", "teacher_only"])
def test_budgets_count_steps_and_updates_alike(made, name):
    """One phase is one budget; a second phase makes as many updates, and the first one counts too."""
    _, results = made[name]
    second = name == "two_stage"
    assert results["updates"] == UPDATES * (1 + second)
    assert results["steps"] == TOTAL + second * (TOTAL - WARMUP + BATCH)
    assert results["spent_before"]["updates"] == UPDATES * second
    assert results["training_seconds"] > 0 and results["cpu_seconds"] > 0


def test_the_second_phase_goes_on_counting_where_the_first_ended(made):
    """Its rows hold the teacher's steps, updates and seconds, too."""
    folder, _ = made["two_stage"]
    first, second = read_metrics(folder / "teacher" / "metrics.csv"), read_metrics(folder / "metrics.csv")
    assert second["steps"][0] == TOTAL + BATCH and second["updates"][0] == UPDATES + BATCH // EVERY
    assert second["training_seconds"][0] > first["training_seconds"][-1]


def test_a_second_phase_can_begin_from_an_earlier_run(made, tmp_path):
    """teacher_from saves the first phase and gives the same student as a run that makes it."""
    results = _run(tmp_path, "method=two_stage", f"teacher_from={made['teacher_only'][0]}")
    assert not (tmp_path / "teacher").exists()
    assert _equal(_last(tmp_path, "mlp16"), _last(made["two_stage"][0], "mlp16"))
    assert results["steps"] == made["two_stage"][1]["steps"]


def test_scratch_has_a_student_and_no_teacher(made):
    """What has no teacher is compared with none."""
    folder, results = made["scratch"]
    (network,) = results["networks"]
    assert (network["name"], network["role"], network["parameter_ratio"]) == ("mlp16", "student", None)
    assert "normalised" not in network and network["final_score"] > 0
    assert not _equal(_last(folder, "mlp16"), _last(made["rtpd"][0], "mlp16"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["td_coeff=0"],
        ["distill_coeff=0"],
        ["distill_coeff=0", "imitation=false"],
        ["divergence=reverse_kl"],
        ["learn_from=best"],
        ["learn_from=average"],
        ["learn_from=lagging"],
        ["temperature=auto"],
        ["student_temperature=1"],
        ["student_updates=2"],
    ],
)
def test_an_option_of_the_students_changes_the_student_alone(made, tmp_path, overrides):
    """The teacher stays what it is, to the last bit."""
    _run(tmp_path, *overrides)
    assert _equal(_last(tmp_path, "teacher"), _last(made["rtpd"][0], "teacher"))
    assert not _equal(_last(tmp_path, "mlp16"), _last(made["rtpd"][0], "mlp16"))


def test_a_student_that_acts_changes_what_both_see(tmp_path):
    """acting=student plays the student's games, so the teacher learns from others than in the paper."""
    for acting in ("teacher", "student"):  # so long that both know more than one action
        _run(tmp_path / acting, f"acting={acting}", "total_steps=2048", "epsilon_steps=64")
    assert not _equal(*(_last(tmp_path / acting, "teacher") for acting in ("teacher", "student")))


@pytest.mark.parametrize("method", ["rtpd", "two_stage", "scratch"])
def test_one_seed_gives_one_csv(made, tmp_path, method):
    """Every cell of metrics.csv but those of the clock is the same in two runs."""
    clock = {"seconds", "training_seconds", "cpu_seconds", "steps_per_second"}

    def cells(folder):
        with (folder / "metrics.csv").open(newline="") as file:
            return [{key: cell for key, cell in row.items() if key not in clock} for row in csv.DictReader(file)]

    _run(tmp_path, f"method={method}")
    assert cells(tmp_path) == cells(made[method][0])
    assert any(row["mlp16/score"] for row in cells(tmp_path))


def test_a_finished_run_that_nothing_evaluated_reports_its_last_networks_again(tmp_path):
    """Its checkpoint holds no best ones; a resumed run that trains no more once reported networks as they began."""
    first = _run(tmp_path, "evaluate_every_steps=0")
    again = _run(tmp_path, "evaluate_every_steps=0", f"resume={tmp_path}")
    keys = ("name", "score_mean", "score_std", "final_score", "agreement", "regret")
    told = [[[network[key] for key in keys] for network in results["networks"]] for results in (first, again)]
    assert told[0] == told[1] and all(row[1] == row[3] for row in told[0])


def test_scratch_recycles_as_students_do(tmp_path):
    """With units recycled after every update the student ends elsewhere."""
    for every in ("null", "1"):
        _run(tmp_path / every, "method=scratch", f"recycle_every_updates={every}", "evaluate_every_steps=null")
    assert not _equal(_last(tmp_path / "null", "mlp16"), _last(tmp_path / "1", "mlp16"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=magic"], "method must be one of rtpd, two_stage, scratch, teacher_only: got 'magic'"),
        (["method=two_stage", "students=[]"], r"method=two_stage needs students: got \[\]"),
        (["method=scratch", "students=[mlp16,mlp32]"], r"one student.*got \['mlp16', 'mlp32'\]; make a run for each"),
        (["learn_from=worst"], "learn_from must be one of latest, average, lagging, best: got 'worst'"),
        (["method=two_stage", "learn_from=best"], "learn_from=best is for method=rtpd.*got method=two_stage"),
        (["method=scratch", "learn_from=best"], "learn_from=best is for method=rtpd.*got method=scratch"),
        (["method=teacher_only", "learn_from=best"], "learn_from=best is for method=rtpd.*got method=teacher_only"),
        (["method=teacher_only", "export=[onnx]"], r"export=\['onnx'\] is for methods with students: got method=teach"),
        (["teacher_from=x"], "teacher_from=x is for method=two_stage: got method=rtpd"),
        (["method=scratch", "teacher_from=x"], "teacher_from=x is for method=two_stage: got method=scratch"),
        (["method=teacher_only", "teacher_from=x"], "teacher_from=x is for method=two_stage: got method=teacher_only"),
        (
            ["method=scratch", "teacher_checkpoint=x"],
            "teacher_checkpoint=x is for methods with a teacher: got method=s",
        ),
        (["td_coeff=0", "distill_coeff=0"], "students learn nothing with td_coeff=0 and distill_coeff=0"),
        (["game=chess"], "game must be one of cartpole, acrobot: got 'chess'"),
        (["students=[net1]"], "students are called teacher, or mlp and their units, such as mlp16: got .net1."),
        (
            ["method=two_stage", "teacher_from=nowhere"],
            "must be the folder of a finished run: got nowhere",
        ),
        (["teacher_checkpoint=nowhere"], "teacher_checkpoint must be a file or a folder: got nowhere"),
        (["acting=nobody"], r"acting must lie in \[0, 1\], or be teacher, or be student: got 'nobody'"),
        (["students=[mlp16,mlp16]"], r"students must differ, .*: got \['mlp16', 'mlp16'\]"),
        (
            ["students=[teacher,teacher]"],
            r"students must differ, teacher_size being .*: got \['teacher', 'teacher'\]",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, overrides, message):
    """Each mistake has its own message."""
    with pytest.raises(ValueError, match=message):
        _run(tmp_path, *overrides)
    assert not any(tmp_path.iterdir())  # no folder was begun


@pytest.mark.parametrize("students", ["[teacher]", "[teacher,mlp16]", "[mlp16,teacher]"])
def test_a_student_of_the_teachers_size_is_a_network_of_its_own(made, tmp_path, students):
    """It has a name of its own, learns, and leaves its teacher and the other student's place as they are."""
    results = _run(tmp_path, f"students={students}")
    names = [name.replace("teacher", "teacher_size") for name in students.strip("[]").split(",")]
    assert [network["name"] for network in results["networks"]] == ["teacher", *names]
    sizes = {network["name"]: network["parameter_ratio"] for network in results["networks"]}
    assert sizes["teacher_size"] == sizes["teacher"] == 1.0
    roles = [network["role"] for network in results["networks"]]
    assert roles == ["teacher", *["student"] * len(names)]
    teacher, student = _last(tmp_path, "teacher"), _last(tmp_path, "teacher_size")
    assert _equal(teacher, _last(made["rtpd"][0], "teacher")) and not _equal(teacher, student)
    assert read_metrics(tmp_path / "metrics.csv")["teacher_size/agreement"][-1] > 0
    _run(tmp_path / "still", f"students={students}", "student_learning_rate=0", "evaluate_every_steps=null")
    assert not _equal(student, _last(tmp_path / "still", "teacher_size"))


@pytest.mark.parametrize("method", ["two_stage", "scratch"])
def test_the_other_methods_have_a_student_of_that_size_too(tmp_path, method):
    results = _run(tmp_path, f"method={method}", "students=[teacher]", "evaluate_every_steps=null")
    assert results["networks"][-1]["name"] == "teacher_size" and results["networks"][-1]["role"] == "student"
    assert (tmp_path / "weights" / "last" / "teacher_size.safetensors").exists()


def test_the_main_example_has_the_same_methods(tmp_path):
    """On a game of Atari, too, the teacher of a seed is one network, and the second phase trains its student."""
    with hydra.initialize_config_dir(str(EXAMPLES / "config"), version_base="1.3"):
        tiny = ["total_steps=96", "warmup_steps=64", "replay_capacity=96", "evaluate_every_steps=null"]
        tiny += ["students=[net17]", "tensorboard=false", "progress_bar=false", "threads=1"]
        for method in ("rtpd", "two_stage", "scratch"):
            config = hydra.compose("rtpd_atari", [*tiny, f"method={method}", f"output_dir={tmp_path / method}"])
            rtpd_atari.run(config)
    teachers = [_last(tmp_path / folder, "teacher") for folder in ("rtpd", "two_stage/teacher", "two_stage")]
    assert all(_equal(teachers[0], teacher) for teacher in teachers[1:])
    students = [_last(tmp_path / folder, "net17") for folder in ("rtpd", "two_stage", "scratch")]
    assert not any(_equal(one, other) for one, other in ((students[0], students[1]), (students[1], students[2])))


@pytest.mark.parametrize("finished", [True, False])
def test_two_phases_that_were_cut_in_the_first_go_on_to_the_end_of_the_second(made, tmp_path, finished):
    """By the folder of the whole run: the teacher's phase is taken up, or left as it is, and the students' follows."""
    whole = tmp_path / "run"
    shutil.copytree(made["two_stage"][0] / "teacher", whole / "teacher")
    if not finished:
        (whole / "teacher" / "results.json").unlink()
    command = [f"resume={whole}"]
    with hydra.initialize_config_dir(str(EXAMPLES / "config"), version_base="1.3"):
        config = resumed_phases(hydra.compose("rtpd_classic", command), command)
    assert (config.method, config.output_dir, config.students) == ("two_stage", str(whole), ["mlp16"])
    assert (config.resume is None) == finished
    results = rtpd_atari.run(config, rtpd_classic.CLASSIC)
    assert results["method"] == "two_stage" and results["updates"] == made["two_stage"][1]["updates"]
    assert _equal(_last(whole / "teacher", "teacher"), _last(made["two_stage"][0] / "teacher", "teacher"))
    if finished:
        assert _equal(_last(whole, "mlp16"), _last(made["two_stage"][0], "mlp16"))
