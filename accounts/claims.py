"""An account with an unconfirmed address, whose owner has now proven to have the address.

Another person may have made the account with it, to read the owner's chats later.
"""

from __future__ import annotations

from allauth.socialaccount.models import SocialAccount

from accounts import api_keys
from accounts.models import User
from accounts.privacy import leaving


def end_access_of_maker(user: User) -> None:
    """End all access to an account that outlives its password, its addresses and its sessions.

    API keys and connected accounts, and what a deletion ends at once: shares, links, devices, automatic purchases.
    """
    for key in api_keys.usable(user):
        api_keys.revoke(key, by=user)
    SocialAccount.objects.filter(user=user).delete()
    leaving.close(user)
