"""Times of the search over one user's messages.

    python -m bench search [--messages 100000] [--words 180]

Fills a database of its own with messages of one user, and of other users, indexes them, and searches for
frequent, rare and several words, beginnings and parts of words, and pairs of Chinese characters. Each time
is compared to that of a scan of the same user's messages for the same text (ILIKE), a search without an
index. `--most` fails above a median in milliseconds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable

from bench.database import own_database

QUERIES = {
    "frequent word": "harbour",
    "stop word": "the",
    "rare word": "zugzwang",
    "two words": "harbour tides",
    "beginning of a word": "zugz",
    "part of a word": "ugzwan",
    "part of frequent words": "arbou",
    "Chinese": "潮汐",
    "nothing": "qqxxqq",
}
WORDS = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "harbour",
    "tides",
    "moon",
    "ships",
    "river",
    "paper",
    "small",
    "window",
    "north",
    "quiet",
    "evening",
    "letter",
    "because",
    "between",
    "seventeen",
    "counted",
    "remembered",
    "station",
    "garden",
    "winter",
    "number",
    "question",
    "answer",
]
TURNS = 20
OTHERS = 5  # other users, with a fifth of the messages each


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=180, help="of the longest message")
    parser.add_argument("--most", type=float, help="milliseconds of each median")
    options = parser.parse_args(arguments)
    with own_database():
        owner = fill(options.messages, options.words)
        print(f"{options.messages:,} messages of one user, {options.messages:,} of others")
        slowest = report(owner)
    if options.most is not None and slowest > options.most:
        sys.exit(f"The slowest median was {slowest:.1f} ms, more than {options.most:.0f} ms.")


def fill(messages: int, longest: int) -> int:
    """Store and index the messages; return the id of the user who has most of them."""
    from django.db import connection
    from django.utils import timezone

    from accounts.models import User
    from chat.conversations import search_index
    from chat.models import Assistant, Conversation, LanguageModel, Message

    chosen = random.Random(7)  # not a secret
    model = LanguageModel.objects.create(name="Bench", provider_model="bench", context_tokens=8_000)
    assistant = Assistant.objects.create(slug="bench", name="Bench", model=model)
    users = [User.objects.create_user(f"user{number}@example.org") for number in range(1 + OTHERS)]
    for index, user in enumerate(users):
        count = messages if index == 0 else messages // OTHERS
        for begin in range(0, count, 5_000):
            made = []
            chats = []
            for number in range(begin, min(count, begin + 5_000)):
                if number % 20 == 0:
                    chats.append(
                        Conversation(
                            owner=user,
                            assistant=assistant,
                            title=f"Chat {number} about {chosen.choice(WORDS)}",
                            updated_at=timezone.now(),
                        )
                    )
                text = " ".join(chosen.choices(WORDS, k=chosen.randrange(longest // 9, longest)))
                text += " 潮汐变化" if number % 50 == 0 else ""
                text += " zugzwang" if number % 5_000 == 17 else ""
                made.append(Message(conversation=chats[-1], role="user", text=text))
            Conversation.objects.bulk_create(chats)
            Message.objects.bulk_create(made)
    begun = time.monotonic()
    while search_index.index_batch():
        pass
    taken = time.monotonic() - begun
    print(f"indexed {2 * messages / taken:,.0f} messages a second")
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    return int(users[0].pk)


def report(owner: int) -> float:
    """Print the medians; return the slowest one in milliseconds."""
    from django.db import connection

    from accounts.models import User
    from chat.conversations.search import search

    user = User.objects.get(pk=owner)

    def scan(query: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM chat_message AS message JOIN chat_conversation AS conversation"
                " ON conversation.id = message.conversation_id"
                " WHERE owner_id = %s AND message.text ILIKE %s",
                [owner, f"%{query}%"],
            )

    slowest = 0.0
    print(f"{'':24}{'hits':>5}{'search':>10}{'p95':>10}{'scan':>10}{'ratio':>8}")
    for name, query in QUERIES.items():
        hits = len(search(user, query).hits)
        times = timed(lambda query=query: search(user, query), TURNS)  # type: ignore[misc]
        scans = timed(lambda query=query: scan(query), 3)  # type: ignore[misc]
        median, base = statistics.median(times), statistics.median(scans)
        slowest = max(slowest, median)
        p95 = sorted(times)[int(0.95 * len(times))]
        print(f"{name:24}{hits:5}{median:7.1f} ms{p95:7.1f} ms{base:7.0f} ms{base / median:7.0f}x")
    return slowest


def timed(call: Callable[[], object], turns: int) -> list[float]:
    found = []
    for _ in range(turns):
        begun = time.perf_counter()
        call()
        found.append(1_000 * (time.perf_counter() - begun))
    return found


if __name__ == "__main__":
    main()
