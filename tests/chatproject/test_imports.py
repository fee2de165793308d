"""Libraries that only some processes need do not delay the start of the others."""

from __future__ import annotations

import subprocess
import sys

from chatproject.local.servers import BASE_DIR

FOUND = """
import sys, django
django.setup()
import chatproject.asgi, chatproject.urls
print({"openai", "aiohttp", "fpdf", "fontTools"} & {*sys.modules})
"""


def test_web_process_starts_without_workers_libraries():
    done = subprocess.run(
        [sys.executable, "-c", FOUND], cwd=BASE_DIR, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "set()\n", done.stderr
