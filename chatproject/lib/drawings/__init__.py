"""Drawings (SVG) as PNG files, made in a sandboxed process."""
