"""Encoding of messages for the outbox."""

from __future__ import annotations

import base64
import json
from email.mime.base import MIMEBase
from typing import Any

from django.core.mail import EmailMessage, EmailMultiAlternatives


def pack(message: EmailMessage) -> bytes:
    """Encode a message as JSON. Raises TypeError for a MIME object as attachment."""
    attachments = []
    for attachment in message.attachments:
        if isinstance(attachment, MIMEBase):
            raise TypeError("Attach a name, the content and a type instead of a MIME object.")
        name, content, mimetype = attachment
        data = content.encode() if isinstance(content, str) else bytes(content)
        attachments.append(
            [name, base64.b64encode(data).decode(), isinstance(content, str), mimetype]
        )
    fields = {
        "subject": str(message.subject),
        "body": str(message.body),
        "subtype": message.content_subtype,
        "from": message.from_email,
        "to": message.to,
        "cc": message.cc,
        "bcc": message.bcc,
        "reply_to": message.reply_to,
        "headers": {name: str(value) for name, value in message.extra_headers.items()},
        "alternatives": [
            [str(content), mimetype]
            for content, mimetype in getattr(message, "alternatives", None) or []
        ],
        "attachments": attachments,
    }
    return json.dumps(fields).encode()


def unpack(content: bytes) -> EmailMessage:
    """Return the message that `pack` encoded."""
    fields: dict[str, Any] = json.loads(content)
    message = EmailMultiAlternatives(
        fields["subject"],
        fields["body"],
        fields["from"],
        fields["to"],
        cc=fields["cc"],
        bcc=fields["bcc"],
        reply_to=fields["reply_to"],
        headers=fields["headers"],
    )
    message.content_subtype = fields["subtype"]
    for text, mimetype in fields["alternatives"]:
        message.attach_alternative(text, mimetype)
    for name, encoded, is_text, mimetype in fields["attachments"]:
        data = base64.b64decode(encoded)
        message.attach(name, data.decode() if is_text else data, mimetype)
    return message
