"""The text of replies, and their bytes in OpenAI's format."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import msgspec

from tests.support.fake_llm.directives import Directives, Request
from tests.support.fake_llm.stamps import BLANK, blank_token, stamped

# Words as a tokenizer cuts them: with their leading space. The odd ones are deliberate: two, three
# and four byte characters, a joined emoji, line breaks, and characters that JSON, HTML and Markdown
# must escape.
PIECES = (
    " a", " the", " of", " to", " river", " quietly", " measured", " between", " lighthouse",
    " afternoon", " paper", " boats", " remembered", " because", " seventeen", " and", " then",
    " it", " was", " extraordinarily", " small", " windows", " north", " harbour", " I", " we",
    " counted", " slowly", " again", ",", ".", ";", "!", "?", " naïve", " größer", " café",
    " Привет", " 日本語", " 你好", " 🙂", " 👩‍🔬", " €5", ".\n\nThen", ":\n-", "\n", " \"so\"",
    " back\\slash", " <b>", " a&b", " it's", " 3.14", "\tTab",
)  # fmt: skip


# As a tokenizer cuts Markdown: words with their leading space, line breaks and marks.
SAMPLE = re.findall(
    r"\n+| ?\w+| ?[^\w\s]{1,3}| +", (Path(__file__).parent / "sample.md").read_text()
)


CITE = re.compile(r"\[\[[^\[\]]*\bcite=(\d+)")


def reply_pieces(tokens: int, seed: str) -> list[str]:
    """The reply of `tokens` tokens to the user message `seed` (its whole text, directives too).

    The same in every process and on every machine.
    """
    if "sample=true" in seed:
        return [SAMPLE[index % len(SAMPLE)] for index in range(tokens)]
    chosen = random.Random(seed).choices(PIECES, k=tokens)
    if chosen:
        # No white space at either end: code that strips a reply is not what is tested.
        chosen[0] = chosen[0].lstrip() or "Well"
        chosen[-1] = chosen[-1].rstrip() or "."
        if cited := CITE.search(seed):
            chosen[-1] = f" [{cited[1]}]"
    return chosen


def reply_text(tokens: int, seed: str) -> str:
    """`reply_pieces` as the one text that a client must end up with."""
    return "".join(reply_pieces(tokens, seed))


def reasoning_text(tokens: int, seed: str) -> str:
    """The reasoning that comes before the reply when `reasoning=N` was asked for."""
    return reply_text(tokens, seed + "\nreasoning")


def pieces_after(prefix: str, pieces: list[str]) -> list[str]:
    """The rest of a reply after its beginning, which may end in the middle of a piece.

    Raises ValueError when the prefix is not the beginning of the reply.
    """
    left = len(prefix)
    if not "".join(pieces).startswith(prefix):
        raise ValueError("the last message is the assistant's, but not the beginning of this reply")
    for index, piece in enumerate(pieces):
        if left < len(piece):
            return [piece[left:], *pieces[index + 1 :]]
        left -= len(piece)
    return []


def scripted(use: str, messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The calls of the next answer by a directive `use`: of names and arguments; none after the last one."""
    answered = 0
    for one in reversed(messages):
        if one["role"] == "user":
            break
        answered += bool(one.get("tool_calls"))
    answers = use.split(";") if use else []
    if answered >= len(answers):
        return []
    pairs = [one.partition(":")[::2] for one in answers[answered].split("&")]
    return [(name, unquote(arguments)) for name, arguments in pairs]


def used_pieces(index: int, id: str, name: str, arguments: str) -> list[dict[str, Any]]:
    """The pieces in which a scripted call comes: its arguments in two."""
    half = len(arguments) // 2
    first = {"id": id, "type": "function", "function": {"name": name, "arguments": ""}}
    return [
        {"index": index, **first},
        {"index": index, "function": {"arguments": arguments[:half]}},
        {"index": index, "function": {"arguments": arguments[half:]}},
    ]


CALL_ARGUMENTS = '{"city": "Oslo"}'


