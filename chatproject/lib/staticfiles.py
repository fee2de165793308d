"""Static files: stored with hashed names, inside ES modules too, and sent by WhiteNoise."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponseBase
from django.utils.http import parse_etags
from whitenoise.middleware import WhiteNoiseMiddleware
from whitenoise.storage import CompressedManifestStaticFilesStorage


class ManifestStorage(CompressedManifestStaticFilesStorage):
    """WhiteNoise's storage, which also rewrites `import "./x.js"` to the hashed name.

    Without it a browser could pair a new module with an old one from its cache after an update.
    """

    support_js_module_import_aggregation = True
    # A file that exists only in development must not turn a page into an error 500.
    manifest_strict = False


class StaticFilesMiddleware(WhiteNoiseMiddleware):
    """WhiteNoise's middleware, which also finds its entity tag in a list, and as a weak one (RFC 9110, 13.1.2).

    A proxy that compresses a file makes its tag a weak one; WhiteNoise would send the file again each time.
    """

    @staticmethod
    def serve(static_file: Any, request: HttpRequest) -> HttpResponseBase:  # type: ignore[override]
        etag = getattr(static_file, "etag", None)  # a redirect has none
        sent = parse_etags(request.META.get("HTTP_IF_NONE_MATCH", ""))
        if etag and {tag.removeprefix("W/") for tag in sent} & {etag, "*"}:
            request.META["HTTP_IF_NONE_MATCH"] = etag
        response: HttpResponseBase = WhiteNoiseMiddleware.serve(static_file, request)  # type: ignore[no-untyped-call]
        return response
