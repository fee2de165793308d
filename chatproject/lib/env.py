"""The only module that reads the environment.

Each function takes the name of a variable and a default, which an empty variable has as well, and raises `ImproperlyConfigured` with one
sentence that names the variable and its remedy, and never a secret. Spaces around a value and one pair
of quotes are removed. A secret may also come from a file: when `NAME_FILE` is set, `secret("NAME")`
reads that file (the convention of container secrets). The file `.env` beside manage.py, or the one that
`ENV_FILE` names, may set variables; the environment takes precedence.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from email.utils import parseaddr
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import psycopg
from django.core.exceptions import ImproperlyConfigured
from psycopg.conninfo import make_conninfo
from redis import ConnectionPool, RedisError

REDIS_LIMITS = {"socket_connect_timeout": "2", "socket_timeout": "3"}  # seconds

# Options that the site sets where it needs them: with others it could not read the answers.
REDIS_FIXED = {"decode_responses", "encoding", "max_connections", "protocol", "timeout"}

TRUE = {"1", "true", "yes", "on"}
FALSE = {"0", "false", "no", "off", ""}

QUOTES = "'\""
MAX_FILE = 65_536  # bytes of a secret's file, or of .env
MAX_NUMBER = 1_000_000_000  # any more is a slip of the keyboard, and overflows somewhere

# The form of a name in ALLOWED_HOSTS, as Django compares it with the Host of a request.
HOST = re.compile(
    r"\.?[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\]", re.ASCII | re.IGNORECASE
)
HEADER = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*")
KEY = re.compile(r"[!-~]*")  # what an HTTP header can carry, without spaces
DEFAULT_PORTS = {"http": 80, "https": 443}

# Headers with a meaning of their own, which name no person.
USED_HEADERS = frozenset(
    {
        *("authorization", "connection", "content-length", "content-type", "cookie", "host"),
        *("origin", "referer", "user-agent", "x-csrftoken", "x-forwarded-for"),
        *("x-forwarded-host", "x-forwarded-prefix", "x-forwarded-proto", "x-request-id"),
    }
)

# Options of libpq that it checks only when it connects, where they would look like an outage.
NUMERIC_OPTIONS = frozenset(
    {
        "connect_timeout",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "tcp_user_timeout",
    }
)
SSL_MODES = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})

PERIODS = {"second": 1, "minute": 60, "hour": 60 * 60, "day": 24 * 60 * 60}


class Limit(NamedTuple):
    """A named limit: at most so many uses in so many seconds, for each pair of `rates`.

    A period of 0 seconds means uses at the same time. Without rates there is no limit. A limit that
    `fails_closed` refuses every use while Redis is unreachable; any other accepts it.
    """

    rates: tuple[tuple[int, int], ...]
    fails_closed: bool = False


# --- Files -------------------------------------------------------------------------------------


def load_file(folder: Path, name: str) -> None:
    """Set the variables of a file with `NAME=value` lines that the environment does not have yet.

    The file is `name` (ENV_FILE), relative to the folder; without a name it is `.env`, which may be
    missing. Raises ImproperlyConfigured like `parse_file`.
    """
    path = folder / (name or ".env")
    if not name and not path.exists():
        return
    for variable, value in parse_file(path):
        os.environ.setdefault(variable, value)


def parse_file(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the names and values of a file in `.env` form.

    Blank lines and lines that begin with `#` are skipped; one pair of quotes around a value is
    removed. Raises ImproperlyConfigured for any other line, with its number, and for a file that
    cannot be read or is not UTF-8.
    """
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", read_file(path, str(path))), start=1):
        line = raw.strip().removeprefix("export ")
        if not line or line.startswith("#"):
            continue
        where = f"{path.name}, line {number}"
        name, separator, value = line.partition("=")
        name, value = name.strip(), value.strip()
        if not separator or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ImproperlyConfigured(f"{where}: write NAME=value.")
        if value[:1] in ("'", '"'):
            if len(value) < 2 or value[-1] != value[0]:
                raise ImproperlyConfigured(
                    f"{where}: {name} begins with a quote that does not end it."
                )
            value = value[1:-1]
        elif re.search(r"\s#", value):
            raise ImproperlyConfigured(
                f"{where}: put the comment into a line of its own, or the value of {name} into quotes."
            )
        yield name, value


