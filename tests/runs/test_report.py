"""Table of a run's results, and its Pareto front."""

from parts import FLEET, entry

from torchrl_rtpd.runs import report

RESULTS = {
    "random_score": 10.0,
    "networks": [
        {
            "name": "teacher",
            "parameters": 1_687_206,
            "parameter_ratio": 1.0,
            "score_mean": 1_234.5,
            "score_std": 20.0,
            "episodes": 24,
            "percent_of_teacher": 100.0,
            "normalised": 1.0,
            "agreement": 1.0,
            "latency_ms": 1.5,
        },
        {
            "name": "net17",
            "parameters": 29_214,
            "parameter_ratio": 29_214 / 1_687_206,
            "score_mean": -3.0,
            "score_std": 0.5,
            "episodes": 24,
            "percent_of_teacher": None,
            "normalised": None,
            "agreement": 0.5,
            "latency_ms": 0.25,
        },
    ],
}


def test_table_has_a_row_for_each_network_and_the_random_player():
    """Numbers are formatted with units a reader knows; what has no value shows as a dash."""
    lines = report.results_table(RESULTS).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["teacher", "1,687,206", "100.0%", "1,234.5", "20.0", "24", "100.0", "1.000", "1.000", "1.50"]
    assert cells[3] == ["net17", "29,214", "1.7%", "-3.0", "0.5", "24", "-", "-", "0.500", "0.25"]
    assert cells[4][:4] == ["random player", "", "", "10.0"]
    assert len({len(line) for line in lines}) == 1


def test_the_front_holds_what_nothing_else_beats():
    """``large`` is larger than ``small`` and scores less, ``quick`` is the fastest."""
    assert report.pareto_front(FLEET["networks"]) == {"teacher", "small", "quick"}
    assert report.pareto_front([*FLEET["networks"], {"name": "unplayed", "parameters": 1}]) == set()


def test_a_fleet_is_ranked_by_score_with_its_front_marked():
    lines = report.results_table(FLEET).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells[2:]] == ["teacher", "small", "quick", "large", "dominated", "random player"]
    assert cells[0][-1] == "front"
    assert [row[-1] for row in cells[2:]] == ["*", "*", "*", "", "", ""]


def test_table_without_scores_leaves_the_random_player_out():
    """A run that played no games still has a table of its networks, without columns for what nobody has."""
    table = report.results_table({"networks": [{"name": "teacher", "parameters": 5, "parameter_ratio": 1.0}]})
    assert "random" not in table
    cells = [cell.strip() for cell in table.splitlines()[0].strip("|").split("|")]
    assert cells == ["network", "parameters", "of teacher's"]


def deployed(name, parameters, latency, score, runtime):
    """An entry of a run that measured deployed latency."""
    return {**entry(name, parameters, latency, score), "latency_runtime": runtime}


def test_the_runtime_stands_in_the_title_and_integers_beside_it():
    """Milliseconds of a small student need three places."""
    teacher = {**deployed("teacher", 100, 0.15, 9.0, "onnxruntime"), "agreement": 1.0, "regret": 0.0}
    integers = {"latency_int8_ms": 0.0298, "agreement_int8": 0.969, "regret_int8": 0.00046}
    followed = {"agreement": 0.9, "favourite": 0.4, "regret": 0.05, "own_agreement": 0.8, "own_favourite": 0.7}
    student = {**deployed("net17", 10, 0.0306, 8.0, "onnxruntime"), **followed, **integers}
    lines = report.results_table({"networks": [teacher, student]}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    columns = [
        "agreement",
        "favourite action",
        "regret",
        "own agreement",
        "own favourite",
        "CPU ms, onnxruntime",
        "int8 ms",
        "int8 agreement",
        "int8 regret",
    ]
    assert cells[0][3:] == columns
    assert cells[2][3:] == ["1.000", "-", "0.000", "-", "-", "0.150", "-", "-", "-"]
    assert cells[3][3:] == ["0.900", "0.400", "0.050", "0.800", "0.700", "0.031", "0.030", "0.969", "0.0005"]


def test_runtimes_that_differ_stand_in_each_row_and_their_times_are_not_compared():
    """By time alone ``slow`` would be beaten; by one runtime it is."""
    names = [("teacher", 100, 0.2, 9.0), ("fast", 10, 0.1, 5.0), ("slow", 20, 0.4, 4.0)]
    one = [deployed(*numbers, "onnxruntime") for numbers in names]
    several = [*one[:2], {**one[2], "latency_runtime": "torch"}]
    assert report.pareto_front(one) == {"teacher", "fast"}
    assert report.pareto_front(several) == {"teacher", "fast", "slow"}
    table = report.results_table({"networks": several})
    assert "| CPU ms " in table and "0.100 (onnxruntime)" in table and "0.400 (torch)" in table
