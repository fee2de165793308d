"""Names of Daphne, Twisted, autobahn and Django that the web server overrides or uses.

Most are not public: requirements.in pins their packages, so that an upgrade which moves one fails here
and not in production.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import daphne.server
import pytest
from twisted.internet import tcp
from twisted.protocols.basic import LineReceiver
from twisted.web import http

from chatproject.lib.server import daphne as ours
from chatproject.lib.server.one_thread_handler import OneThreadHandler

OWN = {
    "__init__", "refuse", "go_away", "is_full", "write", "drain", "serve", "close_everything",
    "wait_for_applications", "linger", "is_partial", "begin",
}  # fmt: skip
EXTENDED: tuple[type, ...] = (
    ours.Channel, ours.Request, ours.Socket, ours.HTTPFactory, ours.Server, OneThreadHandler,
)  # fmt: skip
OVERRIDES = [
    pytest.param(extended, name, id=f"{extended.__name__}.{name}")
    for extended in EXTENDED
    for name, value in vars(extended).items()
    if inspect.isfunction(value) and name not in OWN
]
CALLS: list[tuple[Any, str, str]] = [
    (ours.Channel, "clearLineBuffer", ""),
    (ours.Channel, "loseConnection", ""),
    (ours.Channel, "registerProducer", "producer streaming"),
    (ours.Channel, "setTimeout", "period"),
    (LineReceiver, "dataReceived", "data"),
    (http.Request, "__init__", "channel queued parsePOSTFormSubmission"),
    (http.Request, "requestReceived", "command path version"),
    (ours.Socket, "_max_message_size_exceeded", "msg_size max_msg_size reason"),
    (ours.Socket, "sendCloseFrame", "code"),
    (ours.Socket, "sendFrame", "opcode payload"),
    (ours.SocketFactory, "__init__", "server_class kwargs"),
    (ours.SocketFactory, "setProtocolOptions", "autoPingTimeout allowNullOrigin failByDrop"),
    (ours.SocketFactory, "setProtocolOptions", "closeHandshakeTimeout openHandshakeTimeout"),
    (ours.SocketFactory, "setProtocolOptions", "maxFramePayloadSize maxMessagePayloadSize"),
    (tcp.Server, "writeSomeData", "data"),
    (ours.Port, "_fromListeningDescriptor", "reactor fd addressFamily factory"),
    (ours.Port, "startListening", ""),
    (daphne.server.Server, "__init__", "application endpoints ping_interval"),
    (daphne.server.Server, "__init__", "websocket_timeout server_name"),
    (ours.Server, "application_checker", ""),
    (ours.Server, "timeout_checker", ""),
    (OneThreadHandler, "get_response", "request"),
]
ATTRIBUTES: list[tuple[Any, str]] = [
    (ours.Channel, "MAX_LENGTH maxHeaders totalHeadersSize requestFactory"),
    (ours.Channel, "_command _handlingRequest _path _version length persistent requests"),
    (
        ours.Request,
        "_response_started channel requestHeaders responseHeaders startedWriting transport",
    ),
    (ours.Socket, "CLOSE_STATUS_CODE_INTERNAL_ERROR CONFIG_ATTRS STATE_CONNECTING STATE_OPEN"),
    (ours.Socket, "failedByMe last_ping message_data state"),
    (ours.HTTPFactory, "protocol server timeOut"),
    (ours.SocketFactory, "protocol server_class"),
    (ours.Port, "numberAccepts"),
    (tcp.Server, "_tempDataLen connected dataBuffer"),
    (ours.Server, "application connections http_factory websocket_connect_timeout ws_factory"),
]


@pytest.mark.parametrize(("extended", "name"), OVERRIDES)
def test_override_has_the_signature_of_its_original(extended: Any, name: str):
    original = getattr(super(extended, extended), name)
    parameters = inspect.signature(original).parameters
    assert [*parameters] == [*inspect.signature(getattr(extended, name)).parameters]


@pytest.mark.parametrize(("owner", "name", "parameters"), CALLS)
def test_called_method_accepts_the_parameters_used(owner: Any, name: str, parameters: str):
    assert {*parameters.split()} <= {*inspect.signature(getattr(owner, name)).parameters}


@pytest.mark.parametrize(("owner", "names"), ATTRIBUTES)
def test_attributes_relied_on_exist(owner: Any, names: str):
    theirs = [each for each in owner.__mro__ if not each.__module__.startswith("chatproject.")]
    source = "".join(inspect.getsource(each) for each in theirs if each is not object)
    for name in names.split():
        is_assigned = re.search(rf"\bself\.{name}(: [^=]+)? = |\bself\.{name}, ", source)
        assert is_assigned or any(name in vars(each) for each in theirs), name


def test_daphne_keeps_loop_and_applications_where_expected():
    assert daphne.server.twisted_loop.is_running() is False
    assert 'self.connections[protocol]["application_instance"]' in inspect.getsource(daphne.server)