def call_pieces(index: int, name: str) -> list[dict[str, Any]]:
    """The pieces in which a tool call comes: its arguments in two."""
    first = {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
    halves = CALL_ARGUMENTS[:8], CALL_ARGUMENTS[8:]
    return [
        {"index": index, **first},
        *({"index": index, "function": {"arguments": half}} for half in halves),
    ]


# --- Bytes ------------------------------------------------------------------------------------


def chunk(data: bytes) -> bytes:
    """The data in HTTP's chunked transfer encoding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def json_pieces(request: Request, form: str) -> list[str]:
    """The pieces of an answer that fits the schema of the request, or the one in words in its first user message."""
    if request.response_format is not None:
        schema = request.response_format["json_schema"]["schema"]
    else:
        first = next(one["content"] for one in request.messages if one["role"] == "user")
        schema = msgspec.json.decode(re.findall(r"```json\n(.+?)\n```", first, re.DOTALL)[0])
    answer = fitting(schema)
    if form == "wrong" or (form == "repair" and request.messages[-2]["role"] != "assistant"):
        answer.pop(next(iter(answer)))
    text = msgspec.json.encode(answer).decode()
    if form == "cut":
        text = text[: len(text) // 2]
    if form == "fenced":
        text = f"Here it is:\n```json\n{text}\n```\nI hope this helps."
    return [text[at : at + 20] for at in range(0, len(text), 20)]


def fitting(schema: dict[str, Any]) -> Any:
    """A value that fits a schema: the least of everything, and one item of a list."""
    match schema["type"]:
        case "object":
            return {name: fitting(one) for name, one in schema["properties"].items()}
        case "array":
            return [fitting(schema["items"])] * max(1, schema.get("minItems", 0))
        case "string":
            words = schema.get("enum", [schema.get("title", "Text")])[0]
            return words.ljust(schema.get("minLength", 0), ".")
        case "boolean":
            return True
        case _:
            return schema.get("minimum", 1)


class Reply:
    """One reply in OpenAI's format, with tokens numbered from 0; those of reasoning come first.

    `size` is the number of tokens, `reasoning` of these the number of reasoning tokens, `prefix` the
    text that the request brought along, `skipped` the tokens in it. Raises ValueError when that text
    is not the beginning of this reply.
    """

    def __init__(self, request: Request, asked: Directives, message: str, prefix: str) -> None:
        self.prefix = prefix
        whole = (
            json_pieces(request, asked.json) if asked.json else reply_pieces(asked.tokens, message)
        )
        left = pieces_after(self.prefix, whole)
        self.skipped = len(whole) - len(left)
        # A reply that is cut to max_tokens is the beginning of the whole one.
        limit = request.limit()
        if asked.length > self.skipped:
            limit = min(limit, asked.length - self.skipped)
        self._pieces = left[:limit]
        self._finish = asked.finish if len(self._pieces) == len(left) else "length"
        self._identity = {"id": "chatcmpl-fake", "created": 0, "model": request.model}
        thoughts = [] if self.prefix else reply_pieces(asked.reasoning, message + "\nreasoning")
        self.reasoning = len(thoughts)
        self._tokens = [self.delta(reasoning_content=piece) for piece in thoughts]
        encoded = {piece: self.delta(content=piece) for piece in {*self._pieces}}
        self._tokens += [encoded[piece] for piece in self._pieces]
        if asked.tags and thoughts and self._pieces:
            opening = "<think>\n" if asked.tags == "whole" else ""
            thoughts[0] = opening + thoughts[0]
            thoughts.append(f"\n</think>\n\n{self._pieces[0]}")
            self._tokens[: len(thoughts)] = [self.delta(content=piece) for piece in thoughts]
        last = request.messages[-1]
        if request.tools and last["role"] != "tool" and asked.calls:
            name = request.tools[0]["function"]["name"]
            self._tokens += [
                self.delta(tool_calls=[piece])
                for index in range(asked.calls)
                for piece in call_pieces(index, name)
            ]
            self._finish = "tool_calls"
        may_call = request.tools and (request.tool_choice != "none" or asked.insists)
        if may_call and (used := scripted(asked.use, request.messages)):
            number = len(request.messages)
            said = reply_pieces(asked.said, f"{message}\nsaid {number}")
            self._tokens = [self.delta(content=piece) for piece in said] + [
                self.delta(tool_calls=[piece])
                for index, (name, arguments) in enumerate(used)
                for piece in used_pieces(index, f"call_{number}_{index}", name, arguments)
            ]
            self._finish = "tool_calls"
        self.size = len(self._tokens)
        self._prompt = sum(len(str(message.get("content")).split()) for message in request.messages)
        includes_usage = bool((request.stream_options or {}).get("include_usage"))
        self._includes_usage = includes_usage and not asked.nousage

    def delta(self, finish: str | None = None, **fields: Any) -> bytes:
        """The event of a delta with these fields."""
        return self._event([{"index": 0, "delta": fields, "finish_reason": finish}])

    def _event(self, choices: list[Any], **fields: Any) -> bytes:
        head = self._identity | {"object": "chat.completion.chunk", "choices": choices}
        return chunk(b"data: %b\n\n" % msgspec.json.encode(head | fields))

    def token(self, number: int) -> bytes:
        """The event of one token."""
        return self._tokens[number]

    def usage(self, sent: int) -> dict[str, Any]:
        """The usage after this many tokens."""
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": sent,
            "total_tokens": self._prompt + sent,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": min(sent, self.reasoning)},
        }

    def streamed_usage(self, sent: int) -> dict[str, Any] | None:
        """The same, or None when the stream must not have it."""
        return self.usage(sent) if self._includes_usage else None

    def report(self, sent: int) -> bytes:
        """The event of the usage after this many tokens; empty when the stream must not have it."""
        usage = self.streamed_usage(sent)
        return self._event([], usage=usage) if usage else b""

    def ending(self, sent: int) -> bytes:
        """The events after the last token."""
        return (
            self.delta(self._finish) + self.report(sent) + chunk(b"data: [DONE]\n\n") + LAST_CHUNK
        )

    def whole(self) -> dict[str, Any]:
        """The answer to a request that does not want a stream."""
        message = {"role": "assistant", "content": "".join(self._pieces)}
        choice = {"index": 0, "message": message, "finish_reason": self._finish}
        return self._identity | {
            "object": "chat.completion",
            "choices": [choice],
            "usage": self.usage(self.size),
        }


class StampedReply(Reply):
    """A reply of stamped tokens, without reasoning; it is streamed, and cannot be continued."""

    encoded: ClassVar[list[tuple[bytes, bytes]]] = []
    """The bytes before and after the stamp of each token, the same in all replies."""

    def __init__(self, request: Request, asked: Directives, message: str, prefix: str) -> None:
        no_text = msgspec.structs.replace(asked, tokens=0, reasoning=0)
        super().__init__(request, no_text, message, prefix)
        self.size = min(asked.tokens, request.limit())
        for number in range(len(self.encoded), self.size):
            before, _, after = self.delta(content=blank_token(number)).partition(BLANK)
            self.encoded.append((before, after))

    def token(self, number: int) -> bytes:
        """The event of one token, stamped with the current time."""
        return stamped(*self.encoded[number])
