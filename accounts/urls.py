"""allauth's pages, some of them ours."""

from __future__ import annotations

from allauth.mfa.base import views as base
from allauth.mfa.recovery_codes import views as recovery_codes
from django.urls import include, path, re_path

from accounts import (
    api_key_pages,
    joining,
    language,
    leaving_pages,
    plan_page,
    profile,
    session_pages,
    views,
)
from accounts.mfa import pages as mfa
from accounts.sso import pages as sso
from accounts.sso import recovery

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
    path("plan/", plan_page.plan, name="plan"),
    path("delete/", leaving_pages.delete, name="account_delete"),
    path("restore/", leaving_pages.restore, name="account_restore"),
    path("invitation/decline/", joining.decline, name="account_decline_invitation"),
    path("invitation/<str:token>/", joining.invitation, name="account_invitation"),
    path("waiting/", joining.waiting, name="account_waiting"),
    path("language/", language.visitor_language, name="visitor_language"),
    path("password/set/", views.SetPasswordView.as_view(), name="account_set_password"),
    path("connections/", sso.connected, name="socialaccount_connections"),
    path("connections/confirm/", sso.confirm, name="socialaccount_confirm"),
    path("login/with/<slug:key>/", sso.begin, name="socialaccount_begin"),
    path("login/with/<slug:key>/callback/", sso.callback, name="socialaccount_callback"),
    path("login/link/<str:token>/", recovery.sign_in, name="account_sign_in_link"),
    path("signup/taken/", sso.taken, name="socialaccount_signup"),
    path("sessions/", session_pages.session_list, name="usersessions_list"),
    path("security/", mfa.security, name="mfa_index"),
    path("security/app/", mfa.ActivateView.as_view(), name="mfa_activate_totp"),
    path("security/passkey/", mfa.AddPasskeyView.as_view(), name="mfa_add_webauthn"),
    path("security/<int:factor_id>/remove/", mfa.remove, name="remove_factor"),
    path("security/codes/", mfa.RecoveryCodesView.as_view(), name="mfa_view_recovery_codes"),
    path(
        "security/codes/new/",
        recovery_codes.generate_recovery_codes,
        name="mfa_generate_recovery_codes",
    ),
    path("security/confirm/", base.reauthenticate, name="mfa_reauthenticate"),
    path(
        "security/confirm/passkey/",
        mfa.ConfirmPasskeyView.as_view(),
        name="mfa_reauthenticate_webauthn",
    ),
    path("login/code/", mfa.AuthenticateView.as_view(), name="mfa_authenticate"),
    path("login/passkey/", mfa.PasskeySignInView.as_view(), name="mfa_login_webauthn"),
    path("", include("allauth.account.urls")),
]
