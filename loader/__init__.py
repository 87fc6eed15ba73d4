"""From a budget to resident blocks: planning, ranged streaming, growing and shrinking.

It knows containers and bytes; what takes the blocks is anything that satisfies `BlockSink`.
"""

from .budget import AutoBudget, Needs, auto_budget, resolve_budget, spare_bytes
from .driver import Driver, Resizable
from .free import Free, free_bytes, free_memory
from .governor import Decision, Governor, Marks
from .governor_log import JsonLines, decisions, read_events
from .growth import Growth
from .memory import heap_is_steady, steady_heap
from .resident import BlockSink, Change, Resident, Turn
from .stream import stream_blocks
from .useful import useful_plan

__all__ = [
    "AutoBudget",
    "BlockSink",
    "Change",
    "Decision",
    "Driver",
    "Free",
    "Governor",
    "Growth",
    "JsonLines",
    "Marks",
    "Needs",
    "Resident",
    "Resizable",
    "Turn",
    "auto_budget",
    "decisions",
    "free_bytes",
    "free_memory",
    "heap_is_steady",
    "read_events",
    "resolve_budget",
    "spare_bytes",
    "steady_heap",
    "stream_blocks",
    "useful_plan",
]
