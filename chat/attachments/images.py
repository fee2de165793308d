"""Decodes images of users and encodes them anew, within bounds of memory and time.

The stored image is this module's own encoding of the pixels, without metadata (place, device, author) and without
the data of another type that a polyglot carries. Decoding is the work of
a thread, never of an event loop, and one image at a time in a process.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from django.utils.translation import gettext as _
from PIL import Image

from chat.attachments import structure
from chat.errors import ChatError

logger = logging.getLogger(__name__)

# The decoders that may see a file; the first bytes that make it an image for us.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")
SIGNATURES = ((0, b"\xff\xd8\xff"), (0, b"\x89PNG\r\n\x1a\n"), (0, b"GIF8"), (8, b"WEBP"))
AVIF_BRANDS = (b"ftypavif", b"ftypavis")
# Of photographs in formats that browsers do not show either.
OTHER_BRANDS = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1")

# A JPEG is decoded at a smaller scale, so it may be larger; the decoder of WebP needs 16 bytes for each pixel.
MAX_PIXELS = 30_000_000
MOST_PIXELS = {"JPEG": 50_000_000, "MPO": 50_000_000, "WEBP": 16_000_000}
MAX_SCANNED = 1_000_000_000  # pixels of a JPEG, times its scans
MAX_SIDE = 30_000
SIDE = 2_048  # pixels of the longer side as stored, which is as much as models look at
THUMBNAIL_SIDE = 480
MAX_BYTES = 1_500_000  # of a stored image
QUALITIES = (88, 78, 65, 50, 35)  # of JPEG: the first one that fits
BUSY_AFTER = 8.0  # seconds to wait for images of other requests

# The change that makes an image upright, by its orientation in EXIF.
ORIENTATION = 0x0112
TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_one_at_a_time = threading.BoundedSemaphore(1)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image as it is stored, upright, with its thumbnail (a JPEG or a PNG as well)."""

    data: bytes
    content_type: str
    width: int
    height: int
    thumbnail: bytes


def is_image(head: bytes) -> bool:
    """Return whether a file that begins with these 16 bytes has a format in FORMATS."""
    if head[4:12] in AVIF_BRANDS:
        return True
    return any(head[at : at + len(mark)] == mark for at, mark in SIGNATURES)


def is_other_image(head: bytes) -> bool:
    """Return whether a file is an image of a format that is not decoded here."""
    return head[4:12] in OTHER_BRANDS or head[:4] in (b"II*\x00", b"MM\x00*") or head[:2] == b"BM"


def encode(file: IO[bytes], *, longest_side: int = MAX_SIDE) -> Encoded:
    """Return the first frame of an image in an encoding of our own.

    Raises ChatError `bad_file` for a damaged image and for one with too many pixels or parts, and `busy`.
    """
    with _turn():
        try:
            return _encode(file, longest_side)
        except ChatError:
            raise
        except structure.TooComplex as error:
            raise _too_complex() from error
        except Exception as error:
            # Decoders raise anything for a damaged file, and it is the file that is at fault.
            logger.info("an image could not be decoded: %s: %s", type(error).__name__, error)
            raise ChatError(
                "bad_file", _("The image is damaged or incomplete. Attach another one.")
            ) from error


@contextmanager
def _turn() -> Iterator[None]:
    if not _one_at_a_time.acquire(timeout=BUSY_AFTER):
        raise ChatError("busy", _("Too many images arrive right now. Try again."), retry_after=5)
    try:
        yield
    finally:
        _one_at_a_time.release()


def _too_complex() -> ChatError:
    return ChatError(
        "bad_file", _("The image is built of too many parts. Save it anew, then attach it.")
    )


def _encode(file: IO[bytes], longest_side: int) -> Encoded:
    scans = structure.check(file)
    with Image.open(file, formats=FORMATS) as opened:
        is_photo = opened.format in ("JPEG", "MPO")
        width, height = opened.size  # of the header: nothing is decoded yet
        most = MOST_PIXELS.get(opened.format or "", MAX_PIXELS)
        if width * height > most or max(width, height) > longest_side:
            raise ChatError(
                "bad_file",
                _("The image has too many pixels (%(width)d by %(height)d). Make it smaller first.")
                % {"width": width, "height": height},
            )
        if width * height * scans > MAX_SCANNED:
            raise _too_complex()
        if is_photo:
            opened.draft("RGB", (SIDE, SIDE))
        orientation = opened.getexif().get(ORIENTATION, 1)
        profile = opened.info.get("icc_profile")
        # In place where that is possible: a copy of the largest image takes 120 MB.
        image = opened if _is_plain(opened) else _converted(opened)
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
        image.load()  # a small one is not read yet
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255):
        image = image.convert("RGB")
    if image.mode != "RGB" or not isinstance(profile, bytes) or len(profile) > 65_536:
        profile = None  # it describes other colours than the converted pixels have, or is too large
    if orientation in TRANSPOSED:
        image = image.transpose(TRANSPOSED[orientation])
    image.info = {}  # comments and the like would be written again
    data, content_type = _written(image, profile, is_photo=is_photo, most=MAX_BYTES)
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    thumbnail, _type = _written(small, profile, is_photo=image.mode == "RGB", most=60_000)
    return Encoded(data, content_type, image.width, image.height, thumbnail)


def _is_plain(image: Image.Image) -> bool:
    return image.mode in ("RGB", "RGBA") and "transparency" not in image.info


def _converted(image: Image.Image) -> Image.Image:
    """Return the pixels as RGB, or as RGBA if some may be transparent."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode in ("I;16", "I"):
        # 16 bits: without the scale all but the darkest pixels would be white.
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("RGB")
    return image.convert("RGB")


def _written(
    image: Image.Image, profile: bytes | None, *, is_photo: bool, most: int
) -> tuple[bytes, str]:
    """Return an image as PNG if it is no photograph and that is small enough, else as JPEG."""
    if not is_photo or image.mode == "RGBA":
        made = io.BytesIO()
        image.save(made, "PNG", icc_profile=profile)
        if made.tell() <= most:
            return made.getvalue(), "image/png"
    if image.mode == "RGBA":
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image.getchannel("A"))
        image = paper
    data = b""
    for quality in QUALITIES:
        made = io.BytesIO()
        image.save(made, "JPEG", quality=quality, icc_profile=profile)
        data = made.getvalue()
        if len(data) <= most:
            break
    return data, "image/jpeg"
