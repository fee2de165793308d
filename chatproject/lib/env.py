"""The only module that reads the environment.

Each function takes the name of a variable and a default, and raises `ImproperlyConfigured` with a
sentence that says what to write instead. A secret may also come from a file: when `NAME_FILE` is
set, `secret("NAME")` reads that file (the convention of container secrets). The file `.env` beside
manage.py, or the one that `ENV_FILE` names, may set variables; the environment takes precedence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from django.core.exceptions import ImproperlyConfigured

REDIS_LIMITS = {"socket_connect_timeout": "2", "socket_timeout": "3"}  # seconds

TRUE = {"1", "true", "yes", "on"}
FALSE = {"0", "false", "no", "off", ""}

MAX_HOPS = 9  # proxies between a client and the site

PERIODS = {"second": 1, "minute": 60, "hour": 60 * 60, "day": 24 * 60 * 60}


class Limit(NamedTuple):
    """A named limit: at most so many uses in so many seconds, for each pair of `rates`.

    A period of 0 seconds means uses at the same time. Without rates there is no limit. A limit that
    `fails_closed` refuses every use while Redis is unreachable; any other accepts it.
    """

    rates: tuple[tuple[int, int], ...]
    fails_closed: bool = False


def load_file(path: Path) -> None:
    """Set the variables of a file with `NAME=value` lines that the environment does not have yet.

    Blank lines and lines that begin with `#` are skipped; one pair of quotes around a value is
    removed. A missing file is no error. Raises ImproperlyConfigured for any other line.
    """
    if not path.is_file():
        return
    for name, value in parse_file(path):
        os.environ.setdefault(name, value)


def parse_file(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the names and values of a file in `.env` form; see `load_file`."""
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        line = raw.strip().removeprefix("export ")
        if not line or line.startswith("#"):
            continue
        name, separator, value = line.partition("=")
        if not separator or not name.strip().isidentifier():
            raise ImproperlyConfigured(f"{path.name}, line {number}: write NAME=value.")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        yield name.strip(), value


def text(name: str, default: str = "") -> str:
    """Return the variable as text, without surrounding space."""
    return os.environ.get(name, default).strip()


def secret(name: str, default: str = "") -> str:
    """Return the variable as text, or the content of the file that `NAME_FILE` names."""
    path = text(f"{name}_FILE")
    if not path:
        return text(name, default)
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ImproperlyConfigured(
            f"{name}_FILE: the file cannot be read ({error.strerror}). Point it at a readable file."
        ) from error


def secrets(name: str, *, least: int = 1) -> list[str]:
    """Return the variable as a list of secrets of at least `least` characters, separated by commas or space."""
    found = secret(name).replace(",", " ").split()
    if any(len(one) < least for one in found):
        raise ImproperlyConfigured(
            f"{name}: a secret is shorter than {least} characters. Write random ones, for example from "
            "`python -c 'import secrets; print(secrets.token_urlsafe(50))'`, separated by commas."
        )
    return found


def flag(name: str, *, default: bool) -> bool:
    """Return the variable as a boolean: 1/true/yes/on or 0/false/no/off."""
    value = os.environ.get(name)
    if value is None:
        return default
    value = value.strip().lower()
    if value not in TRUE | FALSE:
        raise ImproperlyConfigured(f"{name}={value!r} is neither yes nor no. Write 1 or 0.")
    return value in TRUE


def hops(name: str) -> int:
    """Return the variable as a number of proxies; yes and no count as 1 and 0."""
    value = text(name).lower()
    if value in TRUE:
        return 1
    if value in FALSE:
        return 0
    if not value.isdecimal() or int(value) > MAX_HOPS:
        raise ImproperlyConfigured(
            f"{name}={value!r}: write the number of proxies in front, for example 1, or 0."
        )
    return int(value)


def integer(name: str, default: int, *, least: int = 0, most: int | None = None) -> int:
    """Return the variable as a whole number of at least `least` and at most `most`."""
    value = text(name)
    if not value:
        return default
    is_number = value.isdecimal() and int(value) >= least
    if not is_number or (most is not None and int(value) > most):
        limits = f"of at least {least}" + (f" and at most {most}" if most is not None else "")
        raise ImproperlyConfigured(
            f"{name}={value!r}: write a whole number {limits}, for example {default}."
        )
    return int(value)


def decimal(name: str, default: str, *, above: int | None = None) -> Decimal:
    """Return the variable as a decimal number of at least 0, or above `above`."""
    [number] = decimals(name, default, count=1)
    if above is not None and number <= above:
        raise ImproperlyConfigured(
            f"{name}={number}: write a number above {above}, for example {default}."
        )
    return number


def decimals(name: str, default: str, *, count: int) -> list[Decimal]:
    """Return the variable as `count` decimal numbers of at least 0, separated by spaces."""
    value = os.environ.get(name, default).strip()
    try:
        numbers = [Decimal(word) for word in value.split()]
    except InvalidOperation:
        numbers = []
    if len(numbers) != count or not all(n.is_finite() and n >= 0 for n in numbers):
        raise ImproperlyConfigured(
            f"{name}={value!r}: write numbers of at least 0, for example {default}."
        )
    return numbers


