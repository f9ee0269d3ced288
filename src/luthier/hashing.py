"""What tells one function from another in a file."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any


def source_hash(call: object) -> str:
    """Sixteen hex digits over a callable's source, else over its bytecode, else over its name."""
    target: Any = call if inspect.isroutine(call) or inspect.isclass(call) else type(call)
    try:
        text = inspect.getsource(target).encode()
    except (OSError, TypeError):
        code = getattr(call, "__code__", None)
        text = code.co_code if code is not None else f"{target.__module__}.{target.__qualname__}".encode()
    return hashlib.sha256(text).hexdigest()[:16]
