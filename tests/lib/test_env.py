"""Variables are read by type; an error names the one with a wrong value."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from functools import partial

import pytest
from django.core.exceptions import ImproperlyConfigured
from redis import ConnectionPool

from chatproject.lib import env


def test_text_is_stripped_or_its_default(monkeypatch):
    monkeypatch.setenv("NAME", "  value ")
    assert env.text("NAME") == "value"
    assert env.text("OTHER", "default") == "default"


def test_secret_comes_from_a_file(monkeypatch, tmp_path):
    (tmp_path / "key").write_text("s3cret\n")
    monkeypatch.setenv("KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("KEY", "other")
    assert env.secret("KEY") == "s3cret"
    monkeypatch.setenv("KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(ImproperlyConfigured, match="KEY_FILE"):
        env.secret("KEY")


@pytest.mark.parametrize(("value", "is_set"), [("1", True), ("Yes", True), ("off", False)])
def test_flag_accepts_usual_words(monkeypatch, value, is_set):
    monkeypatch.setenv("FLAG", value)
    assert env.flag("FLAG", default=not is_set) is is_set
    assert env.flag("OTHER", default=is_set) is is_set


@pytest.mark.parametrize("value", ["", "  ", '""', "\r"])
@pytest.mark.parametrize(
    ("read", "default"),
    [
        (partial(env.flag, default=True), True),
        (partial(env.flag, default=False), False),
        (partial(env.text, default="Parley"), "Parley"),
        (partial(env.words, default="USD"), ["USD"]),
        (partial(env.decimal, default="0.5"), Decimal("0.5")),
        (partial(env.url, default="https://api.example.org"), "https://api.example.org"),
    ],
)
def test_empty_variable_has_its_default(monkeypatch, read, default, value):
    """BILLING= must not make a site free, nor HTTPS= turn off its cookies' protection."""
    monkeypatch.setenv("NAME", value)
    assert read("NAME") == default
    assert env.is_empty("NAME")


def test_redis_may_be_a_socket(monkeypatch):
    monkeypatch.setenv("REDIS", "unix:///run/redis/redis.sock?db=1")
    assert env.redis("REDIS").startswith("unix:///run/redis/redis.sock?socket_connect_timeout=2&")
    assert ConnectionPool.from_url(env.redis("REDIS")).connection_kwargs["db"] == 1


def test_networks_include_single_addresses(monkeypatch):
    monkeypatch.setenv("NETS", "10.0.0.7, 192.168.1.9/16,2001:db8::/64")
    assert [str(one) for one in env.networks("NETS")] == [
        "10.0.0.7/32",
        "192.168.0.0/16",
        "2001:db8::/64",
    ]
    assert env.networks("OTHER") == []
    monkeypatch.setenv("NETS", "10.0.0.7,prometheus.example.org")
    with pytest.raises(ImproperlyConfigured, match=r"NETS.*prometheus"):
        env.networks("NETS")


@pytest.mark.parametrize(
    ("value", "hops"),
    [("", 0), ("0", 0), ("no", 0), ("1", 1), ("Yes", 1), ("true", 1), ("2", 2), (" 3 ", 3)],
)
def test_proxies_are_counted_or_flagged(monkeypatch, value, hops):
    monkeypatch.setenv("TRUST_PROXY", value)
    assert env.hops("TRUST_PROXY") == hops


@pytest.mark.parametrize("value", ["-1", "10", "1.5", "all", "10.0.0.0/8"])
def test_impossible_number_of_proxies_is_refused(monkeypatch, value):
    monkeypatch.setenv("TRUST_PROXY", value)
    with pytest.raises(ImproperlyConfigured, match="number of proxies"):
        env.hops("TRUST_PROXY")


@pytest.mark.parametrize(
    ("value", "address"),
    [("", ""), ("https://chat.example.org", "https://chat.example.org")]
    + [
        (f"https://chat.example.org:8443{end}", "https://chat.example.org:8443")
        for end in ("", "/")
    ],
)
def test_site_url_has_no_slash_at_its_end(monkeypatch, value, address):
    monkeypatch.setenv("SITE_URL", value)
    assert env.origin("SITE_URL") == address


@pytest.mark.parametrize("end", ["/chat", "/chat/", "/a/b", "?a=b", "/#top"])
def test_site_below_a_path_is_refused(monkeypatch, end):
    monkeypatch.setenv("SITE_URL", f"https://example.org{end}")
    with pytest.raises(ImproperlyConfigured, match="not below a path"):
        env.origin("SITE_URL")


