"""Plausible chats, models and payments of one user, for the pictures of the documentation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connection
from django.utils import timezone

from accounts.models import User
from billing.credits import MICRO
from billing.metering.pricing import Tokens
from billing.models import Account, ModelPrice
from chat import protocol
from chat.conversations import search_index
from chat.models import Assistant, Conversation, LanguageModel, Message, Project, Provider, Run
from chat.rendering.document import to_html
from chat.runs import finish, start
from tests.support import money
from tests.support.conversations import add_turns, begin, client_id
from tests.support.runs import mark_running

EMAIL = "maya@example.org"
PASSWORD = "a-long-password-17"

# Provider, model, description, context, abilities, credits per million tokens in and out.
MODELS: list[tuple[str, str, str, int, dict[str, Any], int, int]] = [
    ("Mistral", "Mistral Small", "Quick answers for everyday questions", 128_000, {"vision": True}, 15, 45),
    ("Mistral", "Mistral Large", "Long documents, careful reasoning", 128_000, {"tools": True}, 200, 600),
    ("OpenAI", "GPT-5 mini", "Good at code, fast", 400_000, {"vision": True, "tools": True, "reasoning": True}, 25, 200),
    ("Own servers", "Qwen 3 32B", "Stays in the house", 32_000, {"reasoning": True}, 0, 0),
]  # fmt: skip

SUGGESTIONS = [
    "Plan a weekend in Lisbon for two, by train and on foot",
    "Explain why the sky is blue to a child of eight",
    "Make the tone of an e-mail to my landlord friendlier",
]

TITLES = [
    "Tides in the Bay of Fundy",
    "Packing list for the Alps",
    "Refactoring the invoice parser",
    "A toast for Jonas and Mira",
    "Sourdough without a scale",
    "Interview questions, data team",
    "Present perfect or simple past?",
    "Why is my query slow?",
    "Names for a sailing boat",
    "Summary of the lease",
    "Birthday riddles",
    "Bicycle chain: when to replace",
]

QUESTION = (
    "How long does a free fall from 100 m take? Show the formula and a small Python function."
)
ANSWER = r"""
Without air resistance the time follows from $h = \tfrac12\,g\,t^2$:

$$t = \sqrt{\frac{2h}{g}} = \sqrt{\frac{2 \cdot 100\ \mathrm{m}}{9.81\ \mathrm{m/s^2}}} \approx 4.5\ \mathrm{s}$$

```python
from math import sqrt

def fall_time(height: float, g: float = 9.81) -> float:
    # Seconds of a free fall from `height` metres.
    return sqrt(2 * height / g)
```

Other heights, for comparison:

| Height | Time | Final speed |
|---:|---:|---:|
| 10 m | 1.4 s | 50 km/h |
| 100 m | 4.5 s | 159 km/h |
| 400 m | 9.0 s | 319 km/h |

In air a person approaches about 200 km/h, so the last row is only theory.
"""
SECOND = "And on the Moon?"
SECOND_ANSWER = r"""
There $g \approx 1.62\ \mathrm{m/s^2}$, so `fall_time(100, g=1.62)` gives **11.1 s**.
"""

COMPARED = "Write one sentence that sells a paper notebook to people who type everything."
COMPARED_ANSWERS = [
    "**A page never sends a notification**, so the one idea you came to write down is still there when you look up.",
    "You have typed ten thousand words this month; here is *one quiet page* for the twelve that matter.",
]

ARABIC = (
    "كيف أحضّر القهوة العربية؟",
    "اغلِ كوبين من الماء، ثم أضف **ثلاث ملاعق** من البن المطحون واتركه على نار هادئة عشر دقائق.\n\n"
    "- أضف الهيل في الدقيقتين الأخيرتين.\n- صفِّ القهوة في الدلّة ودعها تهدأ قليلًا.\n- قدّمها مع التمر.",
)


# Usage of the days before: records are never changed, so that they are inserted with their time.
EARLIER = """
INSERT INTO billing_usagerecord (run_id, attempt, step, purpose, user_id, model, assistant, input_tokens,
  cached_tokens, output_tokens, reasoning_tokens, source, cost, charged, shortfall, absorbed, finish, created_at)
SELECT gen_random_uuid(), 1, 0, 'chat', user_id, (ARRAY[%s, %s, %s])[1 + n %% 3], 'Parley', 9000 + n %% 7 * 900, 0,
  400 + n %% 5 * 160, 0, 'provider', cost, cost, 0, 0, 'complete', now() - n * interval '7 hours'
