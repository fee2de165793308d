"""The structure of a JPEG or PNG, walked before a decoder sees it.

A decoder's work may be out of proportion to the pixels: a small JPEG may repeat its scans thousands of times, each
of which goes over all pixels, and a file may consist of millions of empty parts, for each of which Pillow
creates objects.
"""

from __future__ import annotations

import re
from typing import IO

MAX_PARTS = 20_000  # segments of a JPEG, chunks of a PNG: one of 20 MB has some 2,500
MAX_SCANS = 100  # of a JPEG; progressive ones have about 10
MAX_FILLING = (
    1_000  # bytes between two segments before the first scan, which Pillow skips one by one
)

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
MARKER = re.compile(rb"\xff([^\x00\xff])")
# The marker that ends a scan: the codes of restarts are a part of its data.
AFTER_SCAN = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
END, START_OF_SCAN = 0xD9, 0xDA
WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


class TooComplex(Exception):
    """An image has too many parts."""


def check(file: IO[bytes]) -> int:
    """Return the number of scans of a JPEG, 1 for any other image. Raises TooComplex."""
    head = file.read(len(PNG))
    scans = 1
    if head.startswith(JPEG):
        file.seek(0)
        scans = _scans(file.read())
    elif head == PNG:
        _check_chunks(file)
    file.seek(0)
    return scans


def _scans(data: bytes) -> int:
    """Count the scans up to the end of the image; a phone may append a film to it."""
    at, scans = 2, 0
    for _part in range(MAX_PARTS):
        found = (AFTER_SCAN if scans else MARKER).search(data, at)
        end = len(data) if found is None else found.start()
        if scans == 0 and end - at > MAX_FILLING:
            raise TooComplex
        if found is None or found[1][0] == END:
            return max(1, scans)
        at, code = found.end(), found[1][0]
        if code == START_OF_SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise TooComplex
        if code not in WITHOUT_LENGTH:
            at += int.from_bytes(data[at : at + 2], "big")
    raise TooComplex


def _check_chunks(file: IO[bytes]) -> None:
    for _part in range(MAX_PARTS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        file.seek(int.from_bytes(head[:4], "big") + 4, 1)  # with its checksum
    raise TooComplex
