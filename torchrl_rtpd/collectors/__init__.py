"""Collection with a teacher and its students."""

from torchrl_rtpd.collectors.collector import DualNetworkCollector
from torchrl_rtpd.collectors.frames import FrameStacker
from torchrl_rtpd.collectors.policy import TeacherStudentPolicy

__all__ = ["DualNetworkCollector", "FrameStacker", "TeacherStudentPolicy"]
