"""From a budget to resident blocks: planning, ranged streaming, growing and shrinking.

It knows containers and bytes; what takes the blocks is anything that satisfies `BlockSink`.
"""

from .budget import free_bytes, resolve_budget
from .growth import Growth
from .resident import BlockSink, Change, Resident, Turn
from .stream import stream_blocks
from .useful import useful_plan

__all__ = [
    "BlockSink",
    "Change",
    "Growth",
    "Resident",
    "Turn",
    "free_bytes",
    "resolve_budget",
    "stream_blocks",
    "useful_plan",
]
