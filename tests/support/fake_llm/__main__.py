"""The fake provider as a process: prints its base URL as the first line."""

from __future__ import annotations

import argparse

import uvloop

from tests.support.fake_llm.server import serve

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="A fake OpenAI-compatible provider; ends when its standard input ends."
    )
    parser.add_argument("--port", type=int, default=0, help="0 (the default): a free one")
    uvloop.run(serve(parser.parse_args().port))
