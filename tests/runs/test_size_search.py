"""A search for the smallest student that will do: what is dropped, what is answered, and going on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import pytest
import rtpd_atari
import rtpd_classic
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import GymEnv
from torchrl.modules import MLP, QValueActor

from torchrl_rtpd.runs.metrics import read_metrics
from torchrl_rtpd.runs.size_search import SizeSearch, sentence

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = [
    *["total_steps=1024", "warmup_steps=64", "num_envs=4", "rollout_steps=8", "epsilon_steps=256", "batch_size=16"],
    *["evaluation_episodes=4", "final_episodes=4", "progress_bar=false", "tensorboard=false", "threads=1"],
    *["checkpoint_every_steps=256", "checkpoint_keep=9", "steps_per_update=4", "n_step=1", "seed=0"],
]


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    with hydra.initialize_config_dir(str(EXAMPLES / "config"), version_base="1.3"):
        config = hydra.compose("rtpd_classic", [*SHORT, f"output_dir={folder}", *overrides])
    return rtpd_atari.run(config, rtpd_classic.CLASSIC)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A short run of the sixteen students on CartPole, with its folder."""
    folder = tmp_path_factory.mktemp("search")
    return folder, run(folder, "students=auto")


def test_students_go_at_each_rung(searched: tuple[Path, dict[str, Any]]) -> None:
    """Sixteen begin; at most eight, five and three are left after the evaluations at 256, 512 and 768 steps."""
    folder, results = searched
    ladder = results["search"]["ladder"]
    assert [row["name"] for row in ladder] == list(rtpd_classic.LADDER)
    dropped = {row["name"]: row.get("dropped_at_steps", math.inf) for row in ladder}
    for steps, most in ((256, 8), (512, 5), (768, 3)):
        assert 1 <= sum(when > steps for when in dropped.values()) <= most
    assert set(dropped.values()) <= {256, 512, 768, math.inf}
    metrics = read_metrics(folder / "metrics.csv")
    for name, when in dropped.items():
        scores = zip(metrics["steps"], metrics[f"{name}/score"], strict=True)
        scored = [step for step, score in scores if not math.isnan(score)]
        assert scored[-1] == min(when, 1024), name
    living = {name for name, when in dropped.items() if when > 1024}
    assert {row["name"] for row in results["networks"]} == {"teacher", *living}


