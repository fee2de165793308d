"""Admin of promo codes and their redemptions."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.http import QueryDict
from django.utils.translation import gettext as _

from billing import credits
from billing.admin.base import AuditedAdmin, RecordAdmin, amount
from billing.credits import CreditsFormField
from billing.ledger import staff_actions
from billing.models import PromoCode, PromoRedemption


class CodeForm(forms.ModelForm):  # type: ignore[type-arg] # not generic at run time
    """A promo code, stored in capital letters however it is typed.

    A code that can give out many credits in all is saved once its form was sent twice: the second time
    `confirmed` has the total in micro-credits.
    """

    confirmed = forms.IntegerField(required=False, widget=forms.HiddenInput())

    class Meta:
        model = PromoCode
        fields = "__all__"  # noqa: DJ007 # staff's own form

    def clean_code(self) -> str:
        return str(self.cleaned_data["code"]).strip().upper()

    def clean_max_redemptions(self) -> int:
        limit: int = self.cleaned_data["max_redemptions"]
        if limit < self.instance.redeemed:
            raise forms.ValidationError(
                _("It has been used %(redeemed)s times already: make it inactive instead.")
                % {"redeemed": self.instance.redeemed}
            )
        return limit

    def clean(self) -> dict[str, Any] | None:
        begins, ends = self.cleaned_data.get("valid_from"), self.cleaned_data.get("valid_to")
        if begins and ends and ends <= begins:
            self.add_error("valid_to", _("The end is not after the beginning."))
        if not self.errors:
            self._ask_for_confirmation()
        return super().clean()

    def _ask_for_confirmation(self) -> None:
        total = self.cleaned_data["credits"] * self.cleaned_data["max_redemptions"]
        is_larger = self.instance._state.adding or total > (
            self.initial["credits"] * self.initial["max_redemptions"]
        )
        is_confirmed = self.cleaned_data["confirmed"] == total
        if not is_larger or is_confirmed or not staff_actions.must_confirm(total):
            return
        data = QueryDict(mutable=True)  # that of the request cannot be changed
        data.update(self.data)
        data[self.add_prefix("confirmed")] = str(total)
        self.data = data
        raise forms.ValidationError(
            _("This code can give out %(total)s credits in all. Save once more to confirm.")
            % {"total": credits.show(total)}
        )


@admin.register(PromoCode)
class PromoCodeAdmin(AuditedAdmin):
    form = CodeForm
    list_display = [
        "code",
        amount("credits"),
        "redeemed",
        "max_redemptions",
        "valid_from",
        "valid_to",
        "active",
        "note",
    ]
    list_filter = ["active"]
    search_fields = ["code", "note"]
    readonly_fields = ["redeemed"]
    form_fields = {"credits": CreditsFormField}
    # Redemptions continue while a form is open.
    counted_elsewhere = ("redeemed",)


@admin.register(PromoRedemption)
class PromoRedemptionAdmin(RecordAdmin):
    list_display = ["created_at", "code", "user", "number", "entry"]
    list_select_related = ["code", "user", "entry"]
    search_fields = ["user__email", "code__code"]
