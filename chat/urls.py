from __future__ import annotations

from django.urls import path

from chat.web.views import (
    attachments,
    chats,
    conversations,
    messages,
    models,
    runs,
    search,
    settings,
    styleguide,
    transfer,
)

app_name = "chat"

urlpatterns = [
    path("", conversations.new, name="new"),
    path("c/new/", conversations.create, name="create"),
    path("c/estimate/", messages.estimate, name="estimate"),
    path("c/<uuid:conversation_id>/", conversations.conversation, name="conversation"),
    path("c/<uuid:conversation_id>/send/", messages.send, name="send"),
    path("c/<uuid:conversation_id>/actions/", messages.actions, name="actions"),
    path("c/<uuid:conversation_id>/compare/", messages.compare, name="compare"),
    path("c/<uuid:conversation_id>/rename/", conversations.rename, name="rename"),
    path("c/<uuid:conversation_id>/delete/", conversations.delete, name="delete"),
    path("c/<uuid:conversation_id>/active-run/", conversations.active_run, name="active_run"),
    path("c/<uuid:conversation_id>/export/", transfer.export, name="export"),
    path("c/<uuid:conversation_id>/print/", transfer.print_page, name="print"),
    path("attachments/", attachments.upload, name="attach"),
    path("attachments/<uuid:attachment_id>/", attachments.attachment, name="attachment"),
    path("attachments/<uuid:attachment_id>/thumbnail/", attachments.thumbnail, name="thumbnail"),
    path("attachments/<uuid:attachment_id>/remove/", attachments.remove, name="remove_attachment"),
    path("models/", models.models, name="models"),
    path("models/prefer/", models.prefer, name="prefer_model"),
    path("chats/", chats.chats, name="list"),
    path("chats/archive/", chats.archive, name="archive"),
    path("chats/import/", transfer.import_chats, name="import"),
    path("chats/import/<uuid:import_id>/stop/", transfer.import_stop, name="import_stop"),
    path("chats/export/", transfer.export_all, name="export_all"),
    path("chats/export/<uuid:export_id>/file/", transfer.export_file, name="export_file"),
    path("chats/export/<uuid:export_id>/stop/", transfer.export_stop, name="export_stop"),
    path("chats/sidebar/", chats.sidebar, name="sidebar"),
    path("chats/change/", chats.change, name="change"),
    path("search/", search.search_page, name="search"),
    path("search/results/", search.results, name="search_results"),
    path("chats/undo/", chats.undo, name="undo"),
    path("settings/", settings.settings, name="settings"),
    path("styleguide/", styleguide.styleguide, name="styleguide"),
    path("runs/<uuid:run_id>/", runs.run, name="run"),
    path("runs/<uuid:run_id>/stop/", runs.stop, name="stop"),
    path("messages/<uuid:message_id>/regenerate/", messages.regenerate, name="regenerate"),
    path("messages/<uuid:message_id>/edit/", messages.edit, name="edit"),
]
