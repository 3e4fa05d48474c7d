"""What an attach can fail with."""

from __future__ import annotations


class AttachError(Exception):
    """An attach failed and was undone.

    ``device`` is the device as a user knows it, ``step`` what was being done, ``reason`` one word of the list in
    docs/user/status.md, ``message`` says what was wanted, the kernel's words and what to do.
    """

    def __init__(self, device: str, step: str, reason: str, message: str) -> None:
        super().__init__(device, step, reason, message)
        self.device = device
        self.step = step
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.device}: {self.message}"