def test_numbers_and_words_are_parsed(monkeypatch):
    monkeypatch.setenv("NUMBER", "7")
    monkeypatch.setenv("WORDS", "a, b,,c ")
    assert env.integer("NUMBER", 5) == 7
    assert env.integer("OTHER", 5) == 5
    assert env.words("WORDS") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("value", "rates"),
    [
        ("5/minute", ((5, 60),)),
        (" 5/10Minutes ; 100/hour", ((5, 600), (100, 3_600))),
        ("3/second", ((3, 1),)),
        ("1/2day", ((1, 172_800),)),
        ("off", ()),
        ("", ((30, 60),)),
    ],
)
def test_limit_is_one_or_several_rates(monkeypatch, value, rates):
    monkeypatch.setenv("LIMIT", value)
    assert env.limit("LIMIT", "30/minute", fails_closed=True) == env.Limit(rates, True)
    monkeypatch.setenv("LIMIT", "7")
    assert env.limit("LIMIT", "50").rates == ((7, 0),)


@pytest.mark.parametrize(
    "value", ["0/minute", "5", "5/fortnight", "-1/hour", "5/0minute", "5/hour;"]
)
def test_wrong_limit_is_refused_by_name(monkeypatch, value):
    monkeypatch.setenv("LIMIT", value)
    with pytest.raises(ImproperlyConfigured, match="LIMIT="):
        env.limit("LIMIT", "30/minute")


def test_database_url_becomes_an_entry(monkeypatch):
    monkeypatch.setenv("DB", "postgres://me:p%40ss@host:5433/parley?sslmode=require")
    entry = env.database("DB")
    assert entry["NAME"] == "parley"
    assert (entry["USER"], entry["PASSWORD"]) == ("me", "p@ss")
    assert (entry["HOST"], entry["PORT"]) == ("host", "5433")
    assert entry["OPTIONS"] == {"sslmode": "require"}


WRONG: list[tuple[Callable[[str], object], str, str]] = [
    (partial(env.flag, default=True), "maybe", "NAME"),
    *((partial(env.integer, default=5, least=1), each, "NAME") for each in ("x", "-1", "1.5", "0")),
    (partial(env.integer, default=5, most=9), "10", "NAME.*at most 9"),
    (partial(env.url, default="", schemes=("redis",)), "http://host", "NAME.*redis://"),
    (env.database, "", "NAME"),
    (env.database, "mysql://host/db", "NAME"),
    (env.database, "postgres://host:port/db", "NAME"),
    (env.database, "postgres://host:5432/", "NAME"),
    (env.database, "postgres://host/db?pool=5", "NAME.*libpq"),
    (env.database, "postgres://host/db?connect_timeout=soon", "NAME.*connect_timeout"),
    (env.database, "postgres://host/db?sslmode=yes", "NAME.*verify-full"),
    (env.database, "postgres://me:p/w@host/db", "NAME.*%2F"),
    *(
        (env.redis, value, "NAME")
        for value in (
            "http://host",
            "redis://host:port",
            "redis://host:6379/first",
            "redis://host:6379/0?socket_timeout=soon",
            "redis://host:6379/0?colour=blue",
            "redis://[::1",
        )
    ),
    (env.servers, "redis://one:6379/0, two:6379", "NAME"),
    *(
        (partial(env.hosts, default="localhost"), value, "NAME")
        for value in (
            "https://chat.example.org",
            "chat.example.org:443",
            "chat.example.org/",
            "*.example.org",
            "chat.example.org other.example.org",
            "bücher.example",
            ",",
            "::1",
        )
    ),
    *(
        (env.origins, value, "NAME.*https://")
        for value in (
            "chat.example.org",
            "//chat.example.org",
            "https://chat.example.org/path",
            "https://chat.example.org?a=b",
            "https://me@chat.example.org",
            "https://*",
            "ftp://chat.example.org",
        )
    ),
    (env.origin, "https://chat.example.org/parley", "NAME.*without a path"),
    (env.origin, "https://*.example.org", "NAME.*one site"),
    *(
        (env.redis, f"redis://host/0?{option}", "NAME.*option")
        for option in (
            "socket_timeout=0",
            "socket_timeout=-1",
            "socket_connect_timeout=nan",
            "decode_responses=1",
            "protocol=3",
        )
    ),
    (env.redis, "unix://", "NAME.*socket"),
    # Behind a NUL libpq reads nothing: it would connect to another server.
    *(
        (env.database, value, "NAME.*invisible")
        for value in (
            "postgres://me:pa%00ss@host/db",
            "postgres://host/d%0Ab",
            "postgres://host/db?host=%00",
        )
    ),
    (partial(env.hosts, default="localhost"), "", "NAME is empty"),
    (env.file, "x" * 5_000, "NAME.*no such file"),
    (env.file, "/", "NAME.*no such file"),
    (partial(env.sender, default="a@b"), "https://me@example.org", "NAME.*e-mail"),
    (env.origin, "https://chat.example.org:99999", "NAME.*port"),
    (partial(env.url, default=""), "http://", "NAME"),
    (partial(env.url, default=""), "http://exam ple.org", "NAME"),
    (partial(env.mail, default=""), "smtp://", "NAME"),
    (partial(env.mail, default=""), "smtp://host?tls=maybe", "NAME.*tls"),
    (partial(env.mail, default=""), "smtp://host?ssl=1", "NAME.*tls"),
    (partial(env.choice, default="INFO", choices=("INFO", "DEBUG")), "LOUD", "NAME.*INFO, DEBUG"),
    *(
        (partial(env.zone, default="UTC"), value, "NAME.*Europe/Berlin")
        for value in ("Mars/Olympus", "Europe", "../etc/passwd", "/etc/localtime", "+02:00")
    ),
    (env.addresses, "someone", "NAME.*e-mail"),
    (partial(env.sender, default="a@b"), "Parley", "NAME.*e-mail"),
    (env.key, "sk-one two", "NAME.*key"),
    (env.key, "sk-\N{ZERO WIDTH SPACE}abc", "NAME"),
    (env.key, "\N{LEFT DOUBLE QUOTATION MARK}sk-abc", "NAME.*key"),
    (env.secret, "one\ntwo", "NAME.*line break"),
    *((env.json_object, value, "NAME.*object") for value in ("[1]", "{", "[" * 10_000)),
    *((env.header_line, value, "NAME.*X-Api-Key") for value in ("abc", "a b: c", "X-Key: ")),
    (env.text, "a\x07b", "NAME.*control"),
    (env.text, "caf\udce9", "NAME is not UTF-8"),
    (partial(env.text, most=3), "four", "NAME.*3 characters"),
    (partial(env.integer, default=5), "9" * 5_000, "NAME"),
    (partial(env.decimal, default="1"), "1e99", "NAME.*1000000000"),
    (partial(env.limit, default="5/minute"), "99999999/minute", "NAME"),
    (partial(env.limit, default="5/minute"), "5/9999day", "NAME"),
]


