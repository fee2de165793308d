"""Variables are read by type; an error names the one with a wrong value."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from django.core.exceptions import ImproperlyConfigured

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


@pytest.mark.parametrize(
    ("value", "is_set"), [("1", True), ("Yes", True), ("off", False), ("", False)]
)
def test_flag_accepts_usual_words(monkeypatch, value, is_set):
    monkeypatch.setenv("FLAG", value)
    assert env.flag("FLAG", default=not is_set) is is_set
    assert env.flag("OTHER", default=is_set) is is_set


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
]


@pytest.mark.parametrize(("read", "value", "words"), WRONG)
def test_wrong_value_is_refused_by_name(monkeypatch, read, value, words):
    monkeypatch.setenv("NAME", value)
    with pytest.raises(ImproperlyConfigured, match=words):
        read("NAME")


def test_mail_url_becomes_settings(monkeypatch):
    assert env.mail("MAIL", "console://")["MAIL_TRANSPORT"].endswith("console.EmailBackend")
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
    env.load_file(path)
    assert [env.text(name) for name in "ABC"] == ["from environment", "quoted", "x=y"]
    for name in "BC":
        monkeypatch.delenv(name)
    env.load_file(tmp_path / "none")


@pytest.mark.parametrize("line", ["no equals sign", "1A=x", "A B=x"])
def test_wrong_line_of_the_file_is_named(tmp_path, line):
    path = tmp_path / ".env"
    path.write_text(f"OK=1\n{line}\n")
    with pytest.raises(ImproperlyConfigured, match="line 2"):
        list(env.parse_file(path))
