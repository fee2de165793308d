from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from chatproject.ops import doctor
from chatproject.ops.doctor import Finding, Level


class Command(BaseCommand):
    help = (
        "Checks the installation: database, Redis, workers, clock, catalogue, static files, mail, and "
        "the way through the proxy. Each line says what to do. Exit code 1 if there is a problem."
    )
    requires_system_checks: list[str] = []  # they are among the findings

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        found = []
        for finding in doctor.examine(doctor.ALL):
            found.append(finding)
            if not options["json"]:
                self._print(finding)
        count = Counter(finding.level for finding in found)
        if options["json"]:
            rows = [
                {
                    "part": finding.part,
                    "level": finding.level,
                    "found": finding.found,
                    "advice": finding.advice,
                }
                for finding in found
            ]
            self.stdout.write(json.dumps({"ok": not count[Level.PROBLEM], "findings": rows}))
        else:
            self.stdout.write(
                f"{count[Level.OK]} ok, warnings: {count[Level.WARNING]},"
                f" problems: {count[Level.PROBLEM]}"
            )
        if count[Level.PROBLEM]:
            sys.exit(1)

    def _print(self, finding: Finding) -> None:
        paint = {
            Level.OK: self.style.SUCCESS,
            Level.WARNING: self.style.WARNING,
            Level.PROBLEM: self.style.ERROR,
        }[finding.level]
        self.stdout.write(f"{paint(f'{finding.level:<8}')} {finding.part:<13} {finding.found}")
        if finding.advice:
            self.stdout.write(f"{'':22} {finding.advice}")
