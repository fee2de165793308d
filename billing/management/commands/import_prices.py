from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils import timezone

from billing.credits import exact
from billing.metering.litellm_prices import PriceList, Rate, Refused, Unreadable, same
from billing.models import ModelPrice


def moment(text: str) -> datetime:
    """Parse a date and time in ISO 8601, by default in the site's time zone."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a date and time like 2026-01-31T00:00"
        ) from error
    return timezone.make_aware(found) if timezone.is_naive(found) else found


def percentage(text: str) -> Decimal:
    """Parse a number between 0 and 10,000."""
    try:
        found = Decimal(text)
    except InvalidOperation as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
    if not found.is_finite() or not 0 <= found <= 10_000:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 10,000")
    return found


@dataclass(frozen=True, slots=True)
class Step:
    """The import of one model: its present price, the new one, or why the new one was refused."""

    model: str
    old: ModelPrice | None
    new: ModelPrice | None = None
    refusal: str = ""

    @property
    def word(self) -> str:
        if self.new is None:
            return "refused"
        if self.old is None:
            return "new"
        return "unchanged" if same(self.old, self.new) else "changed"


class Command(BaseCommand):
    help = (
        "Imports the prices of the catalogue's models from a JSON file in the format of LiteLLM's "
        "list. A changed price is added, and the old one stays for earlier usage. Try it with "
        "--dry-run first."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path)
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--model", nargs="+", action="extend", metavar="NAME",
            help="These models, by the provider's name, instead of the catalogue's.",
        )  # fmt: skip
        which.add_argument("--all", action="store_true", help="Every chat model of the list.")
        parser.add_argument(
            "--from", dest="begin", type=moment, metavar="ISO-DATETIME",
            help="When the prices take effect; now by default.",
        )  # fmt: skip
        parser.add_argument(
            "--markup", type=percentage, default=Decimal(0), metavar="PERCENT",
            help="Percentage to add to the provider's prices.",
        )  # fmt: skip
        parser.add_argument(
            "--dry-run", action="store_true", help="Show the changes and write nothing."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path = options["file"]
        try:
            prices = PriceList(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, Unreadable) as error:
            raise CommandError(f"{path} cannot be read: {error}") from error
        names = options["model"] or (prices.chat_models() if options["all"] else catalogue())
        if not names:
            raise CommandError("There are no models to import prices for. Name some with --model.")
        rate = Rate(settings.CREDIT_USD, options["markup"])
        with transaction.atomic():
            begin = options["begin"] or timezone.now()
            steps = list(plan(prices, sorted(set(names)), rate, begin, path.name))
            written = [step.new for step in steps if step.new and step.word in ("new", "changed")]
            if not options["dry_run"]:
                ModelPrice.objects.bulk_create(written)
        self.stdout.write(table(steps))
        self.stdout.write(
            f"{len(written)} would be written." if options["dry_run"] else
            f"{len(written)} written, in force from {timezone.localtime(begin):%Y-%m-%d %H:%M:%S %Z}."
        )  # fmt: skip
        refused = [step for step in steps if step.new is None]
        for step in refused:
            self.stderr.write(f"{step.model}: {step.refusal}.")
        if refused:
            raise CommandError(f"{len(refused)} of {len(steps)} models were refused.")


def catalogue() -> list[str]:
    """Return the provider's names of all models in the catalogue."""
    models = apps.get_model("chat", "LanguageModel")
    return list(models._default_manager.values_list("provider_model", flat=True))


def plan(
    prices: PriceList, names: list[str], rate: Rate, begin: datetime, source: str
) -> Iterator[Step]:
    """Yield the import of each model; nothing is written."""
    so_far = {
        price.model: price
        for price in ModelPrice.objects.filter(model__in=names, effective_from__lte=begin)
        .order_by("model", "-effective_from")
        .distinct("model")
    }
    for name in names:
        old = so_far.get(name)
        try:
            key = prices.find(name)
            new = prices.price(key, rate, model=name, effective_from=begin)
            if old and old.effective_from == begin and not same(old, new):
                raise Refused("it has another price from that very time on")
        except Refused as refused:
            yield Step(name, old, refusal=str(refused).rstrip("."))
        else:
            new.source = f"{source}: {key}"[:200]
            yield Step(name, old, new)


def table(steps: list[Step]) -> str:
    """Format the import as a line per model, in credits per million tokens."""
    head = ["MODEL", "PRICE", "INPUT", "CACHED", "OUTPUT", "REASONING", "PER CALL", "LONG PROMPTS"]
    rows = [head, *([step.model, step.word, *figures(step)] for step in steps)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "Credits per million tokens:\n" + "\n".join(lines)


def figures(step: Step) -> Iterator[str]:
    """Yield the figures of a price; of a changed figure, the old and the new value."""
    olds, news = described(step.old), described(step.new)
    for old, new in zip(olds, news, strict=True):
        if step.old is None or step.new is None or old == new:
            yield new if step.new else old
        else:
            yield f"{old} -> {new}"


def described(price: ModelPrice | None) -> list[str]:
    """Return a price's figures as texts; empty texts without a price."""
    if price is None:
        return [""] * 6
    reasoning = price.out_per_m if price.reasoning_per_m is None else price.reasoning_per_m
    return [
        exact(price.in_per_m),
        exact(price.cached_in_per_m),
        exact(price.out_per_m),
        exact(reasoning),
        exact(price.request_fee),
        "; ".join(
            f"above {tier['above']:,}: "
            + "/".join(exact(tier[name]) for name in tier if name != "above")
            for tier in price.tiers
        )
        or "-",
    ]
