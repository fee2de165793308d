"""Documents that tests upload and read."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable

import docx
from fpdf import FPDF

from accounts.models import User
from chat.documents import reading, uploads
from chat.documents.models import Document
from chat.models import Project

CHAT = """\
[12.03.24, 10:15:33] Anna: Good morning!
[12.03.24, 10:16:01] Ben: Morning.
How are you?
[12.03.24, 10:17:12] Anna: Fine, thanks
[05.04.24, 18:00:00] Ben: Dinner at the harbour?
"""
TEXT = "The lighthouse was built in 1874.\n\nIt stands on a rock.\n"
MARKDOWN = """\
# Manual

Read it first.

## Pump

| part | price |
|---|---|
| seal | 3 |

```python
# no heading
```

Maintenance
-----------

Oil it *weekly*.
"""


def upload(
    user: User, content: bytes | str, name: str = "notes.txt", project: Project | None = None
) -> Document:
    """Upload a document of a user, as in parts of a request."""
    data = content.encode() if isinstance(content, str) else content
    parts = [data[at : at + 65_536] for at in range(0, len(data), 65_536)]
    return uploads.add(user=user, name=name, size=len(data), chunks=parts, project=project).document


def read(document: Document) -> Document:
    """Do the job that reads a document; return it anew."""
    reading.run(document.pk, document.attempt)
    document.refresh_from_db()
    return document


def uploaded(user: User, content: bytes | str, name: str = "notes.txt") -> Document:
    """Upload and read a document."""
    return read(upload(user, content, name))


def a_zip(files: dict[str, bytes | str], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def a_pdf(pages: Iterable[str], password: str = "") -> bytes:
    made = FPDF()
    made.set_font("Helvetica", size=12)
    if password:
        made.set_encryption(owner_password=password, user_password=password)
    for text in pages:
        made.add_page()
        if text:
            made.multi_cell(0, 8, text)
    return bytes(made.output())


def a_docx() -> bytes:
    made = docx.Document()
    made.add_heading("Minutes", level=1)
    made.add_paragraph("We met on Tuesday.")
    made.add_heading("Decisions", level=2)
    table = made.add_table(rows=2, cols=2)
    for at, text in enumerate(("what", "who", "Buy paint", "Ben")):
        table.cell(at // 2, at % 2).text = text
    out = io.BytesIO()
    made.save(out)
    return out.getvalue()