def read_file(path: Path, where: str) -> str:
    """Return the text of a small file, without a byte order mark.

    Raises ImproperlyConfigured, which begins with `where`, for any other kind of file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ImproperlyConfigured(
            f"{where}: the file cannot be read ({reason}). Name a file that this process may read."
        ) from error
    if len(data) > MAX_FILE:
        raise ImproperlyConfigured(f"{where}: the file is larger than {MAX_FILE:,} bytes.")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise ImproperlyConfigured(
            f"{where}: the file is UTF-16 or contains NUL. Save it as UTF-8."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImproperlyConfigured(f"{where}: the file is not UTF-8. Save it as UTF-8.") from error


# --- Texts -------------------------------------------------------------------------------------


def text(name: str, default: str = "", *, most: int | None = None) -> str:
    """Return the variable as text of at most so many characters; an empty one is the default."""
    value = _unquoted(os.environ.get(name, "")) or default
    if any(character < " " or "\x7f" <= character < "\xa0" for character in value):
        raise ImproperlyConfigured(
            f"{name} contains a line break or a control character. Remove it."
        )
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ImproperlyConfigured(f"{name} is not UTF-8. Write it in UTF-8.")
    if most is not None and len(value) > most:
        raise ImproperlyConfigured(f"{name} is longer than {most} characters. Shorten it.")
    return value


def is_empty(name: str) -> bool:
    """Return whether the variable is set, and empty."""
    return name in os.environ and not text(name)


def _unquoted(value: str) -> str:
    """Return a value without spaces around it and one pair of quotes, which some loaders keep."""
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in QUOTES:
        return value[1:-1].strip()
    return value


def secret(name: str, default: str = "") -> str:
    """Return the variable as text, or the content of the file that `NAME_FILE` names."""
    path = text(f"{name}_FILE")
    if not path:
        value, where = text(name, default), name
    else:
        where = f"{name}_FILE"
        value = _unquoted(read_file(Path(path), where))
        if not value:
            raise ImproperlyConfigured(
                f"{where}: the file is empty. Write the value into it, or remove the variable."
            )
    if not value.isprintable():
        raise ImproperlyConfigured(
            f"{where} contains a line break or an invisible character. Write the value anew, in one"
            " line."
        )
    return value


def key(name: str) -> str:
    """Return the variable, or the content of its file, as a key that is sent in HTTP headers."""
    value = secret(name)
    if not KEY.fullmatch(value):
        raise ImproperlyConfigured(
            f"{name} contains a space or a letter that no key has. Copy the key anew."
        )
    return value


def header_line(name: str) -> tuple[str, str] | None:
    """Return the variable, or the content of its file, as name and value of an HTTP header."""
    value = secret(name)
    if not value:
        return None
    left, colon, right = (part.strip() for part in value.partition(":"))
    if not (colon and HEADER.fullmatch(left) and right and right.isascii()):
        raise ImproperlyConfigured(f"{name}: write Name: value, such as X-Api-Key: abc.")
    return left, right


def json_object(name: str) -> dict[str, Any]:
    """Return the variable, or the content of its file, as an object of JSON."""
    try:
        value = json.loads(secret(name) or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ImproperlyConfigured(f'{name}: write an object of JSON, such as {{"name": "value"}}.')
    return value


def secrets(name: str, *, least: int = 1) -> list[str]:
    """Return the variable, or the content of its file, as a list of secrets.

    They are separated by commas, spaces or lines, and have at least `least` characters.
    """
    path = text(f"{name}_FILE")
    value = read_file(Path(path), f"{name}_FILE") if path else text(name)
    found = [_unquoted(word) for word in value.replace(",", " ").split()]
    if not all(word.isprintable() for word in found):
        raise ImproperlyConfigured(f"{name} contains an invisible character. Write it anew.")
    if any(len(word) < least for word in found):
        raise ImproperlyConfigured(
            f"{name}: a secret is shorter than {least} characters. Write random ones, for example from "
            "`python -c 'import secrets; print(secrets.token_urlsafe(50))'`, separated by commas."
        )
    return found


def choice(name: str, default: str, choices: Sequence[str]) -> str:
    """Return the variable, in any case, as one of the choices, which are in capitals."""
    value = text(name).upper() or default
    if value not in choices:
        raise ImproperlyConfigured(f"{name}={value[:40]!r}: write one of {', '.join(choices)}.")
    return value


def zone(name: str, default: str) -> str:
    """Return the variable as the name of a time zone of the IANA database."""
    value = text(name) or default
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ImproperlyConfigured(
            f"{name}={value[:40]!r} is no time zone. Write a name such as UTC or Europe/Berlin."
        ) from error
    return value


def sender(name: str, default: str) -> str:
    """Return the variable as one e-mail address, with a name or without."""
    value = text(name) or default
    _check_address(name, value)
    return value


def addresses(name: str) -> list[str]:
    """Return the variable as e-mail addresses, separated by commas."""
    found = words(name)
    for word in found:
        _check_address(name, word)
    return found


def _check_address(name: str, value: str) -> None:
    address = parseaddr(value)[1]
    local, at, domain = address.rpartition("@")
    if not (local and at and domain) or address not in value or {*" /:"} & {*address}:
        raise ImproperlyConfigured(
            f"{name}: {value[:40]!r} is no e-mail address. Write, for example, chat@example.org."
        )


# --- Numbers -----------------------------------------------------------------------------------


def folder(name: str, default: Path) -> Path:
    """Return the path of a folder, which need not exist.

    A relative one is refused: processes with other working directories would not share it.
    """
    path = Path(text(name) or default)
    if not path.is_absolute():
        raise ImproperlyConfigured(
            f"{name}={str(path)[:40]!r} is not a whole path. Write one that begins with /."
        )
    return path


def flag(name: str, *, default: bool) -> bool:
    """Return the variable as a boolean: 1/true/yes/on or 0/false/no/off. Empty is the default."""
    value = text(name).lower()
    if value not in TRUE | FALSE:
        raise ImproperlyConfigured(f"{name}={value[:40]!r} is neither yes nor no. Write 1 or 0.")
    return value in TRUE if value else default


def hops(name: str) -> int:
    """Return the variable as a number of proxies; yes and no count as 1 and 0."""
    value = text(name).lower()
    if value in TRUE:
        return 1
    if value in FALSE:
        return 0
    if not value.isdecimal() or len(value) > 1:
        raise ImproperlyConfigured(
            f"{name}={value[:40]!r}: write the number of proxies in front, for example 1, or 0."
        )
    return int(value)


def integer(name: str, default: int, *, least: int = 0, most: int = MAX_NUMBER) -> int:
    """Return the variable as a whole number of at least `least` and at most `most`."""
    value = text(name)
    if not value:
        return default
    # The length first: Python refuses to read a number of thousands of digits.
    if not (value.isdecimal() and len(value) <= 10 and least <= int(value) <= most):
        raise ImproperlyConfigured(
            f"{name}={value[:40]!r}: write a whole number of at least {least} and at most {most},"
            f" for example {default}."
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
    """Return the variable as `count` decimal numbers from 0 to MAX_NUMBER, separated by spaces."""
    value = text(name, default)
    try:
        numbers = [Decimal(word) for word in value.split()]
    except InvalidOperation:
        numbers = []
    if len(numbers) != count or not all(n.is_finite() and 0 <= n <= MAX_NUMBER for n in numbers):
        raise ImproperlyConfigured(
            f"{name}={value[:40]!r}: write {count} number{'s' if count > 1 else ''} from 0 to"
            f" {MAX_NUMBER}, for example {default}."
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
        found = re.fullmatch(
            r"(?a)([1-9]\d{0,5})(?:/([1-9]\d{0,2})?(second|minute|hour|day)s?)?", part.strip()
        )
        if found is None or ("/" in part) != ("/" in default):
            raise ImproperlyConfigured(
                f"{name}={value[:40]!r}: write {default}, for example, or off."
            )
        amount, multiple, period = found.groups()
        rates.append((int(amount), PERIODS[period] * int(multiple or 1) if period else 0))
    return Limit(tuple(rates), fails_closed)


# --- Lists and addresses -------------------------------------------------------------------------


def words(name: str, default: str = "") -> list[str]:
    """Return the variable as a list, separated by commas."""
    return [word.strip() for word in text(name, default).split(",") if word.strip()]


def hosts(name: str, default: str) -> list[str]:
    """Return the variable as host names as Django's ALLOWED_HOSTS has them."""
    found = words(name, default)
    if not found or is_empty(name):
        raise ImproperlyConfigured(
            f"{name} is empty, so every page would be refused. Name the host of the site, for example"
            " chat.example.org."
        )
    for word in found:
        if word != "*" and not HOST.fullmatch(word):
            raise ImproperlyConfigured(
                f"{name}: {word!r} is no host name. Write it without https://, port and path, for"
                " example chat.example.org, or .example.org for it and all of its subdomains;"
                " separate several by commas."
            )
    return found