def limit(name: str, default: str, *, fails_closed: bool = False) -> Limit:
    """Return the variable as a limit.

    `30/minute`, `5/10minute`, several separated by `;`, `50` for so many at the same time, or `off`.
    """
    value = text(name, default).lower() or default
    if value == "off":
        return Limit((), fails_closed)
    rates = []
    for part in value.split(";"):
        found = re.fullmatch(r"([1-9]\d*)(?:/([1-9]\d*)?(second|minute|hour|day)s?)?", part.strip())
        if found is None or ("/" in part) != ("/" in default):
            raise ImproperlyConfigured(f"{name}={value!r}: write {default}, for example, or off.")
        amount, multiple, period = found.groups()
        rates.append((int(amount), PERIODS[period] * int(multiple or 1) if period else 0))
    return Limit(tuple(rates), fails_closed)


def words(name: str, default: str = "") -> list[str]:
    """Return the variable as a list, separated by commas."""
    return [word.strip() for word in text(name, default).split(",") if word.strip()]


def url(name: str, default: str, *, schemes: tuple[str, ...] = ("http", "https")) -> str:
    """Return the variable as a URL with one of the schemes; it may be empty.

    Like a secret it may come from a file, since it may contain a password.
    """
    value = secret(name, default)
    if value and urlsplit(value).scheme not in schemes:
        raise ImproperlyConfigured(
            f"{name} must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}. "
            "See .env.example."
        )
    return value


def origin(name: str) -> str:
    """Return the variable as scheme, host and port of the site; it may be empty."""
    value = url(name, "").rstrip("/")
    parts = urlsplit(value)
    if parts.path or parts.query or parts.fragment:
        raise ImproperlyConfigured(
            f"{name}={value}: the site works at the root of a host name, not below a path. Give it a"
            " host name of its own, for example https://chat.example.org."
        )
    return value


def redis_url(value: str) -> str:
    """Return the URL of a Redis with time limits, which every client that is made from it keeps.

    It waits two seconds for a connection and three for an answer, unless the URL names other values
    (`?socket_connect_timeout=…&socket_timeout=…`).
    """
    parts = urlsplit(value)
    query = REDIS_LIMITS | dict(parse_qsl(parts.query))
    return parts._replace(query=urlencode(query)).geturl()


def database(name: str) -> dict[str, Any]:
    """Return a Django database entry from a `postgres://user:password@host:port/name?option=value` URL.

    An empty host means the local socket. Options are passed to libpq (`sslmode=require`).
    """
    value = url(name, "", schemes=("postgres", "postgresql"))
    if not value:
        raise ImproperlyConfigured(
            f"{name} is not set. Write postgres://user:password@host:5432/parley, "
            "or use `make run`, which starts its own Postgres."
        )
    parts = urlsplit(value)
    try:
        port = parts.port
    except ValueError as error:
        raise ImproperlyConfigured(f"{name}: the port is not a number.") from error
    database_name = unquote(parts.path.lstrip("/"))
    if not database_name:
        raise ImproperlyConfigured(f"{name} names no database: end it with /parley, for example.")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": database_name,
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(parts.hostname or ""),
        "PORT": str(port or ""),
        "OPTIONS": dict(parse_qsl(parts.query)),
    }


def mail(name: str, default: str) -> dict[str, Any]:
    """Return Django's mail settings from `smtp://user:password@host:587?tls=1` or `console://`.

    `tls=1` is STARTTLS; the scheme `smtps` is TLS from the first byte. Empty: the site sends no mail.
    Messages go through the outbox, which sends them with the backend MAIL_TRANSPORT.
    """
    value = url(name, default, schemes=("smtp", "smtps", "console"))
    if not value:
        return {
            "EMAIL_BACKEND": "django.core.mail.backends.dummy.EmailBackend",
            "MAIL_TRANSPORT": "",
        }
    outbox = {"EMAIL_BACKEND": "chatproject.lib.mail.backend.OutboxBackend"}
    parts = urlsplit(value)
    if parts.scheme == "console":
        return outbox | {"MAIL_TRANSPORT": "django.core.mail.backends.console.EmailBackend"}
    options = dict(parse_qsl(parts.query))
    try:
        port = parts.port
    except ValueError as error:
        raise ImproperlyConfigured(f"{name}: the port is not a number.") from error
    return outbox | {
        "MAIL_TRANSPORT": "chatproject.lib.mail.smtp.EmailBackend",
        "EMAIL_HOST": parts.hostname or "",
        "EMAIL_PORT": port or (465 if parts.scheme == "smtps" else 587),
        "EMAIL_HOST_USER": unquote(parts.username or ""),
        "EMAIL_HOST_PASSWORD": unquote(parts.password or ""),
        "EMAIL_USE_SSL": parts.scheme == "smtps",
        "EMAIL_USE_TLS": parts.scheme == "smtp" and options.get("tls", "1") in TRUE,
        "EMAIL_TIMEOUT": 10,  # seconds for each answer of the mail server
    }
