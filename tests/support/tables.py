"""Documents with tables, for tests."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from xml.sax.saxutils import escape

from accounts.models import User
from chat.documents.datasets import store
from chat.documents.models import Dataset, Document
from chat.models import Message, MessagePart
from chatproject.lib import private_files


def upload(owner: User, content: bytes | str, name: str = "sales.csv") -> Document:
    """Store a file as a document whose tables are not made yet."""
    raw = content.encode() if isinstance(content, str) else content
    made: Document = Document.objects.create(
        owner=owner,
        name=name,
        format="xlsx" if name.endswith(".xlsx") else "csv",
        kind="table",
        size=len(raw),
        sha256=hashlib.sha256(raw).hexdigest(),
        status="ready",
        file=private_files.store([raw], "documents"),
    )
    return made


def dataset(owner: User, content: bytes | str, name: str = "sales.csv") -> Dataset:
    """Make the tables of a file."""
    document = upload(owner, content, name)
    return store.build(document, private_files.path(document.file))


def workbook(sheets: dict[str, Sequence[Sequence[str | float]]]) -> bytes:
    """Return an Excel file. A text that begins with "=" is a formula with the value 7."""
    file = io.BytesIO()
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    listed, related, types = "", "", ""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (title, rows) in enumerate(sheets.items(), 1):
            listed += f'<sheet name="{escape(title)}" sheetId="{number}" r:id="r{number}"/>'
            related += f'<Relationship Id="r{number}" Type="{office}/worksheet" Target="worksheets/s{number}.xml"/>'
            types += f'<Override PartName="/xl/worksheets/s{number}.xml" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/>'
            lines = "".join(f"<row>{''.join(map(_cell, row))}</row>" for row in rows)
            archive.writestr(
                f"xl/worksheets/s{number}.xml",
                f'<worksheet xmlns="{main}"><sheetData>{lines}</sheetData></worksheet>',
            )
        archive.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>{listed}</sheets></workbook>',
        )
        package = "http://schemas.openxmlformats.org/package/2006"
        archive.writestr(
            "xl/_rels/workbook.xml.rels",
            f'<Relationships xmlns="{package}/relationships">{related}</Relationships>',
        )
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{package}/relationships"><Relationship Id="r" Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        )
        archive.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{package}/content-types"><Default Extension="xml" ContentType="application/xml"/><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/xl/workbook.xml" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>{types}</Types>',
        )
    return file.getvalue()


def _cell(value: str | float) -> str:
    if isinstance(value, str) and value.startswith("="):
        return f"<c><f>{escape(value[1:])}</f><v>7</v></c>"
    if isinstance(value, str):
        return f'<c t="inlineStr"><is><t>{escape(value)}</t></is></c>'
    return f"<c><v>{value}</v></c>"


DRAWING = '<svg viewBox="0 0 400 100"><text x="1" y="20" fill="var(--text)">a</text></svg>'


def chart_in(reply: Message, title: str) -> MessagePart:
    """Add a chart to a reply."""
    data = {
        "title": title, "description": f"{title} by day", "svg": DRAWING, "spec": {}, "call": "1",
        "columns": [{"name": "day", "type": "date"}, {"name": "n", "type": "integer"}],
        "rows": [["2024-01-01", 3], ["=1+1", 4]],
    }  # fmt: skip
    return MessagePart.objects.create(message=reply, position=9, kind="chart", data=data)
