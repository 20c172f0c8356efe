"""Who may ask: default-deny once keys are set."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence

# Load balancers and init systems probe it, and it tells nothing but whether the engine serves.
PUBLIC_PATHS = frozenset({"/health"})


class ApiKeys:
    """Keys are kept and compared as SHA-256 digests, in constant time: timing tells neither a key's length nor how much of it was right."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def allow(self, path: str, headers: Mapping[str, str]) -> bool:
        """Whether a request may pass: no keys are set, the path is public, or it brings a key as `Authorization: Bearer` or `x-api-key`."""
        if not self._digests or path in PUBLIC_PATHS:
            return True
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        offered = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(offered.encode("utf-8", "surrogateescape")).digest()
        # No early exit: every key is compared.
        return bool(offered) and sum(hmac.compare_digest(digest, known) for known in self._digests) > 0
