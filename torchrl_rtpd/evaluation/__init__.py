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
from torchrl_rtpd.evaluation.scores import Scores, agreement_with_teacher, latency_ms, regret_of_students

__all__ = [
    "EvaluationStopped",
    "Evaluator",
    "RecordedGame",
    "Scores",
    "agreement_with_teacher",
    "bootstrap_interval",
    "first_held",
    "interquartile_mean",
    "latency_ms",
    "paper_percentages",
    "probability_of_improvement",
    "record_games",
    "regret_of_students",
    "time_to_teacher",
]
