from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from datetime import datetime
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from billing.ledger import audit
from billing.models import Account


class Command(BaseCommand):
    help = (
        "Checks every rule of the ledger from its rows alone. Prints the problems and then exits "
        "with 1. Changes nothing, except that --freeze freezes the accounts concerned."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--since", type=moment, help="only accounts written to since: 2026-01-31T12:00"
        )
        parser.add_argument("--account", help="only this account: its number or its user's address")
        parser.add_argument("--json", action="store_true", help="print a JSON list")
        parser.add_argument(
            "--freeze", action="store_true", help="freeze the accounts that break a rule"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        account_id = account_of(options["account"]) if options["account"] else None
        problems = audit.check(since=options["since"], account_id=account_id)
        frozen = audit.freeze(problems) if options["freeze"] else []
        if options["json"]:
            self.stdout.write(json.dumps([asdict(problem) for problem in problems], indent=2))
        else:
            for problem in problems:
                self.stdout.write(f"{problem.where}: {problem.message} ({problem.code})")
            for number in frozen:
                self.stdout.write(f"account {number}: frozen.")
            count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}."
            self.stdout.write(count if problems else "The ledger is consistent.")
        if problems:
            sys.exit(1)


def moment(text: str) -> datetime:
    """Parse a date or a time in ISO 8601, by default in the site's time zone."""
    found = parse_datetime(text)
    if found is None and (day := parse_date(text)):
        found = datetime(day.year, day.month, day.day)  # noqa: DTZ001 # its zone comes next
    if found is None:
        raise ValueError(text)
    return found if timezone.is_aware(found) else timezone.make_aware(found)


def account_of(text: str) -> int:
    """Return the id of an account, given by its number or its user's address. Raises CommandError."""
    if text.isdecimal():
        found = Account.objects.filter(pk=int(text)).first()
    else:
        by_address = {f"user__{get_user_model().USERNAME_FIELD}__iexact": text}
        found = Account.objects.filter(**by_address).first()
    if found is None:
        raise CommandError(f"There is no account {text}.")
    return int(found.pk)
