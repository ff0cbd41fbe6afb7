"""A cable that delays frames and loses some of them, as tc's netem does; needs no kernel module."""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import threading
import time
from collections import deque
from contextlib import suppress

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
FRAME = 65536  # bytes to read at most
QUEUE = 20_000  # frames on their way in one direction


class LossyCable:
    """Two network devices; every frame sent to one leaves the other after `delay` seconds.

    A share `loss` of the frames is dropped. `names`: of the devices, in the current namespace; they
    can be moved to others. `passed`, `lost`: frames so far.
    """

    def __init__(self, names: tuple[str, str], *, delay: float, loss: float, seed: int) -> None:
        self.delay, self.loss = delay, loss
        self.passed = self.lost = 0
        self._rng = random.Random(seed)
        self._ends = [_tap(name) for name in names]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._forward, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Remove the devices."""
        self._over.set()
        self._thread.join()
        for fd in self._ends:
            os.close(fd)

    def _forward(self) -> None:
        here, there = self._ends
        other = {here: there, there: here}
        waiting: dict[int, deque[tuple[float, bytes]]] = {here: deque(), there: deque()}
        while not self._over.is_set():
            now = time.monotonic()
            wait = 0.1
            for fd, frames in waiting.items():
                while frames and frames[0][0] <= now:
                    with suppress(OSError):  # the device is not up yet
                        os.write(fd, frames.popleft()[1])
                if frames:
                    wait = min(wait, frames[0][0] - now)
            for fd in select.select(self._ends, [], [], max(0.0, wait))[0]:
                frame = os.read(fd, FRAME)
                if self._rng.random() < self.loss or len(waiting[other[fd]]) >= QUEUE:
                    self.lost += 1
                else:
                    self.passed += 1
                    waiting[other[fd]].append((time.monotonic() + self.delay, frame))


def _tap(name: str) -> int:
    """Create a network device; return the file whose reads and writes are its frames."""
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd
