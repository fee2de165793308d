"""allauth's pages, some of them ours."""

from __future__ import annotations

from django.urls import include, path, re_path

from accounts import api_key_pages, joining, language, leaving_pages, profile, views

urlpatterns = [
    path("email/", views.EmailView.as_view(), name="account_email"),
    re_path(
        r"^confirm-email/(?P<key>[-:\w]+)/$",
        views.ConfirmEmailView.as_view(),
        name="account_confirm_email",
    ),
    path("keys/", api_key_pages.keys, name="api_keys"),
    path("keys/<int:key_id>/revoke/", api_key_pages.revoke, name="revoke_api_key"),
    path("profile/", profile.profile, name="profile"),
    path("delete/", leaving_pages.delete, name="account_delete"),
    path("restore/", leaving_pages.restore, name="account_restore"),
    path("invitation/<str:token>/", joining.invitation, name="account_invitation"),
    path("waiting/", joining.waiting, name="account_waiting"),
    path("language/", language.visitor_language, name="visitor_language"),
    path("password/set/", views.SetPasswordView.as_view(), name="account_set_password"),
    path("", include("allauth.account.urls")),
]
