"""Parley: settings, entry points, and tools without tables."""

# Semantic versioning; CHANGELOG.md has a section for each release.
from __future__ import annotations

VERSION = "0.2.0"
