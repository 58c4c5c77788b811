"""A student as a file that runs without this package."""

from torchrl_rtpd.deploy.export import export_student

__all__ = ["export_student"]
