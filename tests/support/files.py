"""Files that users attach, for tests."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image

from accounts.models import User
from chat.attachments import uploads
from chat.models import Attachment


def picture(kind: str = "PNG", size: tuple[int, int] = (60, 40), **options: Any) -> bytes:
    """Return an image: its left half red, its right half blue."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    made = io.BytesIO()
    image.convert(options.pop("mode", "RGB")).save(made, kind, **options)
    return made.getvalue()


def announced_png(width: int, height: int) -> bytes:
    """Return the beginning of a PNG with a size that its data do not have."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def attach(user: User, content: bytes | None = None, name: str = "picture.png") -> Attachment:
    """Upload a file of a user, by default an image."""
    content = picture() if content is None else content
    return uploads.add(user=user, name=name, size=len(content), file=io.BytesIO(content))
