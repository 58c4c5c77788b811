"""Final scores of a run: who is the teacher, what is compared, and which weights play."""

from types import SimpleNamespace

import pytest
import torch
from drop_in_dqn import make_actor, make_env
from drop_in_ppo import make_policy
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.modules import QValueModule

from torchrl_rtpd import Evaluator
from torchrl_rtpd.evaluation.scores import (
    Scores,
    agreement_with_teacher,
    favourite_action_share,
    regret_of_students,
)
from torchrl_rtpd.runs.final import _compared, compared_scores, final_results, network_sizes, teacher_name
from torchrl_rtpd.runs.metrics import MetricsFile

SAME = {"agreement": 1.0, "regret": 0.0}
KEYS = ("agreement", "regret", "favourite", "own_agreement", "own_regret", "own_favourite")
MEASURES = {"agreement": agreement_with_teacher, "regret": regret_of_students}
PARAMETERS = {4: 4 * 4 + 4 + 4 * 4 + 4 + 4 * 2 + 2, 8: 4 * 8 + 8 + 8 * 8 + 8 + 8 * 2 + 2}


@pytest.fixture
def evaluator():
    evaluator = Evaluator(lambda: make_env(2), episodes=2, epsilon=0.0)
    yield evaluator
    evaluator.close()


@pytest.fixture
def networks(evaluator):
    return {"teacher": make_actor(8, evaluator.env, seed=0), "small": make_actor(4, evaluator.env, seed=1)}


def test_sizes_are_told_beside_the_teachers(networks):
    assert network_sizes(networks) == {
        "teacher": {"name": "teacher", "role": "teacher", "parameters": PARAMETERS[8], "parameter_ratio": 1.0},
        "small": {
            "name": "small",
            "role": "student",
            "parameters": PARAMETERS[4],
            "parameter_ratio": PARAMETERS[4] / PARAMETERS[8],
        },
    }
    alone = network_sizes({"small": networks["small"]})["small"]
    assert (alone["role"], alone["parameter_ratio"]) == ("student", None)


@pytest.mark.parametrize(
    ("names", "wanted"), [(["big", "teacher"], "big"), (["teacher"], "teacher"), (["net17"], None)]
)
def test_the_teacher_is_the_first_of_several_and_one_alone_by_its_name(names, wanted):
    assert teacher_name(dict.fromkeys(names)) == wanted


def test_scores_are_those_of_the_evaluator_and_stand_between_random_and_teacher(evaluator, networks):
    """Against the evaluator itself, on the same games, and the definition of each ratio."""
    scores, compared = compared_scores(networks, evaluator, seed=7)
    means = {name: evaluator(network, seed=7).mean for name, network in networks.items()}
    random_mean = evaluator(networks["teacher"], seed=7, epsilon=1.0).mean
    rows = compared["rows"]
    assert {name: row["score_mean"] for name, row in rows.items()} == means
    assert compared["random_score"] == random_mean
    assert {name: found.mean for name, found in scores.items()} == means
    assert rows["small"]["percent_of_teacher"] == pytest.approx(100 * means["small"] / means["teacher"])
    gap = means["teacher"] - random_mean
    wanted = (means["small"] - random_mean) / gap if gap > 0 else None
    assert rows["small"]["normalised"] == (None if wanted is None else pytest.approx(wanted))
    assert rows["teacher"]["agreement"] == 1.0 and 0 <= rows["small"]["agreement"] <= 1
    assert rows["teacher"]["regret"] == 0.0 and 0 <= rows["small"]["regret"] <= 2  # two actions lie 2 deviations apart
    assert (rows["small"]["regret"] == 0) == (rows["small"]["agreement"] == 1)


def test_policies_that_value_no_actions_are_compared_by_scores_alone(evaluator):
    policies = {"teacher": make_policy(8, seed=0), "student": make_policy(4, seed=1)}
    rows = compared_scores(policies, evaluator, seed=0)[1]["rows"]
    assert not any("agreement" in key or "regret" in key for key in rows["student"])
    assert rows["student"]["percent_of_teacher"] > 0


def test_a_student_is_compared_in_the_teachers_states_and_in_its_own(evaluator, networks):
    """On states that the evaluator keeps by itself, which differ: a student drifts from where its teacher goes."""
    evaluator.quota = 20
    scores, compared = compared_scores(networks, evaluator, seed=7)
    teacher, small = networks["teacher"], {"small": networks["small"]}
    for prefix, player in (("", teacher), ("own_", networks["small"])):
        states = evaluator(player, seed=7, keep_observations=512).observations
        wanted = {prefix + key: measure(teacher, small, states)["small"] for key, measure in MEASURES.items()}
        wanted[f"{prefix}favourite"] = favourite_action_share(teacher, states)
        assert wanted.items() <= compared["rows"]["small"].items()
    assert compared["rows"]["small"]["own_regret"] != compared["rows"]["small"]["regret"]
    assert compared["rows"]["teacher"].items() >= {**SAME, "own_agreement": 1.0, "own_regret": 0.0}.items()
    assert scores["teacher"].observations is not None and scores["small"].observations is None


