"""Parts of a run that takes days: watch, save, guard, stop, report."""

from torchrl_rtpd.runs.checkpoints import SaveCheckpoints, newest_checkpoint
from torchrl_rtpd.runs.config import (
    changed_settings,
    check_settings,
    renamed_settings,
    resumed_config,
    resumed_steps,
    saved_config,
    setting,
    settings_help,
    settings_that_may_change,
)
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.experiment import Experiment
from torchrl_rtpd.runs.figures import plot_curves, plot_front
from torchrl_rtpd.runs.folder import RunFolder
from torchrl_rtpd.runs.guards import DivergenceError, DivergenceGuard
from torchrl_rtpd.runs.metrics import write_json
from torchrl_rtpd.runs.monitor import RunMonitor
from torchrl_rtpd.runs.process import keep_freed_memory
from torchrl_rtpd.runs.protect import Protection, protect
from torchrl_rtpd.runs.ranges import check_choices, check_ranges
from torchrl_rtpd.runs.report import pareto_front, results_table
from torchrl_rtpd.runs.side_by_side import SideBySide
from torchrl_rtpd.runs.size_search import SizeSearch
from torchrl_rtpd.runs.stopping import StopOnSignal, StopWhenCaughtUp, catches_up
from torchrl_rtpd.runs.threads import FreeProcessors, free_processors
from torchrl_rtpd.runs.video import Video, write_video
from torchrl_rtpd.runs.window import show_frames

__all__ = [
    "DivergenceError",
    "DivergenceGuard",
    "Experiment",
    "FreeProcessors",
    "Protection",
    "RunFolder",
    "RunMonitor",
    "SaveCheckpoints",
    "SideBySide",
    "SizeSearch",
    "StopOnSignal",
    "StopWhenCaughtUp",
    "Video",
    "catches_up",
    "changed_settings",
    "check_choices",
    "check_ranges",
    "check_settings",
    "free_processors",
    "keep_freed_memory",
    "newest_checkpoint",
    "pareto_front",
    "plot_curves",
    "plot_front",
    "protect",
    "renamed_settings",
    "results_table",
    "resumed_config",
    "resumed_steps",
    "run_environment",
    "saved_config",
    "setting",
    "settings_help",
    "settings_that_may_change",
    "show_frames",
    "write_json",
    "write_video",
]
