"""The names of Daphne, Twisted, autobahn and Django that the web server overrides or uses.

Most are no part of a public interface: requirements.in pins their packages, and an upgrade that moves
one fails here and not in production.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import daphne.server
import pytest
from daphne.http_protocol import HTTPFactory, WebRequest
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from django.core.handlers.asgi import ASGIHandler
from twisted.internet import tcp
from twisted.protocols.basic import LineReceiver
from twisted.web import http

SIGNATURES: list[tuple[Any, str, str]] = [
    (daphne.server.Server, "create_application", "self protocol scope"),
    (daphne.server.Server, "handle_reply", "self protocol message"),
    (daphne.server.Server, "application_checker", "self"),
    (daphne.server.Server, "timeout_checker", "self"),
    (HTTPFactory, "__init__", "self server"),
    (HTTPFactory, "buildProtocol", "self addr"),
    (HTTPFactory, "log", "self request"),
    (http.Request, "__init__", "self channel queued parsePOSTFormSubmission"),
    (WebRequest, "handleContentChunk", "self data"),
    (WebRequest, "process", "self"),
    (WebRequest, "handle_exception", "self exception"),
    (http.HTTPChannel, "connectionMade", "self"),
    (http.HTTPChannel, "connectionLost", "self reason"),
    (http.HTTPChannel, "dataReceived", "self data"),
    (http.HTTPChannel, "rawDataReceived", "self data"),
    (http.HTTPChannel, "lineLengthExceeded", "self line"),
    (http.HTTPChannel, "_respondToBadRequestAndDisconnect", "self"),
    (http.HTTPChannel, "allHeadersReceived", "self"),
    (http.HTTPChannel, "allContentReceived", "self"),
    (http.HTTPChannel, "checkPersistence", "self request version"),
    (http.HTTPChannel, "clearLineBuffer", "self"),
    (http.HTTPChannel, "setTimeout", "self period"),
    (http.HTTPChannel, "loseConnection", "self"),
    (http.HTTPChannel, "registerProducer", "self producer streaming"),
    (LineReceiver, "dataReceived", "self data"),
    (WebSocketFactory, "__init__", "self server_class args kwargs"),
    (WebSocketProtocol, "onConnect", "self request"),
    (WebSocketProtocol, "onPing", "self payload"),
    (WebSocketProtocol, "onClose", "self wasClean code reason"),
    (WebSocketProtocol, "onMessageFrameBegin", "self length"),
    (WebSocketProtocol, "_max_message_size_exceeded", "self msg_size max_msg_size reason"),
    (WebSocketProtocol, "failHandshake", "self reason code responseHeaders"),
    (WebSocketProtocol, "handle_exception", "self exception"),
    (WebSocketProtocol, "sendCloseFrame", "self code reasonUtf8 isReply"),
    (WebSocketProtocol, "sendData", "self data sync chopsize"),
    (WebSocketProtocol, "serverClose", "self code"),
    (WebSocketProtocol, "serverSend", "self content binary"),
    (tcp.Port, "_fromListeningDescriptor", "reactor fd addressFamily factory"),
    (tcp.Port, "startListening", "self"),
    (tcp.Server, "writeSomeData", "self data"),
    (ASGIHandler, "load_middleware", "self is_async"),
    (ASGIHandler, "get_response_async", "self request"),
    (ASGIHandler, "get_response", "self request"),
]
KEYWORDS: list[tuple[Any, str, str]] = [
    (daphne.server.Server, "__init__", "endpoints ping_interval websocket_timeout server_name"),
    (WebSocketProtocol, "sendFrame", "opcode payload"),
    (
        WebSocketFactory,
        "setProtocolOptions",
        "allowNullOrigin autoPingTimeout closeHandshakeTimeout failByDrop maxFramePayloadSize"
        " maxMessagePayloadSize openHandshakeTimeout",
    ),
]
ATTRIBUTES: list[tuple[Any, str]] = [
    (daphne.server.Server, "application connections http_factory ws_factory"),
    (daphne.server.Server, "websocket_connect_timeout"),
    (HTTPFactory, "protocol server timeOut"),
    (
        WebRequest,
        "_response_started requestHeaders responseHeaders server startedWriting transport",
    ),
    (http.HTTPChannel, "MAX_LENGTH maxHeaders totalHeadersSize"),
    (http.HTTPChannel, "_handlingRequest length persistent requestFactory requests"),
    (
        WebSocketProtocol,
        "CLOSE_STATUS_CODE_INTERNAL_ERROR CONFIG_ATTRS STATE_CONNECTING STATE_OPEN",
    ),
    (WebSocketProtocol, "failedByMe last_ping message_data server state"),
    (WebSocketFactory, "protocol server_class"),
    (tcp.Port, "numberAccepts"),
    (tcp.Server, "_tempDataLen connected dataBuffer"),
]


@pytest.mark.parametrize(("owner", "name", "parameters"), SIGNATURES)
def test_method_has_the_signature_relied_on(owner: Any, name: str, parameters: str):
    assert " ".join(inspect.signature(getattr(owner, name)).parameters) == parameters


@pytest.mark.parametrize(("owner", "name", "keywords"), KEYWORDS)
def test_method_accepts_the_keywords_used(owner: Any, name: str, keywords: str):
    assert {*keywords.split()} <= {*inspect.signature(getattr(owner, name)).parameters}


@pytest.mark.parametrize(("owner", "names"), ATTRIBUTES)
def test_attributes_relied_on_exist(owner: Any, names: str):
    source = "".join(inspect.getsource(each) for each in owner.__mro__ if each is not object)
    for name in names.split():
        is_assigned = re.search(rf"\bself\.{name}(: [^=]+)? = |\bself\.{name}, ", source)
        assert hasattr(owner, name) or is_assigned, name


def test_daphne_keeps_loop_and_applications_where_expected():
    assert daphne.server.twisted_loop.is_running() is False
    assert 'self.connections[protocol]["application_instance"]' in inspect.getsource(daphne.server)
