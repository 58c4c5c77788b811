"""Measure on small made-up policies what the page on choosing a loss shows: half a minute.

    python -m docs.pages.measure_choosing        docs/results/choosing.json
    python -m docs.pages                         and its block and figures in the pages

Everything is computed by the package's own functions; seeds are fixed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from torchrl_rtpd import functional as RF
from torchrl_rtpd.objectives.discrete import DIVERGENCES, DistillationLoss

RESULT = Path(__file__).resolve().parents[1] / "results" / "choosing.json"
UPDATES = 3_000
SETTINGS: dict[str, tuple[Any, float | None]] = {  # temperatures of teacher and student
    "0.01 and 1": (0.01, 1.0),
    "0.1 and 0.1": (0.1, None),
    "1 and 1": (1.0, None),
    "auto": ("auto", None),
}


def direction() -> dict[str, Any]:
    """A student that can only slide one bump along the actions follows a teacher with two."""
    actions = torch.arange(11.0)

    def bump(centre: Tensor, width: Tensor) -> Tensor:
        return -((actions - centre) ** 2) / (2 * width**2)

    narrow = torch.tensor(0.8)
    two = torch.logaddexp(bump(torch.tensor(2.0), narrow), bump(torch.tensor(8.0), narrow) - 0.3)
    teacher = two.log_softmax(-1)
    centres, widths = torch.meshgrid(torch.linspace(0, 10, 101), torch.linspace(0.5, 5, 46), indexing="ij")
    pairs = zip(centres.flatten(), widths.flatten(), strict=True)
    students = torch.stack([bump(centre, width) for centre, width in pairs]).log_softmax(-1)
    best = {}
    for divergence in DIVERGENCES[:3]:
        values = getattr(RF, divergence)(teacher.expand_as(students), students)
        best[divergence] = {"value": values.min().item(), "probs": students[values.argmin()].exp().tolist()}
    return {"teacher": teacher.exp().tolist(), "students": best}


def growth() -> dict[str, dict[str, list[float]]]:
    """Students of a teacher whose action values grow tenfold during the run; one curve a pair of temperatures."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 6))
    states = torch.randn(4_096, 8)
    with torch.no_grad():
        values = teacher(states)
        values -= values.mean(-1, keepdim=True)
        values /= values.std(-1, keepdim=True).mean()
    return {name: _growth_of(states, values, *pair) for name, pair in SETTINGS.items()}


def _growth_of(
    states: Tensor, values: Tensor, teacher_temperature: Any, student_temperature: float | None
) -> dict[str, list[float]]:
    torch.manual_seed(1)
    student = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6))
    loss = DistillationLoss(student, teacher_temperature=teacher_temperature, student_temperature=student_temperature)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    curve: dict[str, list[float]] = {"spread": [], "temperature": [], "teacher_entropy": [], "agreement": []}
    for update in range(UPDATES):
        spread = 0.05 * 10 ** (update / UPDATES)
        rows = torch.randint(len(states), (64,))
        batch = TensorDict({"observation": states[rows], ("teacher", "action_value"): spread * values[rows]}, [64])
        out = loss(batch)
        out["loss_distill"].backward()
        optimizer.step()
        optimizer.zero_grad()
        if update % 100 == 99:
            with torch.no_grad():
                agreement = RF.greedy_agreement(values, student(states)).mean()
            curve["spread"].append(spread)
            curve["temperature"].append(loss.teacher_temperature.item())
            curve["teacher_entropy"].append(out["teacher_entropy"].item())
            curve["agreement"].append(agreement.item())
    return curve


def values() -> dict[str, dict[str, float]]:
    """The same two random policies under every divergence and three temperatures."""
    torch.manual_seed(0)
    teacher, student = torch.randn(4_096, 6), torch.randn(4_096, 6)
    batch = TensorDict({"observation": student, ("teacher", "action_value"): teacher}, [4_096])
    found: dict[str, dict[str, float]] = {}
    for divergence in DIVERGENCES:
        found[divergence] = {}
        for temperature in (0.1, 1.0, 10.0):
            loss = DistillationLoss(
                nn.Identity(), divergence=divergence, teacher_temperature=temperature, student_temperature=temperature
            )
            found[divergence][f"{temperature:g}"] = loss(batch.clone())["loss_distill"].item()
    return found


def main() -> None:
    """Measure everything and save it."""
    measured = {"direction": direction(), "values": values(), "growth": growth()}
    RESULT.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
