"""The four ways in which clients write one prompt or several."""

from __future__ import annotations

from typing import Any

from ipc.errors import InvalidRequestError


def prompts_of(name: str, given: str | list[Any], limit: int) -> list[str | list[int]]:
    """One entry per prompt. Raises InvalidRequestError about the field `name` for mixed, empty or too many prompts."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise InvalidRequestError(f"{name} must not be empty", name)
    if _all(given, int):
        return [given]
    if len(given) > limit:
        raise InvalidRequestError(f"a request may have at most {limit} {name}s, got {len(given)}", name)
    if _all(given, str) or all(isinstance(each, list) and _all(each, int) for each in given):
        return given
    raise InvalidRequestError(f"{name} must be a string, a list of strings, a list of token ids, or a list of lists of token ids", name)


def _all(values: list[Any], kind: type) -> bool:
    return all(type(value) is kind for value in values)