def origin(name: str, default: str = "") -> str:
    """Return the variable as scheme, host and port of a site (RFC 6454); it may be empty."""
    value = secret(name, default)
    if "*" in value:
        raise ImproperlyConfigured(f"{name} names one site, without *: https://chat.example.org.")
    return _origin(name, value) if value else ""


def origins(name: str) -> list[str]:
    """Return the variable as a list of origins; `*.` stands for all subdomains."""
    return [_origin(name, word) for word in words(name)]


def _origin(name: str, value: str) -> str:
    """Return an origin as browsers write it: in lower case, without slash and default port."""
    parts = _parts(name, value, ("http", "https"))
    host = parts.netloc.rpartition(":")[0] if parts.port is not None else parts.netloc
    if (
        not HOST.fullmatch(host.removeprefix("*."))
        or parts.path.strip("/")
        or parts.query
        or parts.fragment
    ):
        raise ImproperlyConfigured(
            f"{name}: write scheme, host and, unless it is the default, port, without a path:"
            " https://chat.example.org. Sites are served at the root of a host name, not below a path."
        )
    has_port = parts.port not in (None, DEFAULT_PORTS[parts.scheme])
    return f"{parts.scheme}://{host.lower()}{f':{parts.port}' if has_port else ''}"


def host_ports(name: str) -> list[str]:
    """Return the variable as a list of hosts that may have a port: push.example.org:8443."""
    found = words(name)
    for word in found:
        host, _, port = word.rpartition(":") if re.search(r":\d+$", word) else (word, "", "443")
        if not HOST.fullmatch(host) or not 0 < int(port) < 65_536:
            raise ImproperlyConfigured(
                f"{name}: {word!r} is no host. Write it without https:// and path, for example"
                " push.example.org or push.example.org:8443; separate several by commas."
            )
    return found


