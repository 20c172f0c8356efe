"""What several process tests share."""

from __future__ import annotations

import pytest

from tests import oracle


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A float32 Llama with random weights and the demo model's tokenizer: greedy output does not depend on how steps are cut."""
    return oracle.make_model(tmp_path_factory.mktemp("tiny"))
