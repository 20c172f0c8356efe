"""JSON numbers as clients send them: some write integers as 1.0."""

from __future__ import annotations

from ipc.errors import InvalidRequestError

Int = int | float | None


def integer(name: str, value: Int) -> int | None:
    """`value` as an int. Raises InvalidRequestError when it has a fraction."""
    if isinstance(value, float):
        if not value.is_integer():
            raise InvalidRequestError(f"{name} must be an integer, got {value!r}", name)
        return int(value)
    return value
