"""The floor of costs: passing a provider's stream on to a client, and nothing else.

    python -m bench.peers.proxy --provider http://127.0.0.1:8099/v1 --port 8000

`POST /` with a prompt as its body asks the provider for a streamed completion and answers with the
bytes of that stream, each chunk as soon as it arrives. Nothing is parsed, changed, counted or stored.
`GET /` answers with nothing. The first line that it prints is its base URL; with port 0 it takes a
free one.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import msgspec
import uvloop
from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, TCPConnector, web

PROVIDER = web.AppKey("provider", ClientSession)
URL = web.AppKey("url", str)


async def reply(request: web.Request) -> web.StreamResponse:
    """Ask the provider, and pass its response on, errors too."""
    messages = [{"role": "user", "content": await request.text()}]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    body = msgspec.json.encode({"model": "bench", "messages": messages, **options})
    headers = {"Content-Type": "application/json"}
    try:
        asked = await request.app[PROVIDER].post(request.app[URL], data=body, headers=headers)
    except ClientError as error:
        return web.json_response({"error": {"message": str(error)}}, status=502)
    async with asked:
        return await passed_on(request, asked)


async def passed_on(request: web.Request, asked: ClientResponse) -> web.StreamResponse:
    """Pass the provider's response on, byte by byte; one that breaks off breaks off here too."""
    response = web.StreamResponse(
        status=asked.status, headers={"Content-Type": asked.headers.get("Content-Type", "")}
    )
    await response.prepare(request)
    try:
        while chunk := await asked.content.readany():
            await response.write(chunk)
    except ClientError:
        # With a proper end the response would look complete.
        if request.transport is not None:
            request.transport.abort()
    return response


async def ready(_request: web.Request) -> web.Response:
    return web.Response(status=204)


async def serve(provider_url: str, port: int) -> None:
    app = web.Application()
    app.router.add_post("/", reply)
    app.router.add_get("/", ready)
    app[URL] = f"{provider_url}/chat/completions"
    async with ClientSession(
        connector=TCPConnector(limit=0), timeout=ClientTimeout(total=None), auto_decompress=False
    ) as app[PROVIDER]:
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", port, shutdown_timeout=0.1, backlog=2048)
            await site.start()
            print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description="A stateless proxy before a model provider.")
    parser.add_argument("--provider", required=True, help="like http://127.0.0.1:8099/v1")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    try:
        uvloop.run(serve(options.provider, options.port))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)


if __name__ == "__main__":
    main()
