"""Sentences on each claim that the numbers of a study write."""

from __future__ import annotations

import statistics

from docs.pages.study_data import Study, temperature_of
from docs.pages.study_tables import steps_saved
from docs.pages.tables import interval
from torchrl_rtpd.evaluation.comparison import interquartile_mean, probability_of_improvement


def verdicts(study: Study) -> list[str]:
    """A line a claim that the study can speak to, from rows with several seeds of a game."""
    study = study.repeated()
    if not study.games_of("rtpd"):
        return []
    lines = [
        *(_time_saved(study, game) for game in study.games_of("two_stage")),
        *(level_verdict(study, network) for network in study.students("rtpd")),
    ]
    lines += [_against(study, row, QUESTIONS[kind]) for kind in QUESTIONS for row in study.rows if kind_of(row) == kind]
    return [*lines, _before_the_teacher(study)]


def kind_of(row: str) -> str:
    """Kind of a row: its name, without the network that learns alone in it, as in ``scratch_net17``."""
    return "scratch" if row.startswith("scratch_") else row


def smallest(study: Study) -> str:
    """The last student, the one that verdicts speak of."""
    return study.students("rtpd")[-1]


QUESTIONS = {
    "two_stage": "Is the student as good as one that was distilled afterwards?",
    "scratch": "Is it better than the same network that learns alone, acting for itself?",
    "td_alone": "Does the teacher help at all, beyond a DQN that learns from the teacher's games?",
    "without_kl": "Does the KL help beyond TD with the teacher's choice of actions?",
    "without_td": "Does TD help beyond the KL?",
    "no_imitation": "Does the teacher's choice of actions in the TD targets help?",
    "reverse_kl": "Is the forward KL better than the reverse one?",
    "best_teacher": "Is the latest teacher better to learn from than the best so far?",
    "student_acting": "Is it better that the teacher acts than that the student does?",
}
"""Question that a comparison of rtpd with a row answers."""


def _time_saved(study: Study, game: str) -> str:
    network = smallest(study)
    statistic, (ratios,) = steps_saved(study, game)
    low, high = interval(statistic, [ratios])
    answer = "Yes" if high <= 0.5 else "No" if low > 0.5 else "Open"
    return (
        f"**{game}: half the time or less?** {answer}: {network} holds 95 % of the final teacher after "
        f"{interquartile_mean([ratios]):.2f} [{low:.2f}, {high:.2f}] of the steps that two_stage needs."
    )


def level_verdict(study: Study, network: str) -> str:
    """Sentence on the level at which a student ends, over the games that the study has."""
    scores = study.normalised("rtpd", network)
    low, high = interval(interquartile_mean, scores)
    middle = interquartile_mean(scores)
    answer = "Yes" if middle >= 0.95 and low >= 0.85 else "No"
    return (
        f"**Does {network} end at 95 % of its teacher or more, the interval above 85 %?** {answer}: {middle:.2f} "
        f"[{low:.2f}, {high:.2f}] of what the teacher has above a random player."
    )


def _against(study: Study, other: str, question: str) -> str:
    network = [name for name in study.students(other) if name in study.students("rtpd")][-1]
    scores, others = study.pair("rtpd", other, network)
    probability = probability_of_improvement(scores, others)
    low, high = interval(probability_of_improvement, scores, others)
    answer = "Yes" if low > 0.5 else "No, the other way round" if high < 0.5 else "These runs cannot tell"
    return (
        f"**{question}** {answer}: {network} scores higher in rtpd than in {other} with probability {probability:.2f} "
        f"[{low:.2f}, {high:.2f}]; interquartile means {interquartile_mean(scores):.2f} and "
        f"{interquartile_mean(others):.2f}."
    )


def _before_the_teacher(study: Study) -> str:
    network = smallest(study)
    texts = []
    for game in study.games:
        ahead = [
            study.until_held("rtpd", game, seed, network)["steps"]
            - study.until_held(study.measure, game, seed, "teacher")["steps"]
            for seed in study.seeds("rtpd", game)
        ]
        first = sum(steps < 0 for steps in ahead)
        texts.append(f"{statistics.median(ahead):+,.0f} steps in {game}, first in {first} of {len(ahead)} runs")
    return (
        f"**When is {network} ready, seen from its teacher?** It holds 95 % of the final teacher so much later (+) or "
        f"earlier (-) than the teacher itself, in the median: {'; '.join(texts)}."
    )


def default_verdict(study: Study) -> str:
    """Temperatures that do better or worse than the default, as far as the runs can tell."""
    network = smallest(study)
    better, worse, alike = [], [], []
    for row in study.rows:
        if row != "rtpd" and (found := temperature_of(row)) is not None:
            low, high = interval(probability_of_improvement, *study.pair(row, "rtpd", network))
            (better if low > 0.5 else worse if high < 0.5 else alike).append(f"{found[0]} on {found[1]}")
    return (
        f"Against the default of `StudentDQNLoss`, 0.1 on both: better {', '.join(better) or 'none'}; worse "
        f"{', '.join(worse) or 'none'}; not to be told apart by these runs {', '.join(alike) or 'none'}."
    )
