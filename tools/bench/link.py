"""A network link made of two TUN devices: a rate, a delay and a loss, where the kernel cannot shape one so itself.

Packets wait in this process until their time has come. Run as root; Linux only.
"""

import fcntl
import os
import random
import select
import struct
import time
from collections import deque
from dataclasses import dataclass, field

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000


def open_tun(name: str) -> int:
    """A descriptor of a new TUN device, which carries bare IP packets and goes when it is closed."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd


@dataclass
class Direction:
    """One way of the link.

    Attributes:
        rate: bytes per second. delay: seconds. loss: share of the packets.
        room: bytes that may wait for their turn; more are dropped, as a router does.
    """

    source: int
    target: int
    rate: float
    delay: float
    loss: float
    room: int
    draw: random.Random = field(default_factory=lambda: random.Random(1))
    free_at: float = 0.0
    queue: deque[tuple[float, bytes]] = field(default_factory=deque)
    carried: int = 0
    dropped: int = 0

    def take(self, now: float) -> None:
        """Take packets that came."""
        for _ in range(256):
            try:
                packet = os.read(self.source, 1 << 16)
            except BlockingIOError:
                return
            starts = max(now, self.free_at)
            if self.draw.random() < self.loss or (starts - now) * self.rate > self.room:
                self.dropped += 1
                continue
            self.free_at = starts + len(packet) / self.rate
            self.queue.append((self.free_at + self.delay, packet))

    def give(self, now: float) -> None:
        """Send packets whose time has come."""
        while self.queue and self.queue[0][0] <= now:
            packet = self.queue.popleft()[1]
            try:
                os.write(self.target, packet)
                self.carried += len(packet)
            except OSError:  # its device is full, or down
                self.dropped += 1


def run_link(one: int, other: int, rate: float, delay: float, loss: float) -> None:
    """Carry packets between two TUN devices until this process is ended.

    Args:
        rate: bytes per second, each way. delay: seconds, each way. loss: share of the packets, from one to the other;
            on the way back, where acknowledgements go, nothing is lost.
    """
    room = int(max(1 << 18, rate * 2 * delay))
    ways = [Direction(one, other, rate, delay, loss, room), Direction(other, one, rate, delay, 0.0, room)]
    while True:
        due = min((way.queue[0][0] for way in ways if way.queue), default=None)
        wait = 1.0 if due is None else max(0.0, due - time.monotonic())
        # Shorter waits than a millisecond cost more than they are exact.
        ready, _, _ = select.select([one, other], [], [], wait if wait > 0.001 or not wait else 0.001)
        now = time.monotonic()
        for way in ways:
            if way.source in ready:
                way.take(now)
            way.give(now)