def patterns(name: str) -> list[str]:
    """Return the variable as a list of hosts: example.org, *.example.org, example.org:8443, or * for all."""
    found = words(name)
    for word in found:
        host, _, port = word.rpartition(":") if re.search(r":\d+$", word) else (word, "", "443")
        if not HOST.fullmatch(host.removeprefix("*.")) and host != "*":
            port = "0"
        if not 0 < int(port) < 65_536:
            raise ImproperlyConfigured(
                f"{name}: {word!r} is no host. Write it without https:// and path, for example"
                " docs.example.org, *.example.org or * for all; separate several by commas."
            )
    return found


def pairs(name: str) -> dict[str, str]:
    """Return the variable as pairs of words, `theirs:ours`, separated by commas."""
    found = {}
    for word in words(name):
        left, separator, right = (part.strip() for part in word.rpartition(":"))
        if not (left and separator and right):
            raise ImproperlyConfigured(
                f"{name}: {word[:60]!r} is no pair. Write theirs:ours, separated by commas."
            )
        found[left] = right
    return found


def header(name: str) -> str:
    """Return the variable as the name of an HTTP header that has no other meaning."""
    value = text(name)
    if value and (not HEADER.fullmatch(value) or value.lower() in USED_HEADERS):
        raise ImproperlyConfigured(
            f"{name}={value[:60]!r}: write the name of a header of its own, for example X-Forwarded-Email."
        )
    return value


