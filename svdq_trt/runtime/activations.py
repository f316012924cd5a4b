"""Memory for activations that several sessions share, as they run one after another."""

from __future__ import annotations

import threading
from typing import Any

from svdq_trt.base.errors import UsageError
from svdq_trt.runtime.device import DeviceMemory


class SharedActivations:
    """One buffer for the activations of all sessions that it is given to, as large as the largest of them needs.

        shared = SharedActivations()
        text = Session("engines/sdxl-sm_89/text_encoder", activations=shared)
        unet = Session("engines/sdxl-sm_89", activations=shared)

    Those sessions must be on one GPU, and run one after another on one stream of the caller: two threads need two of
    these. They may be opened side by side. The first run allocates the buffer, for all that are open by then. A session
    that is opened later and needs more replaces it at its first run; CUDA graphs are then captured again.

    Attributes:
        buffer: what DeviceMemory.allocate returned; None before the first run, and where memory did not suffice.
        bytes: its size. number: of buffers so far.
    """

    def __init__(self) -> None:
        self.buffer: Any = None
        self.bytes = self.number = 0
        self._device: int | None = None  # CUDA's index of the sessions' GPU
        self._announced, self._lock = 0, threading.Lock()

    def join(self, device: int) -> None:
        """Let a session on that CUDA device in. Raises UsageError: those before it are on another."""
        with self._lock:
            if self._device not in (None, device):
                raise UsageError(
                    "activations",
                    f"shared by sessions on cuda:{self._device} and cuda:{device}",
                    "sessions on one GPU",
                    "Make a SharedActivations for each.",
                )
            self._device = device

    def announce(self, count: int) -> None:
        """A session that is being opened will need `count` bytes."""
        with self._lock:
            self._announced = max(self._announced, count)

    def reserve(self, memory: DeviceMemory, count: int) -> None:
        """Make sure that there are `count` bytes; `memory` is a session's, current by `running`."""
        if count > self.bytes or self.buffer is None:
            count, self._announced = max(count, self._announced, 1), 0  # if that fails, others do with less
            memory.synchronize()  # and so for what other sessions do in the old one: see DeviceMemory.running
            self.buffer, self.bytes = None, 0  # freed before the new one is allocated: nobody else holds it
            self.buffer = memory.allocate("uint8", count)
            self.bytes, self.number = count, self.number + 1
