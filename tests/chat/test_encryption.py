"""Secrets at rest: encrypted with the first key, read with all, rotated by a command."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from chat.models import Provider
from chatproject.lib import encryption

pytestmark = pytest.mark.django_db(transaction=True)

OLD, NEW = "an-old-key-of-at-least-32-characters", "a-new-key-of-at-least-32-characters!"
SECRET = "sk-live-0123456789abcd"


@pytest.fixture
def provider(settings) -> Provider:
    settings.ENCRYPTION_KEYS = [OLD]
    provider = Provider(name="First", base_url="https://api.example.com/v1")
    provider.key, provider.headers, provider.proxy = SECRET, {"X-A": "b"}, "http://proxy:1"
    provider.save()
    return provider


def rotate() -> str:
    output = StringIO()
    call_command("rotate_keys", stdout=output)
    return output.getvalue()


def read() -> tuple[str, dict[str, str], str]:
    row = Provider.objects.get(name="First")
    return row.key, row.headers, row.proxy


def test_rotation_lets_the_old_key_go(provider, settings):
    before = Provider.objects.values_list(*Provider.ENCRYPTED).get()
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    whole = (SECRET, {"X-A": "b"}, "http://proxy:1")
    assert read() == whole
    assert "3 secrets" in rotate()
    after = Provider.objects.values_list(*Provider.ENCRYPTED).get()
    assert not {*before} & {*after}
    settings.ENCRYPTION_KEYS = [NEW]
    assert read() == whole
    settings.ENCRYPTION_KEYS = [OLD]
    with pytest.raises(encryption.Undecryptable):
        read()


def test_rotation_names_what_it_cannot_decrypt(provider, settings):
    settings.ENCRYPTION_KEYS = [NEW]
    second = Provider(name="Second", base_url="https://other.example.com/v1")
    second.key = "sk-second"
    second.save()
    with pytest.raises(CommandError, match="provider First cannot be decrypted"):
        rotate()
    assert Provider.objects.get(name="Second").key == "sk-second"
    settings.ENCRYPTION_KEYS = [OLD]
    assert read()[0] == SECRET  # untouched


def test_secret_key_encrypts_without_keys_of_its_own(settings):
    settings.ENCRYPTION_KEYS, settings.SECRET_KEY = [], "the first secret of this installation"
    token = encryption.encrypt(SECRET)
    assert SECRET not in token
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "the second secret of this installation"
    assert encryption.decrypt(token) == SECRET
    # Introducing keys keeps what SECRET_KEY encrypted, until it is rotated.
    settings.ENCRYPTION_KEYS = [NEW]
    rotated = encryption.rotate(token)
    settings.SECRET_KEY_FALLBACKS, settings.SECRET_KEY = [], "the third secret of this installation"
    assert encryption.decrypt(rotated) == SECRET
    with pytest.raises(encryption.Undecryptable):
        encryption.decrypt(token)


@pytest.mark.parametrize("damaged", ["x", "gAAAAA", "ünicode", SECRET])
def test_damaged_token_is_undecryptable(damaged):
    with pytest.raises(encryption.Undecryptable):
        encryption.decrypt(damaged)


def test_only_long_secrets_show_their_end():
    shown = [encryption.shown(secret) for secret in ("", "short", SECRET)]
    assert shown == ["not set", "set", "set, ends in …abcd"]
