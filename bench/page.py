"""Server time and bytes of the page of a long conversation.

    python -m bench page [--messages 2,200,2000] [--turns 60]

Fills a database of its own with conversations of ordinary replies (paragraphs, lists, code, tables, thoughts,
some with siblings) and requests the end of each, the part before it and a part in its middle. The page of two
messages is the base, the frame without a chat. Times are of the
whole request through Django's test client, compression included; the bytes are those over the wire. `--most`
fails above a median in milliseconds, `--most-kilobytes` above a size.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from typing import TYPE_CHECKING
from uuid import UUID

from bench.database import own_database
from chatproject.local.servers import BASE_DIR

if TYPE_CHECKING:
    from accounts.models import User
    from chat.models import Assistant, Conversation

WARM = 10  # requests that are not counted
REPLIES = (
    "{0}\n\n{1}",
    "{0}\n\n- {2}\n- {3}\n- {4}",
    "## {3}\n\n{0}\n\n1. **{2}**: {3}\n2. {4}\n\n{1}",
    '{0}\n\n```python\ndef count(tides: list[int]) -> int:\n    """{2}"""\n    return sum(tides)  # {3}\n```',
    "{0}\n\n| {5} | {6} |\n|---|--:|\n| {7} | 12 |\n| {8} | 345 |",
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--messages", default="2,200,2000", help="of each conversation: 2,200,2000")
    parser.add_argument("--turns", type=int, default=60, help="requests of each page")
    parser.add_argument("--most", type=float, help="milliseconds of each median")
    parser.add_argument("--most-kilobytes", type=float, help="of each page, over the wire")
    options = parser.parse_args(arguments)
    with own_database():
        slowest, largest = report(
            [int(word) for word in options.messages.split(",")], options.turns
        )
    if options.most is not None and slowest > options.most:
        sys.exit(f"The slowest median was {slowest:.1f} ms, more than {options.most:.0f} ms.")
    if options.most_kilobytes is not None and largest > options.most_kilobytes:
        sys.exit(
            f"The largest page had {largest:.1f} kB, more than {options.most_kilobytes:.0f} kB."
        )


def report(sizes: list[int], turns: int) -> tuple[float, float]:
    """Print the figures of each page; return the slowest median in ms and the largest page in kB."""
    from django.db import connection

    from accounts.models import User
    from chat.models import Assistant, LanguageModel

    model = LanguageModel.objects.create(name="Bench", provider_model="bench", context_tokens=8_000)
    assistant = Assistant.objects.create(slug="bench", name="Bench", model=model)
    user = User.objects.create_user("reader@example.org")
    pages: dict[str, str] = {}
    for size in sizes:
        conversation, ids = fill(user, assistant, size)
        path = conversation.get_absolute_url()
        pages[f"{size:,} messages, the end"] = path
        if size < 200:
            continue
        pages[f"{size:,} messages, before it"] = f"{path}?before={ids[-100]}"
        pages[f"{size:,} messages, a link"] = f"{path}?message={ids[size // 4]}"
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    slowest = largest = 0.0
    print(f"{'':32}{'p50':>9}{'p95':>10}{'CPU':>10}{'wire':>10}{'queries':>9}")
    for name, path in pages.items():
        median, kilobytes = measure(user, name, path, turns)
        slowest, largest = max(slowest, median), max(largest, kilobytes)
    return slowest, largest


def fill(user: User, assistant: Assistant, size: int) -> tuple[Conversation, list[UUID]]:
    """Store a conversation of so many messages; return it and the ids of its messages."""
    from django.utils import timezone

    from chat.models import Conversation, Message, MessagePart, Run, new_id
    from chat.rendering.document import to_html

    chosen = random.Random(size)  # text, no secret
    words = [
        word for page in sorted(BASE_DIR.glob("docs/*.md")) for word in page.read_text().split()
    ]
    words = [word for word in words if word.isalpha()]

    def some(least: int, most: int) -> str:
        return " ".join(chosen.choices(words, k=chosen.randint(least, most))).capitalize()

    conversation = Conversation.objects.create(
        owner=user, assistant=assistant, title=f"{size} messages", updated_at=timezone.now()
    )
    messages: list[Message] = []
    parts: list[MessagePart] = []
    runs: list[Run] = []
    parent: Message | None = None
    for number in range(size // 2):
        sent = Message(
            conversation=conversation, parent=parent, role="user", text=f"{some(4, 25)}?"
        )
        text = chosen.choice(REPLIES).format(
            some(25, 60),
            some(15, 40),
            *(some(3, 9) for _ in range(3)),
            *(some(1, 2) for _ in range(4)),
        )
        replies = [
            Message(
                conversation=conversation,
                parent=sent,
                role="assistant",
                text=text,
                html=to_html(text),
            )
            for _ in range(1 + (number % 10 == 0))
        ]
        parent = replies[-1]
        messages += [sent, *replies]
        if number % 5 == 0:
            thoughts = {"text": some(20, 60), "seconds": 4}
            parts.append(MessagePart(message=parent, position=0, kind="reasoning", data=thoughts))
        runs += [
            Run(
                conversation=conversation,
                message=reply,
                user=user,
                client_id=str(new_id()),
                assistant=assistant,
                model=assistant.model,
                model_snapshot={"name": "Bench", "provider_model": "bench"},
                status="done",
                started_at=timezone.now(),
                first_token_at=timezone.now(),
                ended_at=timezone.now(),
                finish_reason="stop",
                prompt_tokens=1_234 + number,
                completion_tokens=321,
                charged=1_500,
            )
            for reply in replies
        ]
    Message.objects.bulk_create(messages)
    MessagePart.objects.bulk_create(parts)
    Run.objects.bulk_create(runs)
    conversation.leaf = parent
    conversation.save()
    path: list[UUID] = []
    while parent is not None:
        path.append(parent.pk)
        parent = parent.parent
    return conversation, path[::-1]


def measure(user: User, name: str, path: str, turns: int) -> tuple[float, float]:
    """Request a page again and again, and print its line; return its median in ms, and its kB."""
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    client = Client(headers={"Accept-Encoding": "gzip"})
    client.force_login(user)
    for _ in range(WARM):
        response = client.get(path)
        assert response.status_code == 200, response.status_code
    times: list[float] = []
    began = time.process_time()
    for _ in range(turns):
        begun = time.perf_counter()
        response = client.get(path)
        times.append(1_000 * (time.perf_counter() - begun))
    cpu = 1_000 * (time.process_time() - began) / turns
    with CaptureQueriesContext(connection) as queries:
        client.get(path)
    kilobytes = len(response.content) / 1_000
    median, p95 = statistics.median(times), sorted(times)[int(0.95 * turns)]
    print(f"{name:32}{median:6.1f} ms{p95:7.1f} ms{cpu:7.1f} ms{kilobytes:7.1f} kB{len(queries):9}")
    return median, kilobytes


if __name__ == "__main__":
    main()
