from __future__ import annotations

from django.urls import path, re_path

from chat.web.consumer import ChatConsumer, UnknownPathConsumer

websocket_urlpatterns = [
    path("ws/v1/", ChatConsumer.as_asgi()),  # type: ignore[arg-type] # typed for views alone
    re_path(r"", UnknownPathConsumer.as_asgi()),  # type: ignore[arg-type]
]
