"""A student as a file that runs without this package.

Names are imported when they are asked for, so that ``python -m torchrl_rtpd.deploy check FILE`` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrl_rtpd.deploy.export import ExportReport, FileReport, export_student
    from torchrl_rtpd.deploy.exported import load_exported
    from torchrl_rtpd.deploy.latency import Deployment, IntegerFile, Latency, deployed_latency, measure_deployment

__all__ = [
    "Deployment",
    "ExportReport",
    "FileReport",
    "IntegerFile",
    "Latency",
    "deployed_latency",
    "export_student",
    "load_exported",
    "measure_deployment",
]

_HOMES = dict.fromkeys(("Deployment", "IntegerFile", "Latency", "deployed_latency", "measure_deployment"), "latency")
_HOMES["load_exported"] = "exported"


def __getattr__(name: str) -> Any:
    """Import a public name from the module that holds it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'export')}"), name)
