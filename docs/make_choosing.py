"""Figures and the table of the page on choosing a loss: ``python docs/make_choosing.py``, half a minute.

Everything is computed by the package's own functions on small made-up policies; seeds are fixed. Writes
``docs/images/*.png`` and ``docs/results/choosing.md``.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tensordict import TensorDict
from torch import Tensor, nn

from torchrl_rtpd import functional as RF
from torchrl_rtpd.objectives.discrete import DIVERGENCES, DistillationLoss

DOCS = Path(__file__).parent
UPDATES = 3_000
SETTINGS = {
    "0.01 and 1": (0.01, 1.0),
    "0.1 and 0.1": (0.1, None),
    "1 and 1": (1.0, None),
    "auto": ("auto", None),
}


def direction_figure() -> None:
    """A student that can only slide one bump along the actions follows a teacher with two."""
    actions = torch.arange(11.0)

    def bump(centre: Tensor, width: float) -> Tensor:
        return -((actions - centre) ** 2) / (2 * width**2)

    teacher = torch.logaddexp(bump(torch.tensor(2.0), 0.8), bump(torch.tensor(8.0), 0.8) - 0.3).log_softmax(-1)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, divergence in zip(figure.subplots(1, 3, sharey=True), DIVERGENCES[:3], strict=True):
        centres, widths = torch.meshgrid(torch.linspace(0, 10, 101), torch.linspace(0.5, 5, 46), indexing="ij")
        students = torch.stack(
            [bump(c, w) for c, w in zip(centres.flatten(), widths.flatten(), strict=True)]
        ).log_softmax(-1)
        values = getattr(RF, divergence)(teacher.expand_as(students), students)
        best = students[values.argmin()]
        axes.bar(actions - 0.2, teacher.exp(), width=0.4, label="teacher")
        axes.bar(actions + 0.2, best.exp(), width=0.4, label="best student")
        axes.set(title=f"{divergence}: {values.min():.2f} nats", xlabel="action")
    axes.legend()
    figure.savefig(DOCS / "images" / "direction.png", dpi=100)


def growth() -> dict[str, dict[str, list[float]]]:
    """Students of a teacher whose action values grow tenfold during the run; one curve a pair of temperatures."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 6))
    states = torch.randn(4_096, 8)
    with torch.no_grad():
        values = teacher(states)
        values -= values.mean(-1, keepdim=True)
        values /= values.std(-1, keepdim=True).mean()
    curves = {}
    for name, (teacher_temperature, student_temperature) in SETTINGS.items():
        torch.manual_seed(1)
        student = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6))
        loss = DistillationLoss(
            student, teacher_temperature=teacher_temperature, student_temperature=student_temperature
        )
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
        curve: dict[str, list[float]] = {"spread": [], "temperature": [], "teacher_entropy": [], "agreement": []}
        for update in range(UPDATES):
            spread = 0.05 * 10 ** (update / UPDATES)
            rows = torch.randint(len(states), (64,))
            batch = TensorDict(
                {"observation": states[rows], ("teacher", "action_value"): spread * values[rows]}, batch_size=[64]
            )
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
        curves[name] = curve
    return curves


def growth_figure(curves: dict[str, dict[str, list[float]]]) -> None:
    """What a temperature does while values grow."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = {"temperature": "teacher's temperature", "teacher_entropy": "teacher's entropy, nats", "agreement": ""}
    for axes, (key, label) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name, curve in curves.items():
            axes.plot(curve["spread"], curve[key], label=name)
        axes.set(xlabel="spread of the teacher's values", ylabel=label or "greedy agreement")
        axes.grid(alpha=0.3)
    figure.axes[0].set_yscale("log")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(DOCS / "images" / "temperature.png", dpi=100)


def tables(curves: dict[str, dict[str, list[float]]]) -> str:
    """The same two policies under every divergence and temperature, and the end of each growth curve."""
    torch.manual_seed(0)
    teacher, student = torch.randn(4_096, 6), torch.randn(4_096, 6)
    temperatures = (0.1, 1.0, 10.0)
    rows = [f"| divergence | {' | '.join(f'temperature {t:g}' for t in temperatures)} |", "| --- |" + " --- |" * 3]
    for divergence in DIVERGENCES:
        cells = []
        for temperature in temperatures:
            loss = DistillationLoss(
                nn.Identity(), divergence=divergence, teacher_temperature=temperature, student_temperature=temperature
            )
            batch = TensorDict({"observation": student, ("teacher", "action_value"): teacher}, batch_size=[4_096])
            cells.append(f"{loss(batch)['loss_distill'].item():.3g}")
        rows.append(f"| `{divergence}` | {' | '.join(cells)} |")
    rows += ["", "| temperatures | teacher's entropy, spread 0.05 | spread 0.5 | agreement at the end |"]
    rows += ["| --- | --- | --- | --- |"]
    for name, curve in curves.items():
        entropy = curve["teacher_entropy"]
        rows.append(f"| {name} | {entropy[0]:.2f} | {entropy[-1]:.2f} | {curve['agreement'][-1]:.2f} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Write the figures, the curves and the tables."""
    (DOCS / "images").mkdir(exist_ok=True)
    direction_figure()
    curves = growth()
    growth_figure(curves)
    (DOCS / "results" / "choosing.json").write_text(json.dumps(curves, indent=1) + "\n")
    heading = "<!-- written by docs/make_choosing.py -->\n\n"
    (DOCS / "results" / "choosing.md").write_text(heading + tables(curves))


if __name__ == "__main__":
    main()
