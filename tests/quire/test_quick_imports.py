"""Imports of a process of ours, in a fresh Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import gc, json, os
from quire import quick_imports
before = dict(os.environ)
quick_imports.begin()
assert not gc.isenabled()
with quick_imports.no_certificates():
    import aiohttp.connector
quick_imports.end()
assert gc.isenabled() and gc.get_freeze_count() > 10_000
assert dict(os.environ) == before
threads = len(os.listdir("/proc/self/task"))
certificates = aiohttp.connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509"]
print(json.dumps([threads, certificates]))
"""


def test_no_thread_is_started_and_no_certificate_read() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[1, 0]\n"