FROM (SELECT %s AS user_id, n, (1 + n %% 4 + n %% 3) * 400000 AS cost FROM generate_series(4, 90) AS n) AS days
"""


class Gallery:
    """The rows of the gallery: a user with chats, credits and usage."""

    def __init__(self) -> None:
        self.user = User.objects.create_user(EMAIL, PASSWORD)
        self.models = [self._add_model(*values) for values in MODELS]
        self.assistant = Assistant.objects.create(
            slug="parley", name="Parley", model=self.models[0], suggestions=SUGGESTIONS
        )
        Assistant.objects.create(
            slug="editor", name="Editor", model=self.models[1], suggestions=["Shorten this letter"], position=1,
            description="Rewrites texts and keeps your tone.",
        )  # fmt: skip
        Assistant.objects.create(
            slug="tutor", name="Maths tutor", model=self.models[2], suggestions=["Explain integrals"], position=2,
            description="Asks back until you have understood.",
        )  # fmt: skip
        self._add_credits()
        self._add_chats()
        self.chat = self._add_chat(
            "Free fall from 100 m", (QUESTION, ANSWER), (SECOND, SECOND_ANSWER)
        )
        self.arabic = self._add_chat("القهوة العربية", ARABIC)
        self.compared = self._add_comparison()
        while search_index.index_batch():
            pass

    def _add_model(
        self,
        provider: str,
        name: str,
        words: str,
        context: int,
        abilities: Any,
        cost: int,
        most: int,
    ) -> LanguageModel:
        slug = name.lower().replace(" ", "-")
        row, _is_new = Provider.objects.get_or_create(
            name=provider, defaults={"base_url": f"https://{len(provider)}.example.org/v1"}
        )
        ModelPrice.objects.create(
            model=slug,
            in_per_m=cost * MICRO,
            cached_in_per_m=cost * MICRO // 2,
            out_per_m=most * MICRO,
            effective_from=datetime(2026, 1, 1, tzinfo=UTC),
        )
        return LanguageModel.objects.create(
            name=name, provider_model=slug, provider=row, description=words,
            context_tokens=context, max_output_tokens=8_000, **abilities,
        )  # fmt: skip

    def _add_credits(self) -> None:
        account = Account.objects.get(user_id=self.user.pk)
        money.order(account, 500 * MICRO, paid_at=timezone.now(), invoice_no=1)
        for number, cost in enumerate((31, 12, 55)):
            model = self.models[number % 3]
            held = money.hold(account, 9 * MICRO, model=model.provider_model)
            tokens = Tokens(input=9_000 + 700 * cost, output=60 * cost)
            money.settle(held, cost * MICRO // 10, tokens=tokens)

        with connection.cursor() as cursor:
            cursor.execute(
                EARLIER, [model.provider_model for model in self.models[:3]] + [self.user.pk]
            )

    def _add_chats(self) -> None:
        project = Project.objects.create(
            owner=self.user, name="House move", instructions="Be brief."
        )
        for number, title in enumerate(TITLES):
            chat = begin(
                self.user,
                self.assistant,
                title=title,
                pinned_at=timezone.now() if number == 2 else None,
                unread=number == 1,
                project=project if number in (9, 11) else None,
            )
            add_turns(self.user, chat, 1)
            days = timedelta(hours=2 * number) if number < 4 else timedelta(days=number - 3)
            Conversation.objects.filter(pk=chat.pk).update(updated_at=timezone.now() - days)

    def _add_chat(self, title: str, *turns: tuple[str, str]) -> Conversation:
        chat = begin(self.user, self.assistant, title=title)
        rows = iter(add_turns(self.user, chat, len(turns)))
        for question, answer in turns:
            asked, reply = next(rows), next(rows)
            Message.objects.filter(pk=asked.pk).update(text=question)
            Message.objects.filter(pk=reply.pk).update(text=answer, html=to_html(answer))
        Run.objects.filter(conversation=chat).update(
            model_snapshot={"name": self.models[0].name},
            prompt_tokens=412,
            completion_tokens=268,
            charged=MICRO // 50,
        )
        return chat

    def _add_comparison(self) -> Conversation:
        started = start.compare(
            user=self.user,
            text=COMPARED,
            client_id=client_id(),
            model_ids=[self.models[0].pk, self.models[1].pk],
        )
        for one, answer in zip(started, COMPARED_ANSWERS, strict=True):
            mark_running(one.run)
            usage = protocol.Usage(
                prompt_tokens=310,
                completion_tokens=1_200,
                cached_tokens=0,
                reasoning_tokens=0,
                estimated=False,
            )
            outcome = finish.Outcome(status=Run.Status.DONE, text=answer, usage=usage)
            finish.end(
                run_id=one.run.pk, attempt=1, status=Run.Status.RUNNING, seq=9, outcome=outcome
            )
        chat = started[0].run.conversation
        Conversation.objects.filter(pk=chat.pk).update(title="A sentence for a notebook")
        return chat
