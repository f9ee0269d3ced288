"""Whether a study is the one that a call asks for: what differs between two descriptions, and what of that is code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.files import from_stored, to_json

EDITED = "edited"
"""As `resume` of `tune`: go on though code has changed."""

_CODE = {
    "function": "the code of the function has changed",
    "arguments": "the arguments of the function, or what it closes over, have changed",
    "model_source": "the code of the model's builder has changed",
    "model_arguments": "the arguments of the model's builder, or what it closes over, have changed",
}
"""What is said of hashes in a study's description."""

READS = "reads"
"""Where a description has hashes of what a function reads beside its own code."""


def edits(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed in the code, in words; a part that only one of the two has is a difference."""
    return [
        told for name, told in _CODE.items() if _both(known, now, name) and known["task"][name] != now["task"][name]
    ]


def changed_reads(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of what the function reads beside its own code and what is another thing than before.

    What only one of the two reads is none of them: then the code has changed.
    """
    before, after = (each["task"].get(READS) or {} for each in (known, now))
    return [name for name in before if name in after and before[name] != after[name]]


def differences(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs otherwise, in words."""
    changes = []
    if known["recipe"] is not None and now["recipe"] is not None:
        from luthier.recipe import Recipe

        old, new = Recipe.from_json(known["recipe"]), Recipe.from_json(now["recipe"])
        for path, (before, after) in old.differences(new).items():
            changes.append(f"recipe {path}: {before!r} there, {after!r} now")
    for part in ("task", "space"):
        for name in dict.fromkeys([*known[part], *now[part]]):
            if part == "task" and (name == READS or (name in _CODE and _both(known, now, name))):
                continue
            before, after = known[part].get(name), now[part].get(name)
            if not _is_same(before, after):
                changes.append(f"{part} {name}: {_short(before)} there, {_short(after)} now")
    for part in ("groups", "seed", "start", "virtual", "objectives"):
        before, after = known.get(part), now.get(part)
        if not _is_same(before, after) and not any(change.startswith(f"recipe {part}") for change in changes):
            changes.append(f"{part}: {from_stored(before)!r} there, {from_stored(after)!r} now")
    return changes


def _both(known: Mapping[str, Any], now: Mapping[str, Any], name: str) -> bool:
    return None not in (known["task"].get(name), now["task"].get(name))


def _is_same(before: Any, after: Any) -> bool:
    """Whether two parts of descriptions are one, a list and a tuple being one, as in a space."""
    return to_json(from_stored(before)) == to_json(from_stored(after))


def _short(value: Any) -> str:
    value = from_stored(value)
    if isinstance(value, dict):
        return " ".join(str(item) for item in value.values()) or "none"
    return "absent" if value is None else repr(value)
