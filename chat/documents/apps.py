from __future__ import annotations

from django.apps import AppConfig


class DocumentsConfig(AppConfig):
    name = "chat.documents"
    label = "documents"

    def ready(self) -> None:
        from chat.attachments import uploads as attachments
        from chat.documents import uploads

        if uploads.stored_bytes not in attachments.counters:
            attachments.counters.append(uploads.stored_bytes)
