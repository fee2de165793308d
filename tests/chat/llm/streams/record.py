"""Records llamacpp.sse from the embedded model server; see README.md.

Run it only when the server's format changes: each recording has other ids and times.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from urllib.request import Request, urlopen

from chatproject.local.servers import MODEL_NAME, ModelServer

PROMPT = "Count: eins, zwei, drei. Greet me in French and in Japanese."


def record() -> bytes:
    body = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 24,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    server = ModelServer()
    server.start()
    try:
        request = Request(
            f"{server.url}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urlopen(request) as response:
            recorded: bytes = response.read()
            return recorded
    finally:
        server.stop()


if __name__ == "__main__":
    Path(__file__).with_name("llamacpp.sse").write_bytes(record())
    sys.stdout.write("recorded; now compare llamacpp.json with its content\n")
