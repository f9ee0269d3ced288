"""Messages between the study and its workers: JSON with a length before it, over a pipe."""

from __future__ import annotations

import os
from typing import Any

from luthier.files import from_json, to_json

LEAVE_S = 2.0
"""How long a process may take to leave before it is killed, and an actor before it is left."""

_LENGTH_BYTES = 4


def encode(message: dict[str, Any]) -> bytes:
    """A message as bytes: four bytes of length, then JSON.

    >>> Inbox().feed(encode({"event": "ready"}))
    [{'event': 'ready'}]
    """
    content = to_json(message).encode()
    return len(content).to_bytes(_LENGTH_BYTES, "big") + content


def send(descriptor: int, message: dict[str, Any]) -> None:
    """Write a message whole to a pipe.

    Raises:
        OSError: the reader is gone.
    """
    content = memoryview(encode(message))
    while content:
        content = content[os.write(descriptor, content) :]


class Inbox:
    """Puts messages together from the pieces that a pipe delivers."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, content: bytes) -> list[dict[str, Any]]:
        """Take a piece in; returns the messages that are now complete."""
        self._buffer += content
        messages = []
        while len(self._buffer) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if len(self._buffer) < end:
                break
            messages.append(from_json(bytes(self._buffer[_LENGTH_BYTES:end])))
            del self._buffer[:end]
        return messages
