from __future__ import annotations

from django.urls import path

from chat import views

app_name = "chat"

urlpatterns = [
    path("", views.new, name="new"),
    path("c/new/", views.create, name="create"),
    path("c/estimate/", views.estimate, name="estimate"),
    path("c/<uuid:conversation_id>/", views.conversation, name="conversation"),
    path("c/<uuid:conversation_id>/send/", views.send, name="send"),
    path("c/<uuid:conversation_id>/rename/", views.rename, name="rename"),
    path("c/<uuid:conversation_id>/delete/", views.delete, name="delete"),
    path("c/<uuid:conversation_id>/active-run/", views.active_run, name="active_run"),
    path("chats/", views.chats, name="list"),
    path("runs/<uuid:run_id>/", views.run, name="run"),
    path("runs/<uuid:run_id>/stop/", views.stop, name="stop"),
    path("messages/<uuid:message_id>/regenerate/", views.regenerate, name="regenerate"),
    path("messages/<uuid:message_id>/edit/", views.edit, name="edit"),
]
