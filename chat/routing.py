from __future__ import annotations

from django.urls import path, re_path

from chat.consumers import ChatConsumer, NoSuchSocket

websocket_urlpatterns = [
    path("ws/v1/", ChatConsumer.as_asgi()),  # type: ignore[arg-type] # typed for views alone
    re_path(r"", NoSuchSocket.as_asgi()),  # type: ignore[arg-type]
]
