"""Diagnosis of a provider's base URL: whether it is that of an API of chat completions, and if not, why.

`diagnose` asks the server, blocking: for the admin's Test button, the checks at start and `doctor`,
never in an event loop. It asks two things below the base URL: `GET models`, which lists the models,
and `POST chat/completions` with an empty body, which every server with that route refuses in JSON and
no server charges for. An address that fails is compared with the ones that were probably meant: only
on the same host, so that no key is sent to another one, and never over plain HTTP.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from chat.llm.deadline import within
from chat.llm.refusals import ErrorReport, read_error, refusal_of
from chatproject.lib.hosts import has_valid_host

SECONDS = 10.0
READ_BYTES = 16 * 1024 * 1024  # of a list of models: OpenRouter's has 1 MB for 400 models
SHOWN_CHARACTERS = 200

# Ends of addresses of single routes, which each request adds.
ROUTES = re.compile(r"(/chat/completions|/chat|/completions|/responses|/models|/embeddings)/*$")
# Where APIs are: OpenAI's own; Groq, Azure; OpenRouter; Google; Open WebUI; Fireworks; Alibaba; Cohere; Z.ai.
PATHS = (
    *("/v1", "/openai/v1", "/api/v1", "/v1beta/openai", "/api"),
    *("/inference/v1", "/compatible-mode/v1", "/compatibility/v1", "/api/paas/v4"),
)

REDIRECTS = {301, 302, 303, 307, 308}
BUSY = {429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}
JUNK = " \t\r\n\"'`<>"  # around a copied address
PLAIN_HTTP = re.compile(r"plain HTTP request|HTTP request to an HTTPS", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The finding about a base URL.

    `cause` is "" for an address that works, else a cause as in Run.error_cause: `address`, `key`,
    `quota`, `busy`, `refused`, `unreachable` or `timeout`. `sentence` is for staff and ends with
    a remedy. `suggestion` is a base URL on the same host that was asked and works. `models` are the
    names that the server lists, in its order; servers without a list have none.
    """

    cause: str
    sentence: str
    suggestion: str = ""
    models: tuple[str, ...] = ()
    milliseconds: int = 0

    @property
    def is_fine(self) -> bool:
        return not self.cause


def diagnose(
    base_url: str,
    *,
    key: str = "",
    proxy: str = "",
    headers: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
) -> Diagnosis:
    """Return the diagnosis of a base URL after at most so many seconds."""
    if not re.fullmatch(r"[\x20-\x7e]*", key):
        sentence = "The API key has a character that no HTTP header can have. Copy the key again."
        return Diagnosis("key", sentence)
    began = time.monotonic()

    def work() -> Diagnosis:
        with Server(base_url, key, proxy, headers or {}, began + seconds) as server:
            return _diagnose(base_url, server)

    try:
        found = within(seconds + 0.5, work, name="diagnosis")
    except TimeoutError:
        host = urlsplit(base_url).hostname or base_url
        found = Diagnosis("timeout", f"{host} did not answer within {seconds:g} seconds.")
    sentence = found.sentence
    for secret in (key, *(headers or {}).values()):
        if len(secret) > 3:  # servers may quote it
            sentence = sentence.replace(secret, "[key]")
    milliseconds = round((time.monotonic() - began) * 1000)
    return replace(found, sentence=sentence, milliseconds=milliseconds)


def _diagnose(base_url: str, server: Server) -> Diagnosis:
    problem = malformed(base_url)
    found = Answer("address", problem) if problem else server.ask(base_url)
    if found.cause not in {"address", "unreachable"}:
        return Diagnosis(found.cause, found.sentence, models=found.models)
    for other in probable(base_url, found.target):
        if server.is_late:
            break
        if found.cause == "unreachable" and other.partition(":")[0] == base_url.partition(":")[0]:
            continue  # as unreachable
        answer = server.ask(other)
        if answer.cause in {"", "key", "quota"}:
            remedy = f"{found.sentence} The API is at {other}: set the base URL to that."
            return Diagnosis("address", remedy, suggestion=other, models=answer.models)
    return Diagnosis(found.cause, found.sentence)


