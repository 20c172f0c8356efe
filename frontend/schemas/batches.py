"""POST /v1/batches, and the lines of a batch's input file. Unknown names are ignored."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from frontend.schemas.responses import MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE
from ipc.errors import InvalidRequestError

MIN_EXPIRY, MAX_EXPIRY = 3_600, 2_592_000
MAX_CUSTOM_ID = 512


class ExpiresAfter(msgspec.Struct, kw_only=True):
    anchor: str
    seconds: int

    def check(self, param: str) -> int:
        """The seconds. Raises InvalidRequestError."""
        if self.anchor != "created_at":
            raise InvalidRequestError(f"{param}: the anchor must be created_at", param)
        if not MIN_EXPIRY <= self.seconds <= MAX_EXPIRY:
            raise InvalidRequestError(f"{param}: seconds must be from {MIN_EXPIRY} to {MAX_EXPIRY}", param)
        return self.seconds


class BatchRequest(msgspec.Struct, kw_only=True):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None

    def check(self, endpoints: tuple[str, ...], window: str) -> None:
        """Raise InvalidRequestError naming the field."""
        if self.endpoint not in endpoints:
            raise InvalidRequestError(f"endpoint must be one of {', '.join(endpoints)}", "endpoint")
        if self.completion_window != window:
            raise InvalidRequestError(f"completion_window must be {window}", "completion_window")
        metadata = self.metadata or {}
        if len(metadata) > MAX_METADATA or any(
            len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE for key, value in metadata.items()
        ):
            raise InvalidRequestError(
                f"metadata may have {MAX_METADATA} entries, keys of {MAX_METADATA_KEY} and values of {MAX_METADATA_VALUE} characters",
                "metadata",
            )


class BatchLine(msgspec.Struct, kw_only=True):
    """One request of a batch. custom_id: the client's name for it, unique in the file."""

    custom_id: str
    method: Literal["POST"]
    url: str
    body: dict[str, Any]
