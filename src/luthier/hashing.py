"""What tells one function from another in a file."""

from __future__ import annotations

import hashlib
import inspect
from functools import lru_cache
from typing import Any


def source_hash(call: object) -> str:
    """Sixteen hex digits over a callable's source, else over its bytecode, else over its name."""
    target: Any = call if inspect.isroutine(call) or inspect.isclass(call) else type(call)
    try:
        text = _source(target)
    except (OSError, TypeError):
        code = getattr(call, "__code__", None)
        text = code.co_code if code is not None else f"{target.__module__}.{target.__qualname__}".encode()
    return hashlib.sha256(text).hexdigest()[:16]


@lru_cache(maxsize=32)  # parsing a module takes 20 ms, and a study's trials ask again and again
def _source(target: Any) -> bytes:
    return inspect.getsource(target).encode()
