"""Encryption by the values of RFC 8291, addresses that are refused, and the answers of push services."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from chat.push import client, endpoints, vapid
from chat.push.client import Result, Subscription
from chat.push.encryption import CURVE, InvalidKeys, browser_keys, decode, encode, encrypt
from tests.support.push_service import PushService, claims_of, push_service

# RFC 8291, section 5 and appendix A.
PLAIN = b"When I grow up, I want to be a watermelon"
BROWSER = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
AUTH = "BTBZMqHH6r4Tts7J_aSIgg"
SERVER = "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"
SALT = "DGv6ra1nlYgDCS1FRnbzlw"
ENCRYPTED = (
    "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27ml"
    "mlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPT"
    "pK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
)


@pytest.fixture
def service(settings, monkeypatch):
    monkeypatch.setattr(client, "PAUSES", (0.0, 0.0))
    with push_service() as service:
        settings.PUSH_HOSTS = [service.address]
        yield service


def send(service: PushService, **changes: str) -> Result:
    subscription = Subscription(**service.subscription, server_key=vapid.current().public)
    return asyncio.run(
        client.send(
            replace(subscription, **changes),
            b"{}",
            topic="a-chat",
            contact="mailto:staff@example.org",
        )
    )


def test_encryption_equals_that_of_the_rfc():
    key = ec.derive_private_key(int.from_bytes(decode(SERVER), "big"), CURVE)
    assert (
        encode(encrypt(PLAIN, p256dh=BROWSER, auth=AUTH, salt=decode(SALT), key=key)) == ENCRYPTED
    )


@pytest.mark.parametrize(
    ("p256dh", "auth"),
    [("", AUTH), (BROWSER, ""), (BROWSER, "short"), (BROWSER[:-4], AUTH), ("é" * 87, AUTH),
     (BROWSER[:-4] + "AAAA", AUTH), ("A" * 87, AUTH), (BROWSER, AUTH + "AAAA")],
)  # fmt: skip
def test_keys_that_are_none_are_refused(p256dh, auth):
    with pytest.raises(InvalidKeys):
        browser_keys(p256dh, auth)


@pytest.mark.parametrize(
    "endpoint",
    ["", "x", "http://push.example.org/1", "https://127.0.0.1/1", "https://[::1]/1", "https://localhost/1",
     "https://10.0.0.1/", "https://2130706433/", "https://0x7f.1/", "https://push.example.org:8443/1",
     "https://user@push.example.org/1", "https://push.example.org:99999/", "file:///etc/passwd",
     "https://push.example.org/ 1", "https://push.example.org/\n", "https://[fe80::1", "https://intranet/1",
     "https://push.example.org/" + "x" * 1_000, "https://püsh.example.org/"],
)  # fmt: skip
def test_endpoint_of_no_public_service_is_refused(endpoint):
    with pytest.raises(endpoints.Refused):
        endpoints.check(endpoint)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "0.0.0.1", "::1", "fd00::1", "::ffff:10.0.0.1",
     "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "::7f00:1", "fec0::1"],
)  # fmt: skip
def test_name_with_private_address_is_not_contacted(service, monkeypatch, address):
    def resolve(host, port, *_args, **_options):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        rest = (0, 0) if ":" in address else ()
        return [(family, socket.SOCK_STREAM, 6, "", (address, port, *rest))]

    endpoints.check("https://push.example.org/1")
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert send(service, endpoint="https://push.example.org/1") is Result.FAILED
    assert service.requests == []


@pytest.mark.parametrize(
    ("statuses", "result", "count"),
    [([201], Result.SENT, 1), ([503, 429, 201], Result.SENT, 3), ([500] * 9, Result.FAILED, 3),
     ([403], Result.FAILED, 1), ([307], Result.FAILED, 1), ([404], Result.ENDED, 1), ([410], Result.ENDED, 1)],
)  # fmt: skip
def test_answer_of_the_service_decides(service, statuses, result, count):
    service.statuses = list(statuses)
    assert send(service) is result
    assert len(service.requests) == count


def test_request_is_signed_for_its_service(service, settings):
    assert send(service) is Result.SENT
    [(headers, body)] = service.requests
    claims = claims_of(headers["Authorization"])
    assert claims["aud"] == f"http://{service.address}"
    assert claims["sub"] == "mailto:staff@example.org"
    assert time.time() < claims["exp"] <= time.time() + 24 * 60 * 60
    assert (headers["Content-Encoding"], headers["Topic"]) == ("aes128gcm", "a-chat")
    assert service.decrypt(body) == b"{}"
    # The key of a subscription is found while its secret is among the fallbacks, and not afterwards.
    old, settings.SECRET_KEY_FALLBACKS = vapid.current().public, [settings.SECRET_KEY]
    settings.SECRET_KEY = "another-secret-of-this-site"
    assert vapid.current().public != old
    assert send(service, server_key=old) is Result.SENT
    settings.SECRET_KEY_FALLBACKS = []
    assert send(service, server_key=old) is Result.ENDED
