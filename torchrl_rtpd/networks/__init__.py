"""The paper's networks by name, several teachers as one, and tools to run, measure and renew parts of a network."""

from torchrl_rtpd.networks.dormancy import dormant_share
from torchrl_rtpd.networks.mixture import TeacherMixture
from torchrl_rtpd.networks.norm import ChannelNorm
from torchrl_rtpd.networks.recycling import UnitRecycler, check_recyclable, recycle_dormant
from torchrl_rtpd.networks.several import TeacherByKey
from torchrl_rtpd.networks.towers import LADDER, TOWERS, NatureTower, Tower, make_actor, num_parameters, tower_of

__all__ = [
    "LADDER",
    "TOWERS",
    "ChannelNorm",
    "NatureTower",
    "TeacherByKey",
    "TeacherMixture",
    "Tower",
    "UnitRecycler",
    "check_recyclable",
    "dormant_share",
    "make_actor",
    "num_parameters",
    "recycle_dormant",
    "tower_of",
]
