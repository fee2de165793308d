"""Storage of the static files: hashed names, inside ES modules too."""

from __future__ import annotations

from whitenoise.storage import CompressedManifestStaticFilesStorage


class ManifestStorage(CompressedManifestStaticFilesStorage):
    """WhiteNoise's storage, which also rewrites `import "./x.js"` to the hashed name.

    Without it a browser could pair a new module with an old one from its cache after an update.
    """

    support_js_module_import_aggregation = True
    # A file that exists only in development must not turn a page into an error 500.
    manifest_strict = False
