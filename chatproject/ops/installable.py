"""The site as an installable app: its manifest, its service worker, and the page that is shown offline.

The service worker (templates/service_worker.js) stores the offline page and that page's static files, and
no other page. Its text contains the hash of all static files, so that browsers replace it with each release.
"""

from __future__ import annotations

import json
import re
from typing import Any

from django.conf import settings
from django.contrib.staticfiles.storage import staticfiles_storage
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.template import loader
from django.templatetags.static import static
from django.urls import reverse
from django.utils.cache import patch_vary_headers
from django.utils.translation import get_language, get_language_bidi
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

STATIC_FILE = re.compile(rf'(?:href|src)="({re.escape(settings.STATIC_URL)}[^"]+)"')
ICONS = (
    ("icons/parley.svg", "any", "any"),
    ("icons/parley-192.png", "192x192", "any"),
    ("icons/parley-512.png", "512x512", "any"),
    ("icons/parley-maskable-192.png", "192x192", "maskable"),
    ("icons/parley-maskable-512.png", "512x512", "maskable"),
)


@require_safe
def manifest(request: HttpRequest) -> HttpResponse:
    """Return the web app manifest, in the language of the request."""
    shortcuts = [
        {"name": _("New chat"), "url": reverse("chat:new")},
        {"name": _("Search"), "url": reverse("chat:search")},
        {"name": _("All chats"), "url": reverse("chat:list")},
    ]
    if settings.BILLING:
        shortcuts.append({"name": _("Credits"), "url": reverse("billing:overview")})
    found: dict[str, Any] = {
        "id": "/",
        "name": settings.SITE_NAME,
        "short_name": settings.SITE_NAME,
        "description": _("Chats with language models"),
        "lang": get_language(),
        "dir": "rtl" if get_language_bidi() else "ltr",
        "start_url": "/",
        "scope": "/",
        "display": "standalone",
        "background_color": "#fbfaf8",
        "theme_color": "#fbfaf8",
        "categories": ["productivity"],
        "icons": [
            {
                "src": static(path),
                "type": "image/svg+xml" if path.endswith(".svg") else "image/png",
                "sizes": sizes,
                "purpose": purpose,
            }
            for path, sizes, purpose in ICONS
        ],
        "shortcuts": [
            {**shortcut, "icons": [{"src": static("icons/parley-192.png"), "sizes": "192x192"}]}
            for shortcut in shortcuts
        ],
    }
    response = JsonResponse(found, content_type="application/manifest+json")
    response["Cache-Control"] = "public, max-age=60"
    patch_vary_headers(response, ["Accept-Language"])
    return response


@require_safe
def offline(request: HttpRequest) -> HttpResponse:
    """Show that the site cannot be reached: the page that the service worker stores."""
    return render(request, "offline.html")


@require_safe
def service_worker(request: HttpRequest) -> HttpResponse:
    """Return the script of the service worker; with SERVICE_WORKER=0 one that removes itself."""
    page = reverse("offline")
    config = {
        "isOn": settings.SERVICE_WORKER,
        "release": getattr(staticfiles_storage, "manifest_hash", "") or "development",
        "page": page,
        "renewal": reverse("chat:renew_device"),
        "files": sorted(set(STATIC_FILE.findall(loader.render_to_string("offline.html")))),
        "icon": static("icons/parley-192.png"),
        "badge": static("icons/parley-badge-96.png"),
    }
    script = loader.render_to_string("service_worker.js")
    return HttpResponse(
        f"const CONFIG = {json.dumps(config)};\n{script}", content_type="text/javascript"
    )