@pytest.mark.parametrize(("read", "value", "words"), WRONG)
def test_wrong_value_is_refused_by_name(monkeypatch, read, value, words):
    monkeypatch.setenv("NAME", value)
    with pytest.raises(ImproperlyConfigured, match=words):
        read("NAME")


def test_mail_url_becomes_settings(monkeypatch):
    assert env.mail("MAIL", "console://")["MAIL_TRANSPORT"].endswith("console.EmailBackend")
    files = env.mail("MAIL", "file:///var/mails%20here")
    assert files["EMAIL_FILE_PATH"] == "/var/mails here"
    for wrong in ("file://mails", "file:///", "file:mails"):
        with pytest.raises(ImproperlyConfigured, match="absolute path"):
            env.mail("MAIL", wrong)
    without = env.mail("MAIL", "")
    assert without["EMAIL_BACKEND"].endswith("dummy.EmailBackend")
    assert not without["MAIL_TRANSPORT"]
    monkeypatch.setenv("MAIL", "smtp://me:secret@mail.example.org")
    entry = env.mail("MAIL", "")
    assert (entry["EMAIL_HOST"], entry["EMAIL_PORT"]) == ("mail.example.org", 587)
    assert (entry["EMAIL_USE_TLS"], entry["EMAIL_USE_SSL"]) == (True, False)
    monkeypatch.setenv("MAIL", "smtps://mail.example.org")
    entry = env.mail("MAIL", "")
    assert entry["EMAIL_PORT"] == 465
    assert (entry["EMAIL_USE_TLS"], entry["EMAIL_USE_SSL"]) == (False, True)


def test_env_file_fills_only_unset_variables(monkeypatch, tmp_path):
    path = tmp_path / ".env"
    path.write_text("# comment\n\nA=from file\nexport B='quoted'\nC=\"x=y\"\n")
    monkeypatch.setenv("A", "from environment")
    for name in "BC":
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    env.load_file(tmp_path, "")
    assert [env.text(name) for name in "ABC"] == ["from environment", "quoted", "x=y"]
    for name in "BC":
        monkeypatch.delenv(name)
    env.load_file(tmp_path / "none", "")
    with pytest.raises(ImproperlyConfigured, match=r"other\.env"):
        env.load_file(tmp_path, "other.env")  # ENV_FILE names it


