"""System status: a staff page with the readiness of the site and the findings of the quick checks."""

from __future__ import annotations

from dataclasses import dataclass

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from chatproject.lib.admin import require_permission
from chatproject.ops import doctor, readiness
from chatproject.ops.doctor import Finding, Level
from chatproject.ops.doctor.checkup import Check

PERMISSION = "accounts.view_status"

LABELS = {
    "database": "Postgres",
    "migrations": "Migrations",
    "redis": "Redis",
    "worker": "Worker",
    "clock": "Clock",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of /health/ready; `reason` is empty when it works."""

    name: str
    label: str
    reason: str
    is_required: bool


@require_safe
def status(request: HttpRequest) -> HttpResponse:
    """Show the parts of /health/ready with their reasons, and the quick checks of `doctor`.

    The page answers within the time limits of the checks also while Postgres is silent.
    """
    require_permission(request, PERMISSION)
    reasons: dict[str, str] = {}
    checks = [
        Check("database", lambda: _note(reasons, readiness.database_parts()), seconds=2.0),
        Check("redis", lambda: _note(reasons, readiness.redis_parts()), seconds=2.0),
    ]
    order = [Level.PROBLEM, Level.WARNING, Level.OK]
    findings = sorted(
        doctor.examine([*checks, *doctor.ON_PAGE]), key=lambda finding: order.index(finding.level)
    )
    parts = [
        Part(
            name, label, reasons.get(name, _("Not checked: see below.")), name in readiness.REQUIRED
        )
        for name, label in LABELS.items()
    ]
    context = {
        **admin.site.each_context(request),
        "title": _("System status"),
        "now": timezone.now(),
        "parts": parts,
        "is_ready": not any(part.reason for part in parts if part.is_required),
        "findings": findings,
        "problems": sum(finding.level is Level.PROBLEM for finding in findings),
        "warnings": sum(finding.level is Level.WARNING for finding in findings),
    }
    return TemplateResponse(request, "admin/status.html", context)


def _note(reasons: dict[str, str], found: dict[str, str]) -> list[Finding]:
    reasons.update(found)
    return []
