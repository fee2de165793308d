"""CPU time per message of each channel layer.

    python -m bench.layer

One process publishes to 100 groups in ticks, like a worker with 100 running replies; another has a
member in each group, like a web process with 100 sockets. Two layers are measured in turn on one
Valkey: channels-redis's publish/subscribe layer and the raw channels of Parley's own layer, which
inherits from it. Every delivery is counted and checked; a lost one is a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from channels_redis.pubsub import RedisPubSubChannelLayer

from bench import processes
from chatproject.lib.pubsub.layer import PubSubChannelLayer
from chatproject.local.servers import ValkeyServer

GROUPS = 100
ROUNDS = 60  # messages per group
TICK = 0.05  # seconds between two rounds
PATIENCE = 10.0  # seconds until an unfinished run has failed
EVENT = b'{"type":"text.delta","run":"0198c0de-0000-7000-8000-000000000000","seq":1,"text":" word"}'

WAYS = CHANNELS, RAW = ("channels-redis group_send", "ours, raw bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    loop = parser.parse_args().loop
    with tempfile.TemporaryDirectory() as folder:
        server = ValkeyServer(Path(folder))
        server.start()
        try:
            figures = {way: measure(way, server.url, server.pid, loop) for way in WAYS}
        finally:
            server.stop()
    report(figures, loop)


class Figures(NamedTuple):
    """Microseconds of CPU per message in each process."""

    publish: float
    deliver: float
    valkey: float


def measure(way: str, url: str, server_pid: int, loop: str) -> Figures:
    server = {"valkey": [server_pid]}
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    receiver = context.Process(target=run, args=(receive, way, url, theirs, loop))
    receiver.start()
    theirs.close()
    try:
        ours.recv()  # all members have joined
        before = processes.cpu(server)["valkey"]
        publishing = run(send, way, url, ours, loop)
        receiving = ours.recv() if ours.poll(PATIENCE) else None
        serving = processes.cpu(server)["valkey"] - before
    finally:
        receiver.terminate()
        receiver.join()
    if receiving is None:
        sys.exit(f"{way}: not everything arrived in {PATIENCE:.0f} s")
    return Figures(*(1e6 * cpu / (GROUPS * ROUNDS) for cpu in (publishing, receiving, serving)))


def run(
    main: Callable[..., Coroutine[Any, Any, Any]], way: str, url: str, pipe: Connection, loop: str
) -> Any:
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main(way, url, pipe))


async def send(way: str, url: str, pipe: Connection) -> float:
    layer = make_layer(way, url)
    if way == RAW:
        layer.publish("warm-up", EVENT)
        await asyncio.sleep(0.5)  # it connects meanwhile
    else:
        await layer.send("warm-up", {"type": "nothing"})
    start, began = time.process_time(), time.perf_counter()
    for number in range(ROUNDS):
        if way == RAW:
            for group in range(GROUPS):
                layer.publish(f"run.{group}", EVENT)
        else:
            message = {"type": "run.event", "data": EVENT}
            await asyncio.gather(*(layer.group_send(f"run.{n}", message) for n in range(GROUPS)))
        await asyncio.sleep(max(0.0, began + (number + 1) * TICK - time.perf_counter()))
    return time.process_time() - start


async def receive(way: str, url: str, pipe: Connection) -> None:
    layer = make_layer(way, url)
    missing = GROUPS * ROUNDS
    finished = asyncio.Event()

    def count(data: bytes) -> None:
        nonlocal missing
        if data != EVENT:
            sys.exit(f"{way}: got {data!r}")
        missing -= 1
        if missing == 0:
            finished.set()

    async def consume(channel: str) -> None:
        while True:
            count((await layer.receive(channel))["data"])

    tasks = []
    for group in range(GROUPS):
        if way == RAW:
            await layer.attach(f"run.{group}", count)
        else:
            channel = await layer.new_channel()
            await layer.group_add(f"run.{group}", channel)
            tasks.append(asyncio.create_task(consume(channel)))
    await asyncio.sleep(0.5)  # channels-redis does not wait until Redis has subscribed
    pipe.send("joined")
    start = time.process_time()
    await finished.wait()
    pipe.send(time.process_time() - start)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def make_layer(way: str, url: str) -> Any:
    return (PubSubChannelLayer if way == RAW else RedisPubSubChannelLayer)(hosts=[url])


def report(figures: dict[str, Figures], loop: str) -> None:
    print(f"{GROUPS} groups with {ROUNDS} messages each, one every {1000 * TICK:.0f} ms; {loop}")
    print(f"{'µs of CPU per message':28}{'publish':>9}{'deliver':>9}{'Valkey':>9}{'together':>10}")
    base = sum(figures[CHANNELS])
    for way, parts in figures.items():
        columns = "".join(f"{part:9.1f}" for part in parts)
        print(f"{way:28}{columns}{sum(parts):10.1f}   1/{base / sum(parts):.1f}")


if __name__ == "__main__":
    main()