@pytest.mark.parametrize("line", ["no equals sign", "1A=x", "A B=x"])
def test_wrong_line_of_the_file_is_named(tmp_path, line):
    path = tmp_path / ".env"
    path.write_text(f"OK=1\n{line}\n")
    with pytest.raises(ImproperlyConfigured, match="line 2"):
        list(env.parse_file(path))


# --- Accepted, although not quite right -----------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "value", "meant"),
    [
        (env.text, ' "quoted" ', "quoted"),
        (env.text, "'spaces inside '", "spaces inside"),
        (partial(env.flag, default=False), '"1"\r', True),
        (partial(env.integer, default=5), "'7' ", 7),
        (env.key, '"sk-abc"', "sk-abc"),
        (env.json_object, '{"q": "{query}"}', {"q": "{query}"}),
        (env.header_line, "X-Api-Key:a b", ("X-Api-Key", "a b")),
        (env.secrets, "whsec_a, whsec_b", ["whsec_a", "whsec_b"]),
        (env.origin, "https://Chat.Example.org:443/", "https://chat.example.org"),
        (env.origins, "https://*.example.net/", ["https://*.example.net"]),
        (
            partial(env.hosts, default=""),
            "a.example, .b.example,*",
            ["a.example", ".b.example", "*"],
        ),
        (partial(env.choice, default="INFO", choices=("INFO", "DEBUG")), "debug", "DEBUG"),
        (partial(env.zone, default="UTC"), "", "UTC"),
        (partial(env.sender, default=""), "Parley <a@b.example>", "Parley <a@b.example>"),
    ],
)
def test_value_is_read_as_it_was_meant(monkeypatch, read, value, meant):
    monkeypatch.setenv("NAME", value)
    assert read("NAME") == meant


# --- Files ----------------------------------------------------------------------------------------

BAD_FILES = [
    ("\ufeffkey".encode("utf-16-le"), "UTF-16"),
    ("key".encode("utf-16-be"), "UTF-16 or contains NUL"),
    (b"key\0", "NUL"),
    ("clé".encode("latin-1"), "UTF-8"),
    (b"one\ntwo\n", "line break"),
    (b" \n", "empty"),
    (b"x" * 70_000, "65,536"),
]


@pytest.mark.parametrize(("content", "words"), BAD_FILES, ids=[words for _, words in BAD_FILES])
def test_unusable_secret_file_is_named(monkeypatch, tmp_path, content, words):
    (tmp_path / "key").write_bytes(content)
    monkeypatch.setenv("KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(ImproperlyConfigured, match=f"KEY_FILE.*{words}"):
        env.secret("KEY")


def test_folder_or_unreadable_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("KEY_FILE", str(tmp_path))
    with pytest.raises(ImproperlyConfigured, match=r"KEY_FILE.*Is a directory"):
        env.secret("KEY")
    (tmp_path / ".env").mkdir()  # as Docker makes it for a missing file
    with pytest.raises(ImproperlyConfigured, match=r"\.env.*Is a directory"):
        env.load_file(tmp_path, "")
    monkeypatch.setenv("KEY_FILE", "/proc/self/mem")  # opens, and cannot be read
    with pytest.raises(ImproperlyConfigured, match=r"KEY_FILE.*cannot be read"):
        env.secret("KEY")


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbfs3cret\r\n", b"  s3cret  \n\n", b'"s3cret"\n', b"s3cret"],
    ids=["BOM and CRLF", "spaces", "quotes", "no line end"],
)
def test_secret_file_is_read_despite_its_form(monkeypatch, tmp_path, content):
    (tmp_path / "key").write_bytes(content)
    monkeypatch.setenv("KEY_FILE", str(tmp_path / "key"))
    assert env.secret("KEY") == "s3cret"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfeA\0=\0", "UTF-16"),
        (b"A=\xe9\n", "UTF-8"),
        (b"A=1\0\n", "NUL"),
        (b"OK=1\rA='open\r", "line 2: A begins with a quote"),
        (b"OK=1\r\nA=1 # one\r\n", "line 2: put the comment"),
        ("ÄÖ=1".encode(), "line 1: write NAME=value"),
    ],
)
def test_unusable_env_file_is_named(tmp_path, content, words):
    path = tmp_path / ".env"
    path.write_bytes(content)
    with pytest.raises(ImproperlyConfigured, match=rf"\.env.*{words}"):
        list(env.parse_file(path))


def test_env_file_of_windows_is_read(tmp_path):
    path = tmp_path / ".env"
    path.write_bytes('\ufeffA=1 \r\n\r\n# note\r\nB = "x # y" \r\n'.encode())
    assert dict(env.parse_file(path)) == {"A": "1", "B": "x # y"}