def malformed(base_url: str) -> str:
    """Return a sentence about the fault of a base URL that cannot be asked; "" for none."""
    if not base_url.strip():
        return "The base URL is empty. Enter one, for example https://api.openai.com/v1."
    if base_url != base_url.strip(JUNK):
        return "The base URL has quotes or spaces around it."
    if not re.fullmatch(r"[\x21-\x7e]+", base_url):
        return "The base URL has a space or a character that addresses cannot have."
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        return "The host or the port of the base URL is invalid: a port is a number up to 65535."
    if "://" not in base_url or parts.scheme not in {"http", "https"}:
        return "The base URL must begin with https:// or http://."
    if not parts.hostname:
        return "The base URL names no host."
    if not has_valid_host(parts):
        return "The host of the base URL is neither a name nor an IP address. Check its spelling."
    if port == 0:
        return "The port of the base URL must be a number from 1 to 65535."
    if "?" in base_url or "#" in base_url:
        return "The base URL must end before the ? or #."
    if found := ROUTES.search(parts.path):
        return f"The base URL ends with {found[1]}, which each request adds."
    return ""


def probable(base_url: str, target: str) -> Iterator[str]:
    """Yield the base URLs that were probably meant: the target of a redirect, then others.

    All are on the host of the base URL; plain HTTP only to where the base URL has it, and to this
    machine.
    """
    text = base_url.strip(JUNK)
    if not text:
        return
    scheme, authority, path = split_address(text)
    while path and ROUTES.search(path):
        path = ROUTES.sub("", path)
    is_local = is_loopback(authority)
    is_plain = is_local or scheme == "http"
    schemes = ["http", "https"] if is_plain else ["https"]
    bases = [path, *(path + one for one in PATHS if not path.endswith(one)), *PATHS]
    found = [target] if is_same_host(target, f"{schemes[0]}://{authority}") else []
    found += [f"{one}://{authority}{base}" for one in schemes for base in bases]
    seen = {base_url}
    for one in found:
        if one not in seen and not malformed(one):
            seen.add(one)
            yield one


def split_address(text: str) -> tuple[str, str, str]:
    """Return scheme, authority and path of an address that may be badly written; "" for other schemes."""
    text = text.strip(JUNK)
    scheme = re.match(r"(https?):/*|\w+://+|/+", text)
    rest = re.split(r"[?#]", text[scheme.end() :] if scheme else text)[0]
    authority, _, path = rest.partition("/")
    return (scheme[1] or "" if scheme else ""), authority, f"/{path}".rstrip("/")


def is_loopback(authority: str) -> bool:
    """Return whether an authority such as localhost:8080 is this machine."""
    host = re.sub(r":\d*$", "", authority.rpartition("@")[2]).strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_same_host(target: str, base_url: str) -> bool:
    """Return whether a redirect stays on a host, and does not leave TLS."""
    try:
        there, here = urlsplit(target), urlsplit(base_url)
    except ValueError:
        return False
    return there.hostname == here.hostname and (there.scheme, here.scheme) != ("http", "https")


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a server at one base URL; `target` is the base URL that it redirects to."""

    cause: str
    sentence: str
    models: tuple[str, ...] = ()
    target: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """A response of a server, as far as it matters here."""

    url: str  # without user and password
    status: int
    content: bytes
    location: str

    @property
    def is_page(self) -> bool:
        return self.content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")

    @property
    def data(self) -> Any:
        """The decoded JSON; None for anything else."""
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            return None

    @property
    def has_no_route(self) -> bool:
        """Whether the server knows no such path: a page, or 404 and 405 that are not about a model."""
        if self.is_page or self.status in {404, 405, 410, 501}:
            return self.is_page or not re.search(rb"\bmodel\b", self.content)
        return not isinstance(self.data, dict | list)

    @property
    def words(self) -> str:
        """The beginning of the content, for staff."""
        if self.is_page:
            return "a web page"
        message = self.report.message or self.content.decode(errors="replace")
        words = " ".join(message.split())[:SHOWN_CHARACTERS]
        return f"“{words}”" if words else "nothing"

    @property
    def report(self) -> ErrorReport:
        """The error in the content."""
        return read_error(self.data)

    @property
    def reason(self) -> str:
        """The reason of a refusal; "" without one."""
        refusal = refusal_of(self.status, self.report, is_page=self.is_page)
        return refusal.reason if refusal is not None and self.status >= 400 else ""


class Failure(Exception):
    """No response; `answer` says why."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.sentence)
        self.answer = answer


