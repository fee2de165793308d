"""What leaves is compressed, where that helps."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.http import HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.test import Client, RequestFactory

from chat.models import Message
from chatproject.lib.staticfiles import StaticFilesMiddleware
from chatproject.ops.compression import CompressionMiddleware
from tests.support.conversations import begin
from tests.support.fake_llm import reply_text

GZIP = {"accept-encoding": "gzip, deflate, br"}


@pytest.mark.django_db(transaction=True)
def test_page_of_hundred_messages_leaves_compressed(client: Client, owner, assistant):
    conversation, parent = begin(owner, assistant), None
    for number in range(100):
        text = reply_text(150, str(number))
        parent = Message.objects.create(
            conversation=conversation,
            parent=parent,
            role=(Message.Role.USER, Message.Role.ASSISTANT)[number % 2],
            text=text,
            html=f"<p>{text}</p>",
        )
    conversation.leaf = parent
    conversation.save()
    client.force_login(owner)
    path = f"/c/{conversation.pk}/"
    page, plain = client.get(path, headers=GZIP), client.get(path)
    assert page["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in page["Vary"]
    assert "Accept-Encoding" in plain["Vary"]
    assert int(page["Content-Length"]) == len(page.content) < len(plain.content) / 3
    # Different in each response: the CSRF token and the next message's id.
    token = re.compile(rb'value="([0-9A-Za-z]{64}|[-0-9a-f]{36})"')
    assert token.sub(b"", gzip.decompress(page.content)) == token.sub(b"", plain.content)


def answer(response: HttpResponseBase, **headers: str) -> HttpResponseBase:
    """The response as the middleware leaves it, to a request with these headers."""
    request = RequestFactory().get("/", headers=headers or GZIP)
    return CompressionMiddleware(lambda _: response)(request)


def test_json_leaves_compressed_by_its_size():
    long = answer(JsonResponse({"text": "word " * 1_000}))
    assert long["Content-Encoding"] == "gzip"
    assert not answer(JsonResponse({"text": "word"})).has_header("Content-Encoding")


def test_length_of_a_page_is_blurred():
    lengths = {len(answer(HttpResponse("word " * 1_000)).content) for _ in range(50)}  # type: ignore[attr-defined]
    assert len(lengths) > 10


@pytest.mark.parametrize(
    "response",
    [
        HttpResponse(b"%PDF" * 1_000, content_type="application/pdf"),
        HttpResponse(b"\x89PNG" * 1_000, content_type="image/png"),
        HttpResponse("word " * 1_000, headers={"Content-Encoding": "br"}),
        StreamingHttpResponse(iter(["a,b\n"] * 1_000), content_type="text/csv"),
        StreamingHttpResponse(iter(["<p>"] * 1_000)),
    ],
    ids=["PDF", "image", "compressed", "CSV", "stream"],
)
def test_other_responses_leave_unchanged(response: HttpResponseBase):
    before = dict(response.items())
    assert dict(answer(response).items()) == before


REFUSALS = ["identity", "", "*;q=0", "gzip;q=0", "br, GZIP ; Q = 0.000", "gzip;q=0;x=1", "gzip-8"]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_client_without_gzip_gets_plain_text(refusal: str):
    page = answer(HttpResponse("word " * 1_000), **{"accept-encoding": refusal})
    assert not page.has_header("Content-Encoding")
    assert "Accept-Encoding" in page["Vary"]


@pytest.mark.parametrize("accepted", ["GZIP", "br, gzip;q=0.001", "*;q=0, gzip;q=1", "x-gzip"])
def test_client_with_gzip_gets_it(accepted: str):
    page = answer(HttpResponse("word " * 1_000), **{"accept-encoding": accepted})
    assert page["Content-Encoding"] == "gzip"


def test_static_files_are_compressed_and_immutable(settings, tmp_path: Path):
    settings.STATIC_ROOT = tmp_path
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "chatproject.lib.staticfiles.ManifestStorage"},
    }
    call_command("collectstatic", interactive=False, verbosity=0)
    [script] = tmp_path.glob("js/app.*.js")
    assert script.with_suffix(".js.gz").is_file()
    kinds = [CompressionMiddleware, StaticFilesMiddleware]
    places = [settings.MIDDLEWARE.index(f"{kind.__module__}.{kind.__name__}") for kind in kinds]
    assert places == sorted(places)
    serve: Any = CompressionMiddleware(StaticFilesMiddleware(lambda _: HttpResponse(status=404)))
    for refusal in REFUSALS:
        headers = {"accept-encoding": refusal}
        plain = serve(RequestFactory().get(f"/static/js/{script.name}", headers=headers))
        assert not plain.has_header("Content-Encoding")
        plain.close()
    response = serve(RequestFactory().get(f"/static/js/{script.name}", headers=GZIP))
    assert response["Content-Encoding"] == "gzip"
    assert "immutable" in response["Cache-Control"]
    body = b"".join(response.streaming_content)
    response.close()
    assert gzip.decompress(body) == script.read_bytes()
    etag = response["ETag"]
    for sent, status in {
        etag: 304,
        f"W/{etag}": 304,
        f'"other", W/{etag}': 304,
        "*": 304,
        'W/"other"': 200,
        etag.strip('"'): 200,
        "W/": 200,
    }.items():
        headers = {**GZIP, "if-none-match": sent}
        again = serve(RequestFactory().get(f"/static/js/{script.name}", headers=headers))
        again.close()
        assert again.status_code == status, sent
