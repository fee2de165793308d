from __future__ import annotations

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from accounts import api_keys
from accounts.models import Scope, User
from billing import credits


class Command(BaseCommand):
    help = "Creates an API key for a user and prints it, once: it cannot be shown again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email", help="the user's e-mail address")
        parser.add_argument("--name", default="Command line", help="how lists name the key")
        parser.add_argument(
            "--scope",
            action="append",
            choices=Scope.values,
            help="what it may do; may be repeated, by default all but webhooks",
        )
        parser.add_argument(
            "--expires-days", type=int, help="days until it expires; default: never"
        )
        parser.add_argument("--spending-limit", help="credits per month; default: no limit")
        parser.add_argument("--total-limit", help="credits in all; default: no limit")
        parser.add_argument(
            "--rate", type=int, help="requests per minute; default: the site's limit"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(email__iexact=options["email"]).first()
        if user is None:
            raise CommandError(f"There is no user {options['email']}.")
        if not user.is_active:
            raise CommandError(f"The user {user} is not active.")
        days, rate, name = options["expires_days"], options["rate"], options["name"].strip()
        if days is not None and not 1 <= days <= 36_500:
            raise CommandError("--expires-days: write a number of days from 1 to 36500.")
        if rate is not None and not 1 <= rate <= 100_000:
            raise CommandError("--rate: write a number of requests from 1 to 100000.")
        if not 1 <= len(name) <= 60:
            raise CommandError("--name: write 1 to 60 characters.")
        terms = api_keys.Terms(
            name=name,
            scopes=options["scope"] or (),
            expires_at=timezone.now() + timedelta(days=days) if days is not None else None,
            rate=rate,
            limit_month=micro(options["spending_limit"], "--spending-limit"),
            limit_total=micro(options["total_limit"], "--total-limit"),
        )
        try:
            _key, secret = api_keys.create(user, terms)
        except api_keys.TooManyKeys:
            raise CommandError(f"{user} has {api_keys.MOST} keys already. Revoke one.") from None
        self.stdout.write(secret)


def micro(text: str | None, option: str) -> int | None:
    """Return a number of credits as micro-credits. Raises CommandError."""
    if text is None:
        return None
    try:
        amount = credits.parse(text)
    except ValueError as error:
        raise CommandError(f"{option}: {error}.") from error
    if amount < 0:
        raise CommandError(f"{option}: write a number that is not negative.")
    return amount