class Server:
    """The client of a diagnosis: asks base URLs until its deadline, by the clock of time.monotonic."""

    def __init__(
        self, base_url: str, key: str, proxy: str, headers: Mapping[str, str], deadline: float
    ) -> None:
        self._has_key = bool(key)
        self._deadline = deadline
        self._proxy = proxy
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {key or 'none'}", **headers},
            proxy=proxy or None,
            # A proxy of the environment could not reach a loopback address.
            trust_env=not is_loopback(split_address(base_url)[1]),
            verify=httpx2.create_ssl_context(),
            follow_redirects=False,
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    @property
    def is_late(self) -> bool:
        return time.monotonic() >= self._deadline

    def ask(self, base_url: str) -> Answer:
        """Return what the server answers at a base URL."""
        base = base_url.rstrip("/")
        try:
            listed = self.send("GET", f"{base}/models")
            if listed.status in REDIRECTS:
                return redirected(listed, "/models")
            posted = self.send("POST", f"{base}/chat/completions")
        except Failure as failure:
            return failure.answer
        if posted.status in REDIRECTS:
            return redirected(posted, "/chat/completions")
        if PLAIN_HTTP.search(posted.words) or b"HTTPS port" in posted.content:
            return Answer("address", f"{where(base)} answers only to https://.")
        if posted.is_page and posted.status in {401, 403}:
            sentence = f"{posted.url} answered HTTP {posted.status} with a web page: a firewall or proxy in between refuses the request."
            return Answer("refused", sentence)
        if posted.status in BUSY and (posted.is_page or listed.status != 200):
            sentence = (
                f"{posted.url} answered HTTP {posted.status}: {posted.words}. Try again later."
            )
            return Answer("busy", sentence)
        if posted.has_no_route:
            sentence = (
                f"{posted.url} answered HTTP {posted.status} with {posted.words}: no API is there."
            )
            return Answer("address", sentence)
        return self._answer_of_api(listed, posted)

    def _answer_of_api(self, listed: Response, posted: Response) -> Answer:
        for response in (posted, listed):
            if response.reason == "quota":
                sentence = f"{response.url} refused for lack of quota: {response.words}. Check the balance."
                return Answer("quota", sentence)
            if response.status in {401, 403} or response.reason == "key":
                remedy = "Check the API key." if self._has_key else "Enter an API key."
                sentence = f"{response.url} refused the key (HTTP {response.status}): {response.words}. {remedy}"
                return Answer("key", sentence)
        if listed.status != 200:
            return Answer("", "The address answers. It does not list its models.")
        models = model_names(listed.data)
        number = f"{len(models)} model{'' if len(models) == 1 else 's'}" if models else "no models"
        return Answer("", f"The address answers and lists {number}.", models)

    def send(self, method: str, url: str, content: bytes | None = None) -> Response:
        """Return the response of a route; of POST, `content` is JSON. Raises Failure without one."""
        if method == "POST" and content is None:
            content = b"{}"
        fields = {"Content-Type": "application/json"} if content else {}
        left = max(0.1, self._deadline - time.monotonic())
        try:
            with self._client.stream(
                method, url, content=content, headers=fields, timeout=left
            ) as response:
                location = response.headers.get("location", "")
                with suppress(ValueError):  # not an address
                    location = urljoin(url, location)
                shown = where(url) + urlsplit(url).path
                return Response(shown, response.status_code, self._read(response), location)
        except httpx2.ConnectTimeout:
            sentence = f"{self._place(url)} did not accept a connection in time. Check host, port and firewall."
            raise Failure(Answer("unreachable", sentence)) from None
        except httpx2.TimeoutException:
            raise Failure(Answer("timeout", f"{where(url)} did not answer in time.")) from None
        except httpx2.ProxyError as error:
            raise Failure(Answer("unreachable", f"The proxy failed: {error}.")) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            raise Failure(unreachable(url, error, self._place(url))) from None

    def _place(self, url: str) -> str:
        """Return the server that connections for a URL are opened to: a proxy, or its own."""
        proxy = self._proxy
        parts = urlsplit(url)
        if not proxy and self._client.trust_env and not proxy_bypass(parts.netloc):
            proxies = getproxies()
            proxy = proxies.get(parts.scheme) or proxies.get("all", "")
        return f"The proxy {where(proxy)}" if proxy else where(url)

    def _read(self, response: httpx2.Response) -> bytes:
        content = bytearray()
        for part in response.iter_bytes():
            content += part
            if self.is_late:
                sentence = f"{where(str(response.url))} did not finish its answer in time."
                raise Failure(Answer("timeout", sentence))
            if len(content) > READ_BYTES:
                break
        return bytes(content)


