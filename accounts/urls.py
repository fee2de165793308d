"""allauth's pages, some of them ours."""

from __future__ import annotations

from django.urls import include, path, re_path

from accounts import language, views

urlpatterns = [
    path("email/", views.EmailView.as_view(), name="account_email"),
    re_path(
        r"^confirm-email/(?P<key>[-:\w]+)/$",
        views.ConfirmEmailView.as_view(),
        name="account_confirm_email",
    ),
    path("language/", language.visitor_language, name="visitor_language"),
    path("password/set/", views.SetPasswordView.as_view(), name="account_set_password"),
    path("", include("allauth.account.urls")),
]
