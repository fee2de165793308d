"""Every variable is read with a clear error when it cannot be right."""

from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured

from chatproject.lib import env


def test_text_and_its_default(monkeypatch):
    monkeypatch.setenv("NAME", "  value ")
    assert env.text("NAME") == "value"
    assert env.text("OTHER", "default") == "default"


def test_a_secret_comes_from_a_file(monkeypatch, tmp_path):
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
def test_flags(monkeypatch, value, is_set):
    monkeypatch.setenv("FLAG", value)
    assert env.flag("FLAG", default=not is_set) is is_set


def test_a_flag_that_is_neither_is_told(monkeypatch):
    monkeypatch.setenv("FLAG", "maybe")
    with pytest.raises(ImproperlyConfigured, match="FLAG"):
        env.flag("FLAG", default=True)
    assert env.flag("OTHER", default=True) is True


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "0"])
def test_a_number_that_is_none_or_too_small_is_told(monkeypatch, value):
    monkeypatch.setenv("NUMBER", value)
    with pytest.raises(ImproperlyConfigured, match="NUMBER"):
        env.integer("NUMBER", 5, least=1)


def test_numbers_and_words(monkeypatch):
    monkeypatch.setenv("NUMBER", "7")
    monkeypatch.setenv("WORDS", "a, b,,c ")
    assert env.integer("NUMBER", 5) == 7
    assert env.integer("OTHER", 5) == 5
    assert env.words("WORDS") == ["a", "b", "c"]


def test_a_url_of_another_kind_is_told(monkeypatch):
    monkeypatch.setenv("REDIS", "http://host")
    with pytest.raises(ImproperlyConfigured, match="redis://"):
        env.url("REDIS", "", schemes=("redis",))


def test_a_database_url(monkeypatch):
    monkeypatch.setenv("DB", "postgres://me:p%40ss@host:5433/parley?sslmode=require")
    entry = env.database("DB")
    assert entry["NAME"] == "parley"
    assert (entry["USER"], entry["PASSWORD"]) == ("me", "p@ss")
    assert (entry["HOST"], entry["PORT"]) == ("host", "5433")
    assert entry["OPTIONS"] == {"sslmode": "require"}


@pytest.mark.parametrize(
    "value", ["", "mysql://host/db", "postgres://host:port/db", "postgres://host:5432/"]
)
def test_a_database_url_that_cannot_be_right_is_told(monkeypatch, value):
    monkeypatch.setenv("DB", value)
    with pytest.raises(ImproperlyConfigured, match="DB"):
        env.database("DB")


def test_mail(monkeypatch):
    assert env.mail("MAIL")["EMAIL_BACKEND"].endswith("console.EmailBackend")
    monkeypatch.setenv("MAIL", "smtp://me:secret@mail.example.org")
    entry = env.mail("MAIL")
    assert (entry["EMAIL_HOST"], entry["EMAIL_PORT"]) == ("mail.example.org", 587)
    assert (entry["EMAIL_USE_TLS"], entry["EMAIL_USE_SSL"]) == (True, False)
    monkeypatch.setenv("MAIL", "smtps://mail.example.org")
    entry = env.mail("MAIL")
    assert (entry["EMAIL_PORT"], entry["EMAIL_USE_TLS"], entry["EMAIL_USE_SSL"]) == (
        465,
        False,
        True,
    )


def test_a_file_fills_in_what_the_environment_does_not_have(monkeypatch, tmp_path):
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
def test_a_line_of_the_file_that_is_no_pair_is_told(tmp_path, line):
    path = tmp_path / ".env"
    path.write_text(f"OK=1\n{line}\n")
    with pytest.raises(ImproperlyConfigured, match="line 2"):
        list(env.parse_file(path))