def target(name: str) -> str:
    """Return the variable as an address of http or https, or as a path of this site; it may be empty."""
    value = text(name)
    if value.startswith("/") and not value.startswith(("//", "/\\")):
        return value
    return url(name, "")


def networks(name: str) -> list[IPv4Network | IPv6Network]:
    """Return the variable as networks, separated by commas; a single address is a network of one."""
    found = []
    for word in words(name):
        try:
            found.append(ip_network(word, strict=False))
        except ValueError as error:
            raise ImproperlyConfigured(
                f"{name}={word[:40]!r}: write addresses or networks, for example 10.0.0.7,192.168.0.0/16."
            ) from error
    return found


def url(name: str, default: str, *, schemes: tuple[str, ...] = ("http", "https")) -> str:
    """Return the variable as a URL with one of the schemes; it may be empty.

    Like a secret it may come from a file, since it may contain a password.
    """
    value = secret(name, default)
    if value:
        _parts(name, value, schemes)
    return value


def _parts(name: str, value: str, schemes: tuple[str, ...]) -> SplitResult:
    """Return the parts of a URL. Raises ImproperlyConfigured, which never quotes the URL."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise ImproperlyConfigured(
            f"{name}: the port is not a number up to 65535, or an address in brackets is wrong. In a"
            " password write / ? # @ : as %2F %3F %23 %40 %3A."
        ) from error
    if parts.scheme not in schemes:
        raise ImproperlyConfigured(
            f"{name} must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}. "
            "See .env.example."
        )
    needs_host = parts.scheme in ("http", "https", "smtp", "smtps")
    if port == 0 or " " in value or (needs_host and not parts.hostname):
        raise ImproperlyConfigured(
            f"{name} names no host, has the port 0 or contains a space. See .env.example."
        )
    return parts


def file(name: str) -> str:
    """Return the variable as the path of a file that exists; it may be empty."""
    value = text(name)
    # Not by Path, which raises an error for a name that is too long.
    if value and not os.path.isfile(value):
        raise ImproperlyConfigured(
            f"{name}={value[:200]!r}: there is no such file. Write the path of one, or nothing."
        )
    return value


def redis(name: str) -> str:
    """Return the variable as the URL of a Redis, with time limits that every client of it keeps.

    A client waits two seconds for a connection and three for an answer, unless the URL names other
    values (`?socket_connect_timeout=…&socket_timeout=…`). It may be empty.
    """
    value = secret(name)
    return _redis(name, value) if value else ""


def servers(name: str) -> list[str]:
    """Return the variable as URLs of Redis servers as `redis` returns them, separated by commas."""
    return [_redis(name, word.strip()) for word in secret(name).split(",") if word.strip()]


def _redis(name: str, value: str) -> str:
    parts = _parts(name, value, ("redis", "rediss", "unix"))
    if parts.scheme == "unix" and not parts.path.strip("/"):
        raise ImproperlyConfigured(f"{name}: write the path of the socket: unix:///run/redis.sock.")
    if parts.scheme != "unix" and not re.fullmatch(r"(/\d*)?", parts.path):
        raise ImproperlyConfigured(f"{name}: end the address with the number of a database: /0.")
    query = REDIS_LIMITS | dict(parse_qsl(parts.query))
    # Not by geturl(), which leaves the slashes of an empty host out.
    limited = f"{parts.scheme}://{parts.netloc}{parts.path}?{urlencode(query)}"
    try:
        if query.keys() & REDIS_FIXED or not all(
            0 < float(query[key]) < 3600 for key in REDIS_LIMITS
        ):
            raise ValueError
        pool = ConnectionPool.from_url(limited)
        pool.connection_class(**pool.connection_kwargs)  # which connects to nothing yet
    except (TypeError, ValueError, RedisError) as error:
        raise ImproperlyConfigured(
            f"{name}: an option after the ? is unknown or has a wrong value. See .env.example."
        ) from error
    return limited


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
    database_name = unquote(parts.path.lstrip("/"))
    if not database_name:
        raise ImproperlyConfigured(f"{name} names no database: end it with /parley, for example.")
    options = dict(parse_qsl(parts.query))
    try:
        make_conninfo(**options)
    except psycopg.Error as error:
        raise ImproperlyConfigured(
            f"{name}: an option after the ? is none of libpq's. See .env.example."
        ) from error
    account = [unquote(part or "") for part in (parts.username, parts.password, parts.hostname)]
    if not all(part.isprintable() for part in (database_name, *account, *options.values())):
        raise ImproperlyConfigured(f"{name} contains an invisible character, such as %00 or %0A.")
    for option in NUMERIC_OPTIONS & options.keys():
        if not options[option].isdecimal():
            raise ImproperlyConfigured(f"{name}: {option} must be a whole number.")
    if options.get("sslmode", "require") not in SSL_MODES:
        raise ImproperlyConfigured(
            f"{name}: sslmode must be one of {', '.join(sorted(SSL_MODES))}."
        )
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": database_name,
        "USER": account[0],
        "PASSWORD": account[1],
        "HOST": account[2],
        "PORT": str(parts.port or ""),
        "OPTIONS": options,
    }


def mail(name: str, default: str) -> dict[str, Any]:
    """Return Django's mail settings from `smtp://user:password@host:587?tls=1`, `file:///folder` or `console://`.

    `tls=1` is STARTTLS; the scheme `smtps` is TLS from the first byte. Empty: the site sends no mail.
    Messages go through the outbox, which sends them with the backend MAIL_TRANSPORT.
    """
    value = url(name, default, schemes=("smtp", "smtps", "file", "console"))
    if not value:
        return {
            "EMAIL_BACKEND": "django.core.mail.backends.dummy.EmailBackend",
            "MAIL_TRANSPORT": "",
        }
    outbox = {"EMAIL_BACKEND": "chatproject.lib.mail.backend.OutboxBackend"}
    parts = urlsplit(value)
    if parts.scheme == "console":
        return outbox | {"MAIL_TRANSPORT": "django.core.mail.backends.console.EmailBackend"}
    if parts.scheme == "file":
        folder = unquote(parts.path)
        if parts.netloc or parts.query or not folder.startswith("/") or folder == "/":
            raise ImproperlyConfigured(
                f"{name}: write file:// and the absolute path of a folder, such as file:///tmp/mails."
            )
        return outbox | {
            "MAIL_TRANSPORT": "chatproject.lib.mail.files.EmailBackend",
            "EMAIL_FILE_PATH": folder,
        }
    options = dict(parse_qsl(parts.query))
    if options.keys() - {"tls"} or options.get("tls", "1").lower() not in TRUE | FALSE:
        raise ImproperlyConfigured(f"{name}: after the ? only tls=1 or tls=0 may follow.")
    return outbox | {
        "MAIL_TRANSPORT": "chatproject.lib.mail.smtp.EmailBackend",
        "EMAIL_HOST": parts.hostname or "",
        "EMAIL_PORT": parts.port or (465 if parts.scheme == "smtps" else 587),
        "EMAIL_HOST_USER": unquote(parts.username or ""),
        "EMAIL_HOST_PASSWORD": unquote(parts.password or ""),
        "EMAIL_USE_SSL": parts.scheme == "smtps",
        "EMAIL_USE_TLS": parts.scheme == "smtp" and options.get("tls", "1").lower() in TRUE,
        "EMAIL_TIMEOUT": 10,  # seconds for each answer of the mail server
    }
