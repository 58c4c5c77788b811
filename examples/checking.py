"""Checks of a configuration, before anything is built or written: of what could only fail later."""

from __future__ import annotations

import re

import torch
from algorithms import check_algorithm
from methods import METHODS
from settings import Config

from torchrl_rtpd.deploy.formats import checked_formats
from torchrl_rtpd.runs.config import check_settings

__all__ = ["check"]


def check(config: Config) -> None:
    """Refuse the first value that does not fit the others."""
    check_settings(config, Config)
    check_algorithm(config)
    if (config.warmup_steps or 0) >= config.total_steps:
        raise ValueError(
            f"nothing is learned in the warm-up: got warmup_steps={config.warmup_steps} of total_steps="
            f"{config.total_steps}; make it shorter."
        )
    if not re.fullmatch(r"cpu|cuda(:\d+)?", config.device):
        raise ValueError(f"device must be cpu, cuda or cuda:<number>: got {config.device!r}.")
    for key in ("teacher_settles", "student_settles"):
        share = getattr(config, key)
        if share is not None and (len(share) != 2 or not 0 <= share[0] < share[1] <= 1):
            raise ValueError(f"{key} must be two shares of the run, such as [0.6, 0.9]: got {list(share)}.")
    if config.final_episodes % config.evaluation_episodes:
        raise ValueError(
            f"final_episodes must be a multiple of evaluation_episodes: got {config.final_episodes} and "
            f"{config.evaluation_episodes}."
        )
    if config.td_coeff == 0 and config.distill_coeff == 0:
        raise ValueError("students learn nothing with td_coeff=0 and distill_coeff=0; set one of them.")
    if config.export:
        checked_formats(config.export, "export")
    if config.norm is not None:
        _check_normed(config)
    _check_device(config)
    METHODS[config.method].check(config)
    _check_search(config)


def _check_search(config: Config) -> None:
    """Refuse limits without a search, and a search without students or scores to compare."""
    if not config.search and (config.max_latency_ms is not None or config.max_bytes is not None):
        raise ValueError(
            f"limits are those of a search: got max_latency_ms={config.max_latency_ms} and max_bytes="
            f"{config.max_bytes}; use search=true or students=auto, or leave them out."
        )
    if config.search and config.final_episodes < 2:
        raise ValueError(f"a single game tells no share: got search=true and final_episodes={config.final_episodes}.")
    if config.search and (len(config.students) < 2 or not config.evaluate_every_steps):
        raise ValueError(
            f"search=true drops students by their scores: got students={list(config.students)} and "
            f"evaluate_every_steps={config.evaluate_every_steps}; name several, or students=auto, and let them play."
        )


def _check_normed(config: Config) -> None:
    """Refuse what networks with norms cannot do."""
    without = [name for name in config.export if name not in ("onnx", "pt2")]
    if without:
        raise ValueError(
            f"networks with norm={config.norm} are exported as onnx or pt2: got export={without}, which hold no norms; "
            "leave them out, or train with norm=null."
        )
    if config.recycle_every_updates is not None:
        raise ValueError(
            f"units behind a norm are not recycled: got recycle_every_updates={config.recycle_every_updates} with "
            f"norm={config.norm}; leave it out, or train with norm=null."
        )


def _check_device(config: Config) -> None:
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={config.device} needs a GPU that torch can see: there is none; use device=cpu.")
    if config.concurrent is True and config.device != "cpu":
        raise ValueError(
            f"concurrent=true is for a CPU: got device={config.device}; leave it out, or use cudagraph=true there."
        )
    if config.cudagraph and not config.device.startswith("cuda"):
        raise ValueError(f"cudagraph=true needs device=cuda: got device={config.device}; use compile=true on a CPU.")
    if config.cudagraph and config.student_updates != 1:
        raise ValueError(
            f"a captured update holds one update of each student: got cudagraph=true and student_updates="
            f"{config.student_updates}; use student_updates=1."
        )
