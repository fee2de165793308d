"""The peers of the bench do the measured work, and their clients detect every fault.

Chainlit is not installed for tests: the frames of its server were recorded.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import msgspec
import pytest
from aiohttp import ClientSession, WSMsgType, web
from aiohttp.test_utils import TestServer

from bench import systems as registry
from bench.peers import frames, systems
from bench.peers.systems import Chainlit, ChainlitClient, Proxy, ProxyClient
from bench.systems import NotInstalled, WrongReply
from chatproject.local.servers import free_port
from tests.support.fake_llm import FakeLLM, reply_text
from tests.support.fake_llm.fixture import provider, provider_process

__all__ = ["provider", "provider_process"]


def test_peers_are_found_by_name():
    assert registry.find("proxy") is Proxy
    assert registry.find("chainlit") is Chainlit


# --- The proxy ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxy(provider_process: FakeLLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    system = Proxy(
        provider_url=provider_process.url, folder=tmp_path_factory.mktemp("proxy"), users=1
    )
    system.start()
    yield system
    system.stop()


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[ProxyClient]:
    connected = await proxy.connect(0)
    yield connected
    await connected.close()


async def test_proxy_passes_bytes_on_unchanged(provider: FakeLLM, proxy: Proxy):
    prompt = "[[tokens=40 rate=0]] größer 🙂"
    async with ClientSession() as session:
        async with session.post(proxy.base, data=prompt.encode()) as answer:
            passed_on = await answer.read()
        [asked] = provider.requests
        async with session.post(f"{provider.url}/chat/completions", json=asked) as answer:
            assert passed_on == await answer.read()
    assert passed_on.endswith(b"data: [DONE]\n\n")


async def test_proxy_passes_tokens_on_one_by_one(provider: FakeLLM, client: ProxyClient):
    prompt = "[[tokens=3 hold=1 key=second]]"
    async with aclosing(client.send(prompt)) as pieces:
        first = await anext(pieces)
        # The provider sends nothing until its stream is released.
        await asyncio.to_thread(provider.wait, held=1)
        provider.release("second")
        assert first + "".join([piece async for piece in pieces]) == reply_text(3, prompt)


async def test_one_connection_carries_several_replies(provider: FakeLLM, client: ProxyClient):
    for prompt in ("[[tokens=5 rate=0]]", "[[tokens=7 rate=0]]"):
        assert await whole(client.send(prompt)) == reply_text(int(prompt[9]), prompt)


@pytest.mark.parametrize(
    ("prompt", "error", "words"),
    [
        ("[[status=429]]", WrongReply, r"HTTP 429: .*told to refuse"),
        ("[[tokens=9 cut=4]]", ConnectionError, "broke off"),
        ("[[tokens=9 short=4]]", WrongReply, "without a finish reason"),
    ],
)
async def test_incomplete_reply_is_reported(provider, client: ProxyClient, prompt, error, words):
    with pytest.raises(error, match=words):
        await whole(client.send(prompt))


async def test_provider_stops_after_the_client_left(provider: FakeLLM, client: ProxyClient):
    async with aclosing(client.send("[[tokens=3 silent=1]]")) as pieces:
        await anext(pieces)
    await asyncio.to_thread(provider.wait, aborted=1, active=0)


async def test_proxy_reports_an_unreachable_provider(tmp_path: Path):
    system = Proxy(provider_url=f"http://127.0.0.1:{free_port()}/v1", folder=tmp_path, users=1)
    system.start()
    try:
        client = await system.connect(0)
        with pytest.raises(WrongReply, match="HTTP 502"):
            await whole(client.send("hello"))
        await client.close()
    finally:
        system.stop()


def test_stop_ends_the_process(tmp_path: Path):
    system = Proxy(provider_url="http://127.0.0.1:9/v1", folder=tmp_path, users=1)
    system.start()
    [pid] = system.roles()["web"]
    system.stop()
    system.stop()
    assert not Path(f"/proc/{pid}").exists()
    assert system.roles() == {}


class Broken(Proxy):
    def command(self, port: int) -> Sequence[str | Path]:
        return [sys.executable, "-c", "raise SystemExit('there is no such planet')"]


def test_log_of_a_failed_start_is_quoted(tmp_path: Path):
    with pytest.raises(RuntimeError, match="no such planet"):
        Broken(provider_url="http://127.0.0.1:9/v1", folder=tmp_path, users=1).start()


async def whole(pieces: AsyncIterator[str]) -> str:
    return "".join([piece async for piece in pieces])


# --- Chainlit -----------------------------------------------------------------------------------

# As Chainlit 2.12.0 sent them; unused parts of the objects that describe steps were removed.
GREETING = r"""
42["task_end",{}]
42["clear_ask",{}]
42["clear_call_fn",{}]
42["task_start",{}]
42["task_end",{}]
42["new_message",{"name":"on_chat_start","type":"run","id":"564b4dfc","isError":false,"output":""}]
42["update_message",{"name":"on_chat_start","type":"run","id":"564b4dfc","isError":false,"output":""}]
"""
REPLY = r"""
42["task_start",{}]
42["first_interaction",{"interaction":"[[tokens=4]] hi","thread_id":"5c779b43"}]
42["new_message",{"name":"on_message","type":"run","id":"5535435f","isError":false,"output":""}]
42["stream_start",{"id":"e9673676","output":"between","type":"assistant_message","isError":false}]
42["stream_token",{"id":"e9673676","token":".","isSequence":false,"isInput":false}]
42["stream_token",{"id":"e9673676","token":"\n","isSequence":false,"isInput":false}]
42["stream_token",{"id":"e9673676","token":";","isSequence":false,"isInput":false}]
42["update_message",{"id":"e9673676","output":"between.\n;","type":"assistant_message","isError":false}]
42["update_message",{"name":"on_message","type":"run","id":"5535435f","isError":false,"output":""}]
42["task_end",{}]
"""
FAILURE = r"""
42["task_start",{}]
42["new_message",{"name":"on_message","type":"run","id":"b2b4cdd1","isError":false,"output":""}]
42["update_message",{"name":"on_message","type":"run","id":"b2b4cdd1","isError":true,"output":"Error code: 400 - the stub was told to refuse"}]
42["task_end",{}]
"""


@pytest.mark.parametrize(
    ("text", "kind", "data"),
    [
        ('0{"sid":"tdr9","pingInterval":25000}', "0", {"sid": "tdr9", "pingInterval": 25000}),
        ('44{"message":"authentication failed"}', "44", {"message": "authentication failed"}),
        ("2", "2", None),
        ("41", "41", None),
        ('42["task_end",{}]', "42", ["task_end", {}]),
        ('4217["call_fn",{"name":"2"}]', "42", ["call_fn", {"name": "2"}]),
        ('42["say",{"token":"größer\\n🙂"}]', "42", ["say", {"token": "größer\n🙂"}]),
    ],
)
def test_frames_are_distinguished(text: str, kind: str, data: object):
    assert frames.parse(text) == (kind, data)


def test_cut_off_frame_is_refused():
    with pytest.raises(msgspec.DecodeError):
        frames.parse('42["stream_token",{"tok')


def test_event_is_written_as_it_is_read():
    assert frames.event("fetch_favorites") == '42["fetch_favorites"]'
    assert frames.parse(frames.event("say", {"a": "ü"})).data == ["say", {"a": "ü"}]


class Recording:
    """A server that plays frames: the greeting, and to each message the next of `answers`."""

    def __init__(self, *answers: str, greeting: str = GREETING) -> None:
        self.greeting = greeting
        self.answers = list(answers)
        self.received: list[str] = []
        self.changed = asyncio.Condition()

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        assert dict(request.query) == {"EIO": "4", "transport": "websocket"}
        connection = web.WebSocketResponse()
        await connection.prepare(request)
        await connection.send_str('0{"sid":"tdr9","pingTimeout":20000,"pingInterval":25000}')
        async for message in connection:
            assert message.type is WSMsgType.TEXT
            async with self.changed:
                self.received.append(message.data)
                self.changed.notify_all()
            await self._answer(connection, message.data)
        return connection

    async def _answer(self, connection: web.WebSocketResponse, text: str) -> None:
        if text.startswith("40"):
            await connection.send_str('40{"sid":"nwNs"}')
        elif text == '42["connection_successful"]':
            await play(connection, self.greeting)
        elif text.startswith('42["client_message"'):
            if self.answers:
                await play(connection, self.answers.pop(0))
            else:
                await connection.close()

    async def receives(self, text: str) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: text in self.received)


async def play(connection: web.WebSocketResponse, recorded: str) -> None:
    for line in recorded.strip().splitlines():
        await connection.send_str(line)


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[Recording], Awaitable[ChainlitClient]]]:
    async with AsyncExitStack() as stack:

        async def to(recording: Recording) -> ChainlitClient:
            app = web.Application()
            app.router.add_get("/ws/socket.io/", recording.handle)
            server = await stack.enter_async_context(TestServer(app))
            client = ChainlitClient()
            stack.push_async_callback(client.close)
            await client.open(str(server.make_url("")).rstrip("/"))
            return client

        yield to


async def test_recorded_replies_are_read_token_by_token(connect):
    recording = Recording(REPLY, REPLY.replace("between", "among"))
    client = await connect(recording)
    assert [piece async for piece in client.send("[[tokens=4]] hi")] == ["between", ".", "\n", ";"]
    assert await whole(client.send("once more")) == "among.\n;"
    _, greeted, favorites, message, _ = recording.received
    assert (greeted, favorites) == ('42["connection_successful"]', '42["fetch_favorites"]')
    [name, said] = json.loads(message[2:])
    assert (name, said["message"]["output"]) == ("client_message", "[[tokens=4]] hi")


async def test_recorded_failure_is_reported(connect):
    client = await connect(Recording(FAILURE, REPLY))
    with pytest.raises(WrongReply, match="told to refuse"):
        await whole(client.send("[[status=400]]"))
    assert await whole(client.send("again")) == "between.\n;"


@pytest.mark.parametrize(
    "changed",
    [
        REPLY.replace(r'"between.\n;"', r'"between\n;"'),
        REPLY.replace('"id":"e9673676","output":"between.', '"id":"0","output":"between.'),
        re.sub(r"42..stream_token.*\n", "", REPLY, count=1),
    ],
    ids=["another text", "no final message", "a token is lost"],
)
async def test_differing_final_message_is_reported(connect, changed):
    client = await connect(Recording(changed))
    with pytest.raises(WrongReply, match="missing or differs"):
        await whole(client.send("hi"))


async def test_pings_are_answered_without_a_reply(connect):
    recording = Recording(greeting=GREETING + "2\n")
    await connect(recording)
    async with asyncio.timeout(60):
        await recording.receives("3")


async def test_lost_connection_stays_lost(connect):
    client = await connect(Recording())
    for _ in range(2):
        with pytest.raises(ConnectionError, match="closed the connection"):
            await whole(client.send("hi"))


async def test_unreachable_chainlit_is_reported():
    with pytest.raises(ConnectionError):
        await ChainlitClient().open(f"http://127.0.0.1:{free_port()}")


def test_missing_chainlit_names_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "PROJECT", tmp_path)
    with pytest.raises(NotInstalled, match=r"make \.venv-peers/\.bench"):
        Chainlit(provider_url="http://127.0.0.1:9/v1", folder=tmp_path, users=1).start()
