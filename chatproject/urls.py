from __future__ import annotations

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from accounts.access import admin_login, admin_shortcut
from chatproject.ops import installable, status_page

admin.site.site_header = "Parley"
admin.site.site_title = "Parley"
admin.site.index_title = "Staff"

handler400 = "chatproject.ops.error_pages.bad_request"
handler500 = "chatproject.ops.error_pages.server_error"

urlpatterns = [
    path("admin/billing/report/", include("billing.admin.report")),
    path("admin/chat/live/", include("chat.admin.live_queue")),
    path("admin/status/", admin.site.admin_view(status_page.status), name="system_status"),
    path("admin/login/", admin_login, name="admin_login"),
    # The site's page announces the change by mail.
    path(
        "admin/password_change/",
        RedirectView.as_view(pattern_name="account_change_password"),
        name="admin_password_change",
    ),
    path("admin/r/<path:row>", admin_shortcut, name="admin_shortcut"),
    path("admin/", admin.site.urls),
    path("manifest.webmanifest", installable.manifest, name="manifest"),
    path("service-worker.js", installable.service_worker, name="service_worker"),
    path("offline/", installable.offline, name="offline"),
    path("accounts/", include("accounts.urls")),
    path("billing/", include("billing.urls")),
    path("api/", include("chat.api.rest.urls")),
    path("", include("chat.urls")),
]
