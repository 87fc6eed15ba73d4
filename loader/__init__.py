"""From a budget to resident blocks: planning, ranged streaming, growing and shrinking.

It knows containers and bytes; what takes the blocks is anything that satisfies `BlockSink`.
"""

from .budget import free_bytes, resolve_budget
from .resident import BlockSink, Resident
from .stream import stream_blocks

__all__ = ["BlockSink", "Resident", "free_bytes", "resolve_budget", "stream_blocks"]
