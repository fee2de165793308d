"""A Chainlit app as its documentation shows it under "Streaming", run by Chainlit's own Python.

The provider's address and key are in the environment, where the openai library looks for them.
"""

from __future__ import annotations

import chainlit as cl
from openai import AsyncOpenAI

client = AsyncOpenAI()


@cl.on_chat_start
def start_chat() -> None:
    cl.user_session.set("message_history", [])


@cl.on_message
async def main(message: cl.Message) -> None:
    message_history = cl.user_session.get("message_history")
    message_history.append({"role": "user", "content": message.content})

    msg = cl.Message(content="")
    stream = await client.chat.completions.create(
        messages=message_history, model="bench", stream=True
    )
    async for part in stream:
        # The documentation has no `part.choices and`: some providers send usage unasked, in a
        # chunk without choices.
        if part.choices and (token := part.choices[0].delta.content or ""):
            await msg.stream_token(token)

    message_history.append({"role": "assistant", "content": msg.content})
    await msg.update()