def test_a_student_that_sees_something_else_has_no_agreement(evaluator, networks):
    """The states that are kept are the teacher's."""
    other = make_actor(4, evaluator.env, seed=1)
    other.module[0].in_keys = ["seen"]
    other.in_keys = ["seen"]
    states = evaluator.env.reset().select("observation")
    teacher = networks["teacher"]
    assert _compared(teacher, "other", other, states) == {}
    assert _compared(teacher, "teacher", teacher, states).items() > SAME.items()


def watched(evaluator, networks, folder):
    """A monitor after a run, as far as the final results read it."""
    metrics = MetricsFile(folder / "metrics.csv", ["steps", "teacher/score", "small/score"])
    for steps, teacher, small in ((100, 20.0, 10.0), (200, 40.0, 30.0)):
        metrics.append({"steps": steps, "teacher/score": teacher, "small/score": small})
    return SimpleNamespace(
        evaluator=evaluator,
        networks=networks,
        best={name: make_actor(8 if name == "teacher" else 4, evaluator.env, seed=5) for name in networks},
        best_scores={"teacher": Scores((40.0, 60.0), 0, 9), "small": Scores((30.0,), 0, 9)},
        last_scores={"teacher": Scores((20.0,), 0, 9), "small": Scores((30.0,), 0, 9)},
        metrics=metrics,
    )


def test_kept_and_last_weights_play_the_same_games(evaluator, networks, tmp_path):
    """Those of the run stand beside, and last weights are compared with the teacher's last."""
    monitor = watched(evaluator, networks, tmp_path)
    monitor.networks["small"].load_state_dict(monitor.best["small"].state_dict())
    teacher, small = final_results(monitor, games=1, seed=3)[0]["networks"]
    assert teacher["score_mean"] == evaluator(monitor.best["teacher"], seed=3).mean
    assert teacher["final_score"] == evaluator(networks["teacher"], seed=3).mean
    assert small["final_score"] == small["score_mean"]
    assert small["final_standard_error"] == small["score_standard_error"]
    assert (teacher["kept_score"], teacher["last_score"]) == (50.0, 20.0)
    assert teacher["latency_ms"] > 0
    last = compared_scores(networks, evaluator, seed=3)[1]["rows"]["small"]
    assert [small[f"final_{key}"] for key in KEYS] == [last[key] for key in KEYS]
    assert small["final_agreement"] != small["agreement"] and teacher["final_own_regret"] == 0.0


def test_last_weights_that_were_kept_are_not_played_twice(evaluator, networks, tmp_path, monkeypatch):
    monitor = watched(evaluator, networks, tmp_path)
    for name, network in networks.items():
        network.load_state_dict(monitor.best[name].state_dict())
    played = []
    monkeypatch.setattr(
        monitor, "evaluator", lambda *given, **options: played.append(1) or evaluator(*given, **options)
    )
    for name in ("env", "quota"):
        setattr(monitor.evaluator, name, getattr(evaluator, name))
    small = final_results(monitor, games=1, seed=3)[0]["networks"][1]
    assert len(played) == len(networks) + 1  # and the random player
    assert [small[f"final_{key}"] for key in KEYS] == [small[key] for key in KEYS]


def test_max_and_mean_come_from_the_evaluations_of_the_run(evaluator, networks, tmp_path):
    """The student's best, 30, in percent of the teacher's, 40; and the mean of 10 in 20 and 30 in 40."""
    small = final_results(watched(evaluator, networks, tmp_path), games=1, seed=3)[0]["networks"][1]
    assert small["max_percent"] == pytest.approx(75.0)
    assert small["mean_percent"] == pytest.approx(62.5)


def test_without_games_sizes_and_times_are_all(evaluator, networks, tmp_path):
    found, states = final_results(watched(evaluator, networks, tmp_path), games=None, seed=3)
    assert states is None
    assert list(found) == ["networks"]
    times = {"latency_ms", "latency_runtime", "file_bytes"}
    assert {"name", "role", "parameters", "parameter_ratio"} | times == found["networks"][0].keys()


def test_the_games_do_not_touch_the_global_stream(evaluator, networks):
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    compared_scores(networks, evaluator, seed=0)
    assert torch.equal(torch.rand(3), wanted)


def test_a_student_that_cannot_be_compared_is_left_out_of_the_report_with_a_warning() -> None:
    """A network of as many values in two choices: no run may end at its report."""

    def network(*parts: TensorDictModule) -> TensorDictSequential:
        values = TensorDictModule(nn.Identity(), in_keys=["observation"], out_keys=["action_value"])
        return TensorDictSequential(values, *parts)

    several = network(QValueModule(action_space="mult_one_hot", var_nums=[2, 2]))
    states = TensorDict({"observation": torch.eye(4)}, [4])
    assert _compared(network(), "same", network(), states) == {**SAME, "favourite": 0.25}
    with pytest.warns(UserWarning, match=r"the report has no agreement of 'several': .* choices \(2, 2\)"):
        assert _compared(network(), "several", several, states) == {}
