"""The diagnosis of base URLs, with real servers: right and almost right addresses."""

from __future__ import annotations

import datetime
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from chat.llm.address import diagnose
from chatproject.local.servers import free_port

KEY = "sk-of-the-test"
MODELS = {"data": [{"id": "small"}, {"id": "large", "owned_by": "us"}]}
JSON = "application/json"
PAGE = "<!doctype html><title>Welcome</title>"

Answer = tuple[int, str, object]  # status, Content-Type, and JSON or text


class Handler(BaseHTTPRequestHandler):
    """Answers from the server's table of routes, else with a page and 404."""

    protocol_version = "HTTP/1.1"
    server: Routes

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, self.headers.get("Authorization", "")))
        route = self.server.routes.get(f"{self.command} {self.path}", self.server.other)
        status, kind, content = route(self) if callable(route) else route
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", str(content))
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


class Routes(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, base: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.port = self.server_address[1]
        self.asked: list[tuple[str, str]] = []
        self.other: Answer = (404, "text/html", PAGE)
        self.routes: dict[str, Answer | Callable[[Handler], Answer]] = {
            f"GET {base}/models": (200, JSON, MODELS),
            f"POST {base}/chat/completions": (400, JSON, {"error": {"message": "no messages"}}),
        }

    def url(self, path: str, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"


@contextmanager
def serving(base: str = "/v1", tls: ssl.SSLContext | None = None) -> Iterator[Routes]:
    """Run an API below a path."""
    with Routes(base) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def api() -> Iterator[Routes]:
    with serving() as server:
        yield server


@pytest.mark.parametrize("path", ["/v1", "/v1/"])
def test_working_address_lists_models(api, path):
    found = diagnose(api.url(path), key=KEY)

    assert (found.cause, found.models, found.suggestion) == ("", ("small", "large"), "")
    assert found.is_fine
    assert found.milliseconds >= 0
    assert {header for _, header in api.asked} == {f"Bearer {KEY}"}


def test_single_model_is_counted_in_singular(api):
    api.routes["GET /v1/models"] = (200, JSON, {"data": [{"id": "small"}]})

    assert diagnose(api.url("/v1")).sentence == "The address answers and lists 1 model."


def test_server_without_list_works(api):
    del api.routes["GET /v1/models"]

    found = diagnose(api.url("/v1"), key=KEY)

    assert (found.cause, found.models) == ("", ())


@pytest.mark.parametrize(
    "data",
    [
        [{"id": "small"}, {"id": "large"}],
        ["small", "large"],
        {"models": [{"name": "small"}, {"model": "large"}]},
        {"object": "list", "data": [{"id": "small"}, {"id": ""}, 3, None, {"id": "large"}]},
    ],
)
def test_lists_of_other_shapes_are_read(api, data):
    api.routes["GET /v1/models"] = (200, JSON, data)

    assert diagnose(api.url("/v1")).models == ("small", "large")


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "/",
            "/v1/chat/completions",
            "/v1/chat/completions/",
            "/v1/models",
            "/v1/completions",
        ),
        *(
            "/v1?api-version=1",
            "/v1/chat/completions?x=1#y",
            "/v1#",
            "/v1/v1",
            "/api",
            "/api/v1/chat",
        ),
    ],
)
def test_almost_right_path_gets_suggestion(api, path):
    found = diagnose(api.url(path), key=KEY)

    assert (found.cause, found.suggestion) == ("address", api.url("/v1"))
    assert api.url("/v1") in found.sentence
    assert found.models == ("small", "large")


@pytest.mark.parametrize(
    "base", ["/openai/v1", "/api/v1", "/v1beta/openai", "/api", "/inference/v1", "/tenant/7/v1"]
)
def test_paths_of_other_apis_are_tried(base):
    with serving(base) as api:
        meant = base.removesuffix("/v1") if base.startswith("/tenant") else ""

        assert diagnose(api.url(meant)).suggestion == api.url(base)


@pytest.mark.parametrize(
    "written", ["{host}/v1", "{host}", " http://{host}/v1 ", '"http://{host}/v1"', "http:{host}/v1"]
)
def test_badly_written_address_gets_suggestion(api, written):
    found = diagnose(written.format(host=f"127.0.0.1:{api.port}"))

    assert (found.cause, found.suggestion) == ("address", api.url("/v1"))


@pytest.mark.parametrize(
    ("base_url", "word"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("http://127.0.0.1:99999/v1", "port"),
        ("http://127.0.0.1:port/v1", "port"),
        ("http://127.0.0.1:0/v1", "port"),
        ("http://[::1/v1", "invalid"),
        ("http:///v1", "no host"),
        ("https://", "no host"),
        ("https://häuser example/v1", "character"),
    ],
)
def test_unusable_address_has_reason(base_url, word):
    found = diagnose(base_url)

    assert (found.cause, found.suggestion) == ("address", "")
    assert word in found.sentence


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("route", ["GET /old/models", "POST /old/chat/completions"])
def test_redirect_is_named_and_followed_here(api, status, route):
    api.routes["GET /old/models"] = (200, JSON, MODELS)
    path = route.partition(" ")[2]
    api.routes[route] = (status, "text/plain", path.replace("/old", "/v1"))

    found = diagnose(api.url("/old"))

    assert (found.cause, found.suggestion) == ("address", api.url("/v1"))
    assert api.url(path.replace("/old", "/v1")) in found.sentence


