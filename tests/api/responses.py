"""What tests of /v1/responses share."""

from __future__ import annotations

import json
from typing import Any

PATH = "/v1/responses"
KEY = {"Authorization": "Bearer sk-one"}


def events(raw: bytes) -> list[dict[str, Any]]:
    """Each event's data; its name must be its type."""
    found = []
    for part in raw.decode().split("\n\n")[:-1]:
        if part.startswith(":"):
            continue
        name, data = part.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert found[-1]["type"] == name.removeprefix("event: ")
    return found
