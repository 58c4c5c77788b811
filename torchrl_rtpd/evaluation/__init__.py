"""Full games with raw scores, and statistics over seeds."""

from torchrl_rtpd.evaluation.comparison import (
    bootstrap_interval,
    first_held,
    interquartile_mean,
    paper_percentages,
    probability_of_improvement,
    time_to_teacher,
)
from torchrl_rtpd.evaluation.evaluator import EvaluationStopped, Evaluator
from torchrl_rtpd.evaluation.recording import RecordedGame, record_games
from torchrl_rtpd.evaluation.scores import (
    Scores,
    agreement_with_teacher,
    favourite_action_share,
    latency_ms,
    regret_of_students,
)
from torchrl_rtpd.evaluation.shares import Candidate, Share, may_be_smallest, share_of_teacher

__all__ = [
    "Candidate",
    "EvaluationStopped",
    "Evaluator",
    "RecordedGame",
    "Scores",
    "Share",
    "agreement_with_teacher",
    "bootstrap_interval",
    "favourite_action_share",
    "first_held",
    "interquartile_mean",
    "latency_ms",
    "may_be_smallest",
    "paper_percentages",
    "probability_of_improvement",
    "record_games",
    "regret_of_students",
    "share_of_teacher",
    "time_to_teacher",
]
