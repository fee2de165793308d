"""RQ's pages in the admin (django-rq), with permissions of their own and an audit.

Reading requires `chat.view_queue`. Every request that changes something also requires
`chat.change_queue`, and is stored in the admin's log before it is carried out. Pages of a job show
neither its arguments nor its results: they may hold personal data or secrets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import django_rq.admin
from django.contrib import admin
from django.contrib.admin.models import CHANGE as CHANGED
from django.contrib.admin.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ImproperlyConfigured
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django_rq.models import Dashboard
from django_rq.queues import get_queue_by_index
from django_rq.settings import get_queues_list
from rq.exceptions import NoSuchJobError
from rq.job import Job

from chatproject.lib.admin import client_ip, require_permission, staff_id

VIEW = "chat.view_queue"
CHANGE = "chat.change_queue"

PREFIX = "django_rq_"  # of the names of django-rq's pages
CHANGELIST = "django_rq_dashboard_changelist"  # the only page of ModelAdmin that has a table
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
MAX_MESSAGE = 2_000  # characters of an entry in the log

admin.site.unregister(Dashboard)


@admin.register(Dashboard)
class QueueAdmin(django_rq.admin.QueueAdmin):
    """The pages of django-rq, each behind `_guarded`."""

    def has_module_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(VIEW)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm(VIEW)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm(CHANGE)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_urls(self) -> list[URLPattern]:
        patterns: list[URLPattern] = super().get_urls()  # type: ignore[no-untyped-call]
        return [self._guarded(pattern) for pattern in patterns if self._is_ours(pattern.name)]

    def _is_ours(self, name: str | None) -> bool:
        # ModelAdmin's pages of rows would ask the database for a table that does not exist.
        is_of_rows = name is None or name.startswith(f"{PREFIX}dashboard_")
        return name == CHANGELIST or not is_of_rows

    def _guarded(self, pattern: URLPattern) -> URLPattern:
        action = (pattern.name or "").removeprefix(PREFIX)
        view: Callable[..., HttpResponseBase] = pattern.callback
        if action in ("job_detail", "result_detail"):
            view = self.admin_site.admin_view(job_page)

        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            request.current_app = self.admin_site.name  # for rq_url
            if self.admin_site.has_permission(request):
                require_permission(request, VIEW)
                if request.method not in SAFE_METHODS:
                    require_permission(request, CHANGE)
                    if action != "confirm_action":
                        record(request, action, kwargs)
            # For all others: the sign-in page, or a 401 of the pages for programs.
            try:
                return view(request, *args, **kwargs)
            # The last two are django-rq's answers for a worker that has ended, and for schedulers.
            except (
                IndexError,
                ValueError,  # the key of a worker
                NoSuchJobError,
                AssertionError,
                ImproperlyConfigured,
            ) as error:
                raise Http404(_("There is no such queue, job, worker or scheduler.")) from error

        pattern.callback = guarded
        return pattern


def record(request: HttpRequest, action: str, where: dict[str, Any]) -> None:
    """Store a change of a queue by staff in the admin's log."""
    queue = queue_name(where.get("queue_index"))
    verb, jobs = action.replace("_", " "), [where["job_id"]] if "job_id" in where else []
    if action == "actions":
        verb, jobs = request.POST.get("action", ""), request.POST.getlist("job_ids")
    parts = [verb, *(["jobs: " + ", ".join(jobs)] if jobs else []), f"from {client_ip(request)}"]
    LogEntry.objects.create(
        user_id=staff_id(request),
        content_type=ContentType.objects.get_for_model(Dashboard),
        object_id=queue,
        object_repr=f"queue {queue}"[:200],
        action_flag=CHANGED,
        change_message="; ".join(parts).replace("\0", "")[:MAX_MESSAGE],
    )


def queue_name(index: int | None) -> str:
    """Return the name of a queue, by its number in django-rq's addresses."""
    names = [queue["name"] for queue in get_queues_list()]
    if index is None or index >= len(names):
        raise Http404(_("There is no such queue."))
    return str(names[index])


@never_cache
def job_page(
    request: HttpRequest, queue_index: int, job_id: str, result_id: str = ""
) -> HttpResponse:
    """Show the state of a job and where its attempts failed."""
    queue = get_queue_by_index(queue_index)
    job = Job.fetch(job_id, connection=queue.connection, serializer=queue.serializer)
    status = job.get_status(refresh=False)
    try:
        function = str(job.func_name)
    except Exception:  # noqa: BLE001  whatever a serializer raises for data that it cannot read
        function = "unreadable"
    context = {
        **admin.site.each_context(request),
        "title": f"Job {job.id}",
        "queue": queue.name,
        "queue_index": queue_index,
        "job": {
            "id": job.id,
            "function": function,
            "status": status.value if status else "unknown",
            "created_at": job.created_at,
            "enqueued_at": job.enqueued_at,
            "started_at": job.started_at,
            "ended_at": job.ended_at,
        },
        "results": [
            {
                "type": result.type.name.lower(),
                "created_at": result.created_at,
                "where": without_values(result.exc_string or ""),
            }
            for result in job.results()
        ],
        "actions": _actions(job),
        "may_change": request.user.has_perm(CHANGE),
    }
    return TemplateResponse(request, "admin/chat/job.html", context)


def _actions(job: Job) -> list[tuple[str, str]]:
    """Return the buttons of a job: names of django-rq's pages, and the words on them."""
    if job.is_started:
        return [("stop_job", _("Stop"))]
    if job.is_failed:
        return [("requeue_job", _("Requeue"))]
    return [] if job.is_queued else [("enqueue_job", _("Enqueue"))]


def without_values(traceback: str) -> str:
    """Return a traceback without the messages of its exceptions, which may hold data of users."""
    return "\n".join(_lines(traceback.splitlines()))


def _lines(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        if re.match(r' +File ".*", line \d+', line) or line.startswith(
            ("Traceback", "During", "The above")
        ):
            yield line
        elif found := re.match(r"([A-Za-z_][\w.]*)(:|$)", line):
            yield found[1]