def where(url: str) -> str:
    """Return scheme, host and port of a URL, without user and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def unreachable(url: str, error: Exception, peer: str) -> Answer:
    """Return the answer for a request without a response, with its innermost reason.

    `peer` is the server that the connection is opened to, which may be a proxy; TLS is spoken with the
    server of the URL.
    """
    cause: BaseException = error
    while inner := cause.__cause__ or cause.__context__:
        cause = inner
    place = where(url)
    if isinstance(cause, socket.gaierror):
        sentence = f"The host name of {peer[0].lower() + peer[1:]} cannot be resolved ({cause.strerror}). Check its spelling and the DNS."
    elif isinstance(cause, ConnectionRefusedError):
        sentence = f"{peer} refuses connections. Check the port, and that the server runs."
    elif isinstance(cause, ssl.SSLCertVerificationError):
        sentence = f"The certificate of {place} is not valid: {cause.verify_message}."
    elif isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
        sentence = (
            f"{place} does not speak TLS at this port. If it speaks plain HTTP, write http://."
        )
    elif isinstance(cause, ssl.SSLError):
        sentence = f"The TLS connection to {place} failed: {cause.reason or cause}."
    elif isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError):
        sentence = f"{peer} closed the connection or does not speak HTTP at this port. It may need https://."
    else:
        sentence = f"{peer} cannot be reached: {cause}."
    return Answer("unreachable", sentence)


def redirected(response: Response, route: str) -> Answer:
    """Return the answer for a redirect, whose target is the base URL of the address it names."""
    location = re.split(r"[?#]", response.location)[0]
    target = location.removesuffix("/").removesuffix(route)
    sentence = f"{response.url} redirects to {location} (HTTP {response.status})."
    return Answer("address", sentence, target=target if target != location else "")


def model_names(data: Any) -> tuple[str, ...]:
    """Return the names in a list of models: OpenAI's `data`, Ollama's `models`, or a bare list."""
    if isinstance(data, dict):
        data = data.get("data") or data.get("models")
    names = []
    for model in data if isinstance(data, list) else []:
        name = (
            next((model[k] for k in ("id", "name", "model") if model.get(k)), "")
            if isinstance(model, dict)
            else model
        )
        if isinstance(name, str) and name:
            names.append(name)
    return tuple(names)
