"""All tests of this folder build kernels with g++ and are skipped where it is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda_on_cpu.emulator import missing_compiler


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = missing_compiler()
    for item in items:
        if (
            reason
            and item.path.is_relative_to(Path(__file__).parent)
            and item.path.name not in ("test_build.py", "test_launch.py", "test_plan.py", "test_wheel.py")
        ):
            item.add_marker(pytest.mark.skip(reason=reason))
