"""An account with an unconfirmed address, whose owner has now proven to have the address.

Another person may have made the account with it, to read the owner's chats later.
"""

from __future__ import annotations

from allauth.socialaccount.models import SocialAccount

from accounts import api_keys
from accounts.models import User
from accounts.privacy import leaving
from accounts.signals import account_claimed


def end_access_of_maker(user: User) -> None:
    """End all access to an account that outlives its password, its addresses and its sessions.

    API keys, connected accounts and webhooks end, and, as with a deletion, shares, links, devices and automatic
    purchases.
    """
    for key in api_keys.usable(user):
        api_keys.revoke(key, by=user)
    SocialAccount.objects.filter(user=user).delete()
    account_claimed.send(sender=User, user=user)
    leaving.close(user)