def test_the_teacher_learns_what_it_learns_alone(searched: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = searched
    run(tmp_path, "method=teacher_only", "evaluate_every_steps=256")
    one, other = ((place / "weights" / "last" / "teacher.safetensors").read_bytes() for place in (folder, tmp_path))
    assert one == other


def test_a_student_learns_in_company_what_it_learns_alone(
    searched: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """From the same first weights, which depend on the place in the list: mlp2 comes first in both runs."""
    folder, _ = searched
    run(tmp_path, "students=[mlp2]", "evaluate_every_steps=128", "evaluate_from_steps=256")
    rows = []
    for place in (folder, tmp_path):
        metrics = read_metrics(place / "metrics.csv")
        line = metrics["steps"].index(256)
        rows.append({name: column[line] for name, column in metrics.items() if name.startswith("mlp2/")})
    assert rows[0] == rows[1] and {"mlp2/score", "mlp2/loss_distill"} <= rows[0].keys()


def test_the_answer_says_what_it_needs_when_deployed(tmp_path: Path) -> None:
    """A file of floats of four bytes each, and some of structure."""
    limits = ["min_share=1e-9", "max_bytes=100000", "max_latency_ms=10"]
    found = run(tmp_path, "students=[mlp32,mlp64]", "search=true", "total_steps=4096", *limits)["search"]
    row = next(row for row in found["ladder"] if row["name"] == found["chosen"])
    assert 4 * row["parameters"] < row["bytes"] < 4 * row["parameters"] + 4_000 and 0 < row["latency_ms"] < 10
    assert f"{row['bytes']:,} bytes, {row['latency_ms']:.3f} ms a decision" in sentence(found)


def test_no_file_is_larger_than_its_limit_and_the_search_says_its_length(tmp_path: Path) -> None:
    """Files hold the command, scores and names of actions as well; the search has counted them."""
    limits = ["students=[mlp4,mlp8,mlp32]", "search=true", "min_share=1e-9", "max_bytes=5000", "export=[onnx]"]
    found = run(tmp_path, *limits, "total_steps=4096")["search"]
    ladder = {row["name"]: row for row in found["ladder"]}
    assert ladder["mlp32"]["dropped_at_steps"] == 0 and ladder["mlp32"]["bytes"] > 5_000
    written = {path.stem: path.stat().st_size for path in (tmp_path / "deployed").glob("*.onnx")}
    assert written and max(written.values()) <= 5_000
    for name, size in written.items():
        assert size <= ladder[name]["bytes"] < size + 200
    assert ladder[found["chosen"]]["bytes"] == written[found["chosen"]]


def test_a_second_phase_is_searched(tmp_path: Path) -> None:
    found = run(tmp_path, "method=two_stage", "students=[mlp2,mlp4,mlp8,mlp12]", "search=true")
    assert [row["name"] for row in found["search"]["ladder"]] == ["mlp2", "mlp4", "mlp8", "mlp12"]
    assert len(found["networks"]) == 2


def test_a_teacher_alone_is_not_searched(tmp_path: Path) -> None:
    assert "search" not in run(tmp_path / "run", "method=teacher_only", "students=auto")
    with pytest.raises(ValueError, match="search=True is for methods with several students: got method=teacher_only"):
        run(tmp_path / "refused", "method=teacher_only", "search=true")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["max_bytes=3000"],
            "limits are those of a search: got max_latency_ms=None and max_bytes=3000; use search=true",
        ),
        (
            ["students=auto", "evaluation_episodes=1", "final_episodes=1"],
            "a single game tells no share: got search=true",
        ),
        (["students=auto", "evaluate_every_steps=0"], "by their scores: got students=.* and evaluate_every_steps=0"),
    ],
)
def test_what_no_search_can_use_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_a_cut_search_goes_on_to_the_same_answer(searched: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Built anew and resumed from a checkpoint in its third quarter, it has dropped and drops the same."""
    _, results = searched
    run(tmp_path, "students=auto")
    checkpoints = sorted((tmp_path / "checkpoints").glob("checkpoint-*"))
    checkpoint = next(path for path in checkpoints if 512 <= int(path.name.split("-")[1]) < 768)
    again = run(
        tmp_path, f"resume={checkpoint}", "students=auto", "evaluate_every_steps=128", "evaluate_from_steps=256"
    )
    ladders = [found["search"]["ladder"] for found in (results, again)]
    kept = [{row["name"] for row in ladder if row.get("dropped_at_steps") in (256, 512)} for ladder in ladders]
    assert kept[0] == kept[1]
    assert json.loads((tmp_path / "results.json").read_text())["search"].keys() == results["search"].keys()


def test_a_search_keeps_networks_from_its_first_rung_on(searched: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Its own evaluations choose what is kept, whatever a preset says; a run that goes on may not change that."""
    run(tmp_path, "students=auto", "keep_from_steps=512", "total_steps=256", "warmup_steps=64")
    assert "keep_from_steps: 0" in (tmp_path / "config.yaml").read_text()
    with pytest.raises(ValueError, match="from its first rung on: got keep_from_steps=512; leave it out"):
        run(tmp_path, f"resume={tmp_path}", "students=auto", "keep_from_steps=512", "total_steps=512")


def conclusion(scores: dict[str, tuple[float, float]], **options: Any) -> dict[str, Any]:
    """The answer from final scores and their errors, by name; a teacher of 100 +- 0 comes first, random scores 0."""
    search = SizeSearch(**options)
    games = {"episodes": 1_000_000}
    rows = [{"name": "teacher", "parameters": 1_000, "score_mean": 100.0, "score_standard_error": 0.0, **games}]
    for place, (name, (mean, error)) in enumerate(scores.items(), 1):
        search.ladder[name] = {"parameters": place}
        rows.append({"name": name, "parameters": place, "score_mean": mean, "score_standard_error": error, **games})
    return search.conclusion({"networks": rows, "random_score": 0.0})


def test_the_answer_is_the_smallest_that_is_sure() -> None:
    """Each of three bounds holds with 1 - 0.05 / 3, 2.128 errors: a is at least 97 - 10.6 = 86.4, b 98 - 2.1 = 95.9."""
    found = conclusion({"a": (97.0, 5.0), "b": (98.0, 1.0), "c": (100.0, 0.0)})
    assert found["chosen"] == "b"
    assert [round(row["share_at_least"], 3) for row in found["ladder"]] == [0.864, 0.959, 1.0]
    assert sentence(found) == (
        "The smallest student that holds 95% of its teacher is b, 2 parameters: share 0.98, at least 0.96."
    )


def test_no_answer_says_what_was_nearest() -> None:
    found = conclusion({"a": (97.0, 5.0), "b": (94.0, 1.0)})
    assert found["chosen"] is None
    assert sentence(found).startswith(
        "No student holds 95% of its teacher with 95% confidence. The nearest is b: share 0.94, at least 0.92; play"
    )


def test_one_final_game_is_no_answer() -> None:
    search = SizeSearch()
    search.ladder["a"] = {"parameters": 1}
    rows = [
        {"name": name, "parameters": 1, "score_mean": 10.0, "score_standard_error": 0.0, "episodes": 1}
        for name in ("teacher", "a")
    ]
    found = search.conclusion({"networks": rows, "random_score": 0.0})
    assert found["chosen"] is None and "share_at_least" not in found["ladder"][0]
    assert "has played a single final game; train longer, play more" in sentence(found)


def test_rungs_that_no_evaluation_reaches_are_warned_of(tmp_path: Path) -> None:
    """One evaluation, at 600 of 1,024 steps: it comes after the rung at 512 as well, and before the one at 768."""
    search = SizeSearch()
    search._trainer = SimpleNamespace(total_frames=1_024)  # type: ignore[assignment]
    with pytest.warns(UserWarning, match=r"no evaluation lies between the rungs of the search at \[256, 768\] steps"):
        search.warn_of_missed_rungs(range(600, 1_024, 600))


def actors() -> dict[str, TensorDictModule]:
    spec = GymEnv("CartPole-v1", categorical_action_encoding=True).action_spec
    return {
        f"mlp{units}": QValueActor(MLP(4, 2, num_cells=[units], activation_class=nn.ReLU), spec=spec)
        for units in (4, 512)
    }


def test_students_beyond_a_limit_are_not_admitted() -> None:
    """512 units of 4 inputs and 2 outputs are 3,586 weights of 4 bytes; a whole small ONNX file has less than 5,000."""
    search = SizeSearch(max_bytes=5_000)
    assert search.admitted(actors(), GymEnv("CartPole-v1", categorical_action_encoding=True)) == ["mlp4"]
    assert search.ladder["mlp4"]["bytes"] < 5_000 < 14_344 < search.ladder["mlp512"]["bytes"]


def test_limits_that_nobody_meets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_latency_ms=None and max_bytes=10: the ladder has bytes=\d+ at least"):
        SizeSearch(max_bytes=10).admitted(actors(), GymEnv("CartPole-v1", categorical_action_encoding=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_share": 0.0}, r"min_share must lie in \(0, 1\]: got 0.0"),
        ({"confidence": 0.5}, r"confidence must lie in \(0.5, 1\): got 0.5"),
        ({"max_bytes": 0}, r"max_bytes must lie in \(0, inf\): got 0; None sets no limit"),
        ({"rungs": {0.5: 0.5, 0.25: 0.25}}, r"rungs must be growing shares .*, within 0 and 1: got \{0.5: 0.5, 0.25"),
        (
            {"rungs": {0.2: 0.2, 0.5: 0.6}},
            r"rungs must be .* falling ones of the students, .*: got \{0.2: 0.2, 0.5: 0.6",
        ),
        ({"format": "onx"}, "format"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SizeSearch(**options)


@pytest.mark.parametrize(
    "overrides", [["students=[mlp16]", "search=true"], ["students=auto", "evaluate_every_steps=null"]]
)
def test_a_search_needs_students_and_scores(tmp_path: Path, overrides: list[str]) -> None:
    with pytest.raises(ValueError, match="search=true drops students by their scores: got students="):
        run(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_students_are_auto_or_a_list(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"students must be auto or a list such as \[net1,net17\]: got 'mlp16'"):
        run(tmp_path, "students=mlp16")


def test_torch_draws_are_untouched_by_a_search() -> None:
    """Admission runs networks and files, but draws nothing."""
    networks = actors()
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    SizeSearch(max_bytes=10_000_000).admitted(networks, GymEnv("CartPole-v1", categorical_action_encoding=True))
    assert torch.equal(torch.rand(3), wanted)
