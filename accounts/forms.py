"""allauth's and Django's forms: in the words of this site, and announced by mail."""

from __future__ import annotations

from typing import Any

from allauth.account import forms
from allauth.account.adapter import get_adapter
from allauth.account.models import EmailAddress
from allauth.core import context
from django.conf import settings
from django.contrib.auth.forms import AdminPasswordChangeForm
from django.core.exceptions import ValidationError
from django.db import transaction
from django.forms import BooleanField, CharField, ChoiceField, Form, HiddenInput, TextInput
from django.http import HttpRequest
from django.utils.translation import gettext_lazy

from accounts import consent, invitations, joining
from accounts.models import TextSize, Theme, User
from chatproject.lib import languages

LABELS = {
    "Email": gettext_lazy("E-mail address"),
    "Login": gettext_lazy("E-mail address"),
    "Current Password": gettext_lazy("Current password"),
    "New Password": gettext_lazy("New password"),
    "New Password (again)": gettext_lazy("New password (again)"),
}
CHANGED_DOCUMENTS = gettext_lazy("The documents have changed meanwhile. Read them and agree again.")
INVALID_ADDRESS = gettext_lazy("Enter a valid e-mail address.")


def _reword(form: Form) -> None:
    for field in form.fields.values():
        with languages.use(settings.LANGUAGE_CODE):
            source = str(field.label)
        field.label = LABELS.get(source, field.label)
        field.widget.attrs.pop("placeholder", None)  # it repeats the label
        if field.widget.input_type == "email":
            field.error_messages["invalid"] = INVALID_ADDRESS


class LoginForm(forms.LoginForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _reword(self)


class SignupForm(forms.SignupForm):
    """Asks for consent to the documents that need it, if there are any; shows and checks an invitation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _reword(self)
        self.invitation = joining.invitation_of(context.request)
        self.may_decline = settings.SIGNUP != "invitation"
        if self.invitation is not None and self.invitation.email:
            self.fields["email"].initial = self.invitation.email
        self.documents = consent.required()
        if self.documents:
            self.fields["agrees"] = BooleanField(
                label=consent.question(self.documents),
                error_messages={"required": gettext_lazy("Agree to create an account.")},
            )
            self.fields["documents"] = CharField(
                required=False, widget=HiddenInput(), initial=consent.key_of(self.documents)
            )

    def clean_email(self) -> str:
        email: str = super().clean_email()
        if self.invitation is not None and not invitations.is_for(self.invitation, email):
            raise ValidationError(
                gettext_lazy(
                    "Your invitation is for %(email)s. Enter this address, or ask for another invitation."
                ),
                params={"email": f"\u2068{self.invitation.email}\u2069"},
            )
        return email

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean()
        key = consent.key_of(self.documents)
        if self.documents and cleaned.get("documents") != key:
            data = self.data.copy()  # type: ignore[has-type] # of allauth, without types
            data["documents"] = key
            data.pop("agrees", None)
            self.data = data
            self.add_error(None, CHANGED_DOCUMENTS)
        return cleaned

    def save(self, request: HttpRequest) -> User:
        with transaction.atomic():
            user = super().save(request)
            assert isinstance(user, User)
            consent.record(user, self.documents)
            joining.finish(request, user)
        return user


class AddEmailForm(forms.AddEmailForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _reword(self)


class ChangePasswordForm(forms.ChangePasswordForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _reword(self)


class ResetPasswordForm(forms.ResetPasswordForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _reword(self)

    def clean_email(self) -> str:
        """Find the account, also by an additional address, if that and the primary one are confirmed.

        An additional address may be of another person, by a mistake or, in an account that was made
        with the primary address of a victim, by intention.
        """
        email: str = super().clean_email()
        self.users = [user for user in self.users if _may_reset(user, email)]
        return email


def _may_reset(user: User, email: str) -> bool:
    confirmed = EmailAddress.objects.filter(user=user, verified=True)
    is_primary = user.email.lower() == email.lower()
    return is_primary or (
        confirmed.filter(email__iexact=email).exists()
        and confirmed.filter(email__iexact=user.email).exists()
    )


class ResetPasswordKeyForm(forms.ResetPasswordKeyForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _reword(self)


class AdminPasswordForm(AdminPasswordChangeForm):  # type: ignore[type-arg] # not generic at run time
    """The admin's form for the password of another user, to whom the change is announced."""

    def save(self, commit: bool = True) -> User:
        user = super().save(commit)
        assert isinstance(user, User)
        get_adapter().send_notification_mail("account/email/password_changed", user)
        return user


class ProfileForm(Form):
    """The name of a user, by which other people see it."""

    display_name = CharField(
        required=False,
        max_length=60,
        label=gettext_lazy("Display name"),
        help_text=gettext_lazy(
            "Shown beside your address to people with whom you share chats. May be empty."
        ),
        widget=TextInput(attrs={"autocomplete": "name"}),
    )


class AppearanceForm(Form):
    """The theme and the text size of the pages; the template draws the choices."""

    theme = ChoiceField(choices=Theme)
    text_size = ChoiceField(choices=TextSize)
