"""The personal data of accounts and of the libraries that it uses: sign-in, mail, the admin's log."""

from __future__ import annotations

from accounts.privacy import erase
from chatproject.lib import personal_data
from chatproject.lib.personal_data import PersonalTable


def register() -> None:
    """Register tables, steps of the purge and keys in Redis."""
    personal_data.add_tables(
        PersonalTable(
            model="accounts.User",
            user="pk",
            document="profile",
            omitted=("password", "rehashed"),
            kept="A tombstone without address, name and settings, to which ledger and usage belong.",
        ),
        PersonalTable(
            model="accounts.AccountDeletion",
            document="deletion",
            kept="When the account was purged; it has no data of the user.",
        ),
        PersonalTable(
            model="accounts.SignupGrant",
            document="sign-up-credits",
            omitted=("address_hash",),
            kept="A keyed hash of the address, so that it gives sign-up credits once.",
        ),
        PersonalTable(
            model="accounts.Invitation",
            user="used_by__user",
            document="invitations",
            omitted=("hash", "note"),
            kept="A link of staff; the address is removed.",
        ),
        PersonalTable(model="accounts.InvitationUse", document="use-of-invitations"),
        PersonalTable(model="accounts.Consent", document="consents"),
        PersonalTable(model="accounts.ApiKey", document="api-keys", omitted=("hash",)),
        PersonalTable(
            model="account.EmailConfirmation",
            user="email_address__user",
            reason="Keys of links in mails, which confirm an address.",
        ),
        PersonalTable(model="account.EmailAddress", document="addresses"),
        PersonalTable(model="mfa.Authenticator", document="second-factors", omitted=("data",)),
        PersonalTable(model="socialaccount.SocialAccount", document="connected-accounts"),
        PersonalTable(
            model="socialaccount.SocialToken",
            user="account__user",
            reason="Tokens of identity providers are not stored.",
        ),
        PersonalTable(
            model="usersessions.UserSession",
            document="signed-in-devices",
            omitted=("session_key", "data"),
        ),
        PersonalTable(model="accounts.User_groups", document="groups"),
        PersonalTable(model="accounts.User_user_permissions", document="permissions"),
        PersonalTable(
            model="sessions.Session",
            user="",
            reason="Found by their content: sessions.json has their ends.",
            erased_by="sessions",
        ),
        PersonalTable(
            model="mail.OutgoingMail",
            user="",
            reason="Mails were sent to the user; the text is deleted once they are.",
            erased_by="mails",
        ),
        PersonalTable(
            model="admin.LogEntry",
            reason="The record of staff's actions.",
            kept="What staff did and when, without the names of the user's objects.",
        ),
    )
    personal_data.declare_impersonal(
        {
            "leadership.Leadership": "Names of processes.",
            "stored_limits.LimitUse": "Digests of ids and addresses, deleted after the longest period of a limit.",
            "accounts.LegalDocument": "Texts of staff.",
            "auth.Permission": "Rights of the software.",
            "auth.Group": "Names of groups, by staff.",
            "auth.Group_permissions": "Rights of groups.",
            "contenttypes.ContentType": "Names of tables.",
            "django_rq.Dashboard": "Has no rows.",
            "socialaccount.SocialApp": "Has no rows: identity providers are in the settings.",
        }
    )
    personal_data.add_step(10, "admin log", erase.erase_admin_log)
    personal_data.add_step(50, "invitations", erase.erase_invitations)
    personal_data.add_step(60, "tables", erase.erase_tables)
    personal_data.add_step(70, "sessions", erase.erase_sessions)
    personal_data.add_step(80, "mails", erase.erase_mails)
    personal_data.add_documents(erase.session_documents)
    personal_data.add_keys(
        {
            "cache:": "Values of the site, none of a user.",
            "health:": "A value of the site.",
            "limit:": "Digests of ids and addresses, which expire with the longest period of a limit.",
            "loops": "Figures of processes.",
            "loop:": "Figures of processes.",
            "alert:": "Names of alerts.",
            "metrics:": "Totals.",
            "parley:": "Channels: nothing is stored.",
        }
    )
