from __future__ import annotations

import math
from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from accounts.models import AccountDeletion, User
from accounts.privacy import erase, leaving


class Command(BaseCommand):
    help = (
        "Deletes a user's account: at once it is closed, and after ACCOUNT_DELETION_DAYS the clock has all of its "
        "data purged."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email", help="the user's e-mail address")
        parser.add_argument(
            "--by",
            metavar="STAFF",
            help="the member of staff who decided it: the user cannot restore the account then",
        )
        choice = parser.add_mutually_exclusive_group()
        choice.add_argument(
            "--now", action="store_true", help="purge the data at once; nothing can be restored"
        )
        choice.add_argument(
            "--restore", action="store_true", help="restore an account that is being deleted"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(email__iexact=options["email"]).first()
        if user is None:
            raise CommandError(f"There is no user {options['email']}.")
        if options["restore"]:
            try:
                leaving.restore(user)
            except leaving.NotRestorable:
                raise CommandError(
                    f"{user} is not being deleted, or the purge has begun."
                ) from None
            self.stdout.write(f"{user} is restored.")
            return
        by = None
        if options["by"]:
            by = User.objects.filter(email__iexact=options["by"], is_staff=True).first()
            if by is None:
                raise CommandError(f"There is no member of staff {options['by']}.")
        try:
            deletion = leaving.request(user, by=by)
        except leaving.LastSuperuser:
            raise CommandError(f"{user} is the only superuser. Make another one first.") from None
        if not options["now"]:
            self.stdout.write(
                f"{user} will be purged in {settings.ACCOUNT_DELETION_DAYS} days, on {deletion.due_at:%Y-%m-%d}."
            )
            return
        now = timezone.now()
        AccountDeletion.objects.filter(pk=user.pk).update(due_at=now - timedelta(seconds=1))
        if not erase.purge(user.pk, now, math.inf):
            raise CommandError(
                f"The purge of {user} is not complete: a reply has not ended, or a job works on it. "
                "The clock goes on with it."
            )
        self.stdout.write("All data are purged.")