def test_redirect_to_another_host_is_only_named(api):
    with serving() as stranger:
        target = f"http://localhost:{stranger.port}/v1/models"
        api.routes = {"GET /v1/models": (308, "text/plain", target)}

        found = diagnose(api.url("/v1"), key=KEY)

        assert (found.cause, found.suggestion, stranger.asked) == ("address", "", [])
        assert target in found.sentence


def test_redirect_to_no_address_is_named(api):
    api.routes = {"GET /v1/models": (302, "text/plain", "http://[::1/v1")}

    assert "http://[::1/v1" in diagnose(api.url("/v1")).sentence


@pytest.mark.parametrize("status", [200, 404])
def test_web_page_is_no_api(api, status):
    api.routes, api.other = {}, (status, "text/html", PAGE)

    found = diagnose(api.url("/v1"))

    assert (found.cause, found.suggestion) == ("address", "")
    assert "web page" in found.sentence
    assert api.url("/v1/chat/completions") in found.sentence


@pytest.mark.parametrize(
    ("route", "answer", "cause"),
    [
        ("POST", (401, JSON, {"error": {"message": f"Incorrect API key provided: {KEY}"}}), "key"),
        ("GET", (403, JSON, {"detail": "Forbidden"}), "key"),
        ("POST", (400, JSON, [{"error": {"message": "API key not valid."}}]), "key"),
        ("POST", (402, JSON, {"error": {"message": "Insufficient credits"}}), "quota"),
        ("POST", (429, JSON, {"error": {"message": "You exceeded your current quota"}}), "quota"),
        ("POST", (503, "text/html", PAGE), "busy"),
        ("POST", (403, "text/html", PAGE), "refused"),
    ],
)
def test_other_refusals_have_their_cause(api, route, answer, cause):
    path = {"GET": "/v1/models", "POST": "/v1/chat/completions"}[route]
    api.routes[f"{route} {path}"] = answer

    found = diagnose(api.url("/v1"), key=KEY)

    assert (found.cause, found.suggestion) == (cause, "")
    assert KEY not in found.sentence
    assert api.url("/v1") in found.sentence


def test_fault_of_empty_request_is_no_fault(api):
    api.routes["POST /v1/chat/completions"] = (500, JSON, {"error": "messages is missing"})

    assert diagnose(api.url("/v1")).cause == ""


def test_key_with_odd_character_is_named(api):
    assert diagnose(api.url("/v1"), key="sk-“quoted”").cause == "key"
    assert api.asked == []


def test_unreachable_servers_have_reason():
    port = free_port()

    refused = diagnose(f"http://127.0.0.1:{port}/v1")
    unknown = diagnose("http://no-such-host.invalid/v1")

    assert refused.cause == unknown.cause == "unreachable"
    assert f"127.0.0.1:{port} refuses connections" in refused.sentence
    assert "no-such-host.invalid cannot be resolved" in unknown.sentence


def test_other_protocol_is_unreachable():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            for _ in range(2):
                with listening.accept()[0] as connection:
                    connection.sendall(b"220 mail.example.com ESMTP\r\n")

        threading.Thread(target=greet, daemon=True).start()
        found = diagnose(f"http://127.0.0.1:{listening.getsockname()[1]}/v1")

    assert found.cause == "unreachable"
    assert "does not speak HTTP" in found.sentence


@pytest.mark.parametrize("drips", [False, True])
def test_silent_server_ends_within_limit(api, drips):
    released = threading.Event()

    def wait(handler: Handler) -> Answer:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n")
        while drips and not released.wait(0.05):
            handler.wfile.write(b" ")
        released.wait(30)
        raise ConnectionAbortedError

    api.routes["GET /v1/models"] = wait
    api.handle_error = lambda *arguments: None
    began = time.monotonic()

    found = diagnose(api.url("/v1"), seconds=0.5)

    released.set()
    assert found.cause == "timeout"
    assert time.monotonic() - began < 10


def test_proxy_of_environment_is_not_for_loopback(api, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)

    assert diagnose(api.url("/v1")).is_fine
    assert diagnose(f"127.0.0.1:{api.port}").suggestion == api.url("/v1")


def test_proxy_is_used_and_named(api):
    api.routes[f"GET {api.url('/v1/models')}"] = (200, JSON, MODELS)
    api.routes[f"POST {api.url('/v1/chat/completions')}"] = (400, JSON, {"error": "no messages"})

    through = diagnose(api.url("/v1"), proxy=api.url(""))
    broken = diagnose("http://127.0.0.1:9/v1", proxy=f"http://127.0.0.1:{free_port()}")

    assert through.cause == ""
    assert [path for path, _ in api.asked] == [
        api.url("/v1/models"),
        api.url("/v1/chat/completions"),
    ]
    assert broken.cause == "unreachable"


# --- TLS --------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.fixture
def tls_api(certificate: Path) -> Iterator[Routes]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(tls=context) as server:
        server.handle_error = lambda *arguments: None  # type: ignore[method-assign]
        yield server


def test_untrusted_certificate_is_named(tls_api):
    found = diagnose(tls_api.url("/v1", "https"), key=KEY)

    assert (found.cause, found.suggestion, tls_api.asked) == ("unreachable", "", [])
    assert "certificate" in found.sentence


def test_plain_http_to_tls_port_gets_suggestion(tls_api, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    found = diagnose(tls_api.url("/v1"), key=KEY)

    assert found.suggestion == tls_api.url("/v1", "https")
    assert found.cause == "address"


def test_tls_to_plain_port_is_named(api):
    found = diagnose(api.url("/v1", "https"), key=KEY)

    assert "does not speak TLS" in found.sentence
    assert found.suggestion == api.url("/v1")  # on this machine alone
