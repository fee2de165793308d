"""`manage.py doctor`: each finding, against real servers in the state that it finds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from io import StringIO
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection
from redis import Redis

from accounts.models import User
from chat.models import Assistant, LanguageModel, Provider
from chatproject import VERSION
from chatproject.local.servers import BASE_DIR
from chatproject.ops import doctor
from chatproject.ops.doctor import (
    Check,
    Finding,
    Level,
    catalogue,
    database,
    machine,
    mail,
    processes,
    provider,
    redis_server,
    sign_in,
)
from tests.chat.llm.test_address import serving
from tests.support import identity_provider, pgbouncer
from tests.support.conversations import begin, send
from tests.support.fake_mail import mail_server
from tests.support.people import assistant, owner
from tests.support.programs import environment
from tests.support.stack import database_url

__all__ = ["assistant", "owner"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def found_by(check: Any, part: str = "") -> list[Finding]:
    """The findings of a check, of one part or of all."""
    findings = list(doctor.examine([Check("x", check, seconds=30.0)]))
    return [finding for finding in findings if part in ("", finding.part)]


def one(check: Any, part: str, level: Level) -> Finding:
    """The only finding about a part; it says what to do unless it is OK."""
    [finding] = found_by(check, part)
    assert finding.level is level, finding
    assert bool(finding.advice) is (level is not Level.OK)
    return finding


def run(*arguments: str) -> tuple[int, str]:
    """The exit code and the output of the command."""
    output = StringIO()
    try:
        call_command("doctor", *arguments, stdout=output, no_color=True)
    except SystemExit as ended:
        return int(str(ended.code)), output.getvalue()
    return 0, output.getvalue()


# --- The command --------------------------------------------------------------------------------


def test_command_reports_all_parts_and_fails_on_problems(settings):
    code, output = run()
    assert code == 1
    assert "problem  catalogue     there is no enabled model" in output
    assert "Run manage.py create_catalogue" in output
    assert "ok       migrations    all are applied" in output
    assert f"ok       versions      Parley {VERSION}" in output
    assert settings.SECRET_KEY not in output
    assert settings.OPENAI_API_KEY not in output


def test_json_has_the_same_findings(settings):
    code, output = run("--json")
    report = json.loads(output)
    assert (code, report["ok"]) == (1, False)
    levels = {finding["part"]: finding["level"] for finding in report["findings"]}
    assert levels["migrations"] == "ok"
    assert {"settings", "database", "redis", "worker", "clock", "provider", "mail", "site"} <= {
        *levels
    }
    assert {*report["findings"][0]} == {"part", "level", "found", "advice"}


def test_late_or_failing_check_is_a_problem():
    def late() -> Iterator[Finding]:
        yield Finding("slow", Level.OK, "begun")
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(2)")
        yield Finding("slow", Level.OK, "ended")

    def failing() -> Iterator[Finding]:
        raise ValueError("on purpose")
        yield

    checks = [Check("slow", late, seconds=0.5), Check("bad", failing), Check("good", list)]
    first, second, third = doctor.examine(checks)
    assert (first.found, second.found) == ("begun", "no answer within 0.5 s")
    assert (third.level, third.found) == (Level.PROBLEM, "the check failed: ValueError: on purpose")


def test_failing_check_names_the_part_it_needs():
    def broken() -> Iterator[Finding]:
        yield Finding("base", Level.PROBLEM, "wrong password")

    def failing() -> Iterator[Finding]:
        yield Finding("other", Level.OK, "begun")
        raise ValueError("on purpose")

    def late() -> Iterator[Finding]:
        time.sleep(1)
        yield Finding("slow", Level.OK, "ended")

    needs = ("base",)
    checks = [
        Check("base", broken),
        Check("other", failing, needs=needs),
        Check("slow", late, seconds=0.2, needs=needs),
        Check("good", lambda: [Finding("good", Level.OK, "works")], needs=needs),
    ]
    found = [(each.part, each.level, each.found) for each in doctor.examine(checks)]
    reason = "not checked, because of the problem with base"
    assert found[1:] == [
        ("other", Level.OK, "begun"),
        ("other", Level.WARNING, reason),
        ("slow", Level.WARNING, reason),
        ("good", Level.OK, "works"),
    ]


# --- Postgres -----------------------------------------------------------------------------------


def test_fitting_database_is_ok():
    found = {finding.part: finding for finding in found_by(database.check)}
    assert found["pooler"].found.startswith("none")
    assert found["encoding"].found.startswith("UTF8")
    assert [part for part, each in found.items() if each.level is Level.PROBLEM] == []


@pytest.mark.parametrize(
    ("changes", "found", "advice"),
    [
        ({"PORT": "9"}, "refused", "Start Postgres"),
        ({"HOST": "no-such-host.invalid"}, "no-such-host", "Start Postgres"),
        ({"NAME": "nowhere"}, "nowhere", "CREATE DATABASE"),
        ({"USER": "stranger"}, "stranger", "CREATE ROLE"),
    ],
)
def test_unreachable_database_is_a_problem_with_its_reason(monkeypatch, changes, found, advice):
    for name, value in changes.items():
        monkeypatch.setitem(connection.settings_dict, name, value)
    finding = one(database.check, "database", Level.PROBLEM)
    assert found in finding.found
    assert advice in finding.advice


@pytest.fixture
def cursor() -> Iterator[Any]:
    """A cursor of another session, in autocommit."""
    with psycopg.connect(database_url(), autocommit=True) as session:
        yield session.cursor()


def test_role_without_rights_is_a_problem(cursor, monkeypatch):
    cursor.execute("CREATE ROLE doctor_test LOGIN PASSWORD 'x'")
    try:
        cursor.execute("GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO doctor_test")
        cursor.execute("GRANT UPDATE, DELETE ON chat_message TO doctor_test")
        for name in ("USER", "PASSWORD"):
            monkeypatch.setitem(
                connection.settings_dict, name, {"USER": "doctor_test", "PASSWORD": "x"}[name]
            )
        finding = one(database.check, "rights", Level.PROBLEM)
        assert "DELETE on account_emailaddress" in finding.found
        cursor.execute("GRANT UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO doctor_test")
        # As docs/operations/money.md advises.
        cursor.execute("REVOKE UPDATE, DELETE ON billing_ledgerentry FROM doctor_test")
        one(database.check, "rights", Level.OK)
        assert [f.found for f in found_by(database.check, "database") if f.advice] == []
        cursor.execute("ALTER ROLE doctor_test SET default_transaction_read_only = on")
        levels = {f.level for f in found_by(database.check, "database")}
        assert Level.PROBLEM in levels
    finally:
        cursor.execute("DROP OWNED BY doctor_test; DROP ROLE doctor_test")


@pytest.mark.parametrize(
    ("change", "part", "advice"),
    [
        ("ALTER ROLE doctor_test NOLOGIN", "database", "ALTER ROLE parley LOGIN"),
        ("ALTER ROLE doctor_test CONNECTION LIMIT 0", "database", "CONNECTION LIMIT -1"),
        ("ALTER ROLE doctor_test SET statement_timeout = '1ms'", "database", "statement_timeout"),
        (
            "ALTER ROLE doctor_test SET default_transaction_isolation = serializable",
            "database",
            "read committed",
        ),
        ("ALTER ROLE doctor_test SET search_path = nowhere", "rights", "GRANT USAGE ON SCHEMA"),
    ],
)
def test_wrong_state_of_the_role_is_named(cursor, monkeypatch, change, part, advice):
    cursor.execute("CREATE ROLE doctor_test LOGIN PASSWORD 'x'")
    try:
        cursor.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO doctor_test")
        cursor.execute(change)
        monkeypatch.setitem(connection.settings_dict, "USER", "doctor_test")
        monkeypatch.setitem(connection.settings_dict, "PASSWORD", "x")
        found = [finding.advice for finding in found_by(database.check, part)]
        assert any(advice in each for each in found), found
    finally:
        cursor.execute("DROP OWNED BY doctor_test; DROP ROLE doctor_test")


def test_database_without_case_or_rights_is_named(cursor, monkeypatch):
    """As Debian creates it in a system without locales, and since Postgres 15 for a role of no rights."""
    cursor.execute("CREATE ROLE doctor_test LOGIN PASSWORD 'x'")
    try:
        cursor.execute(
            "CREATE DATABASE doctor_test TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER libc LOCALE 'C'"
        )
        for name, value in {"NAME": "doctor_test", "USER": "doctor_test", "PASSWORD": "x"}.items():
            monkeypatch.setitem(connection.settings_dict, name, value)
        assert "C.UTF-8" in one(database.check, "encoding", Level.WARNING).advice
        assert "OWNER" in one(database.check, "rights", Level.PROBLEM).advice
    finally:
        cursor.execute("DROP DATABASE IF EXISTS doctor_test WITH (FORCE)")
        cursor.execute("DROP ROLE doctor_test")


def test_migrations_of_another_version_are_reported(cursor):
    cursor.execute(
        "INSERT INTO django_migrations (app, name, applied) VALUES ('chat', '9999_newer', now())"
    )
    try:
        finding = one(database.check, "migrations", Level.WARNING)
        assert "chat.9999_newer" in finding.found
    finally:
        cursor.execute("DELETE FROM django_migrations WHERE name = '9999_newer'")


@pgbouncer.needed
@pytest.mark.parametrize(
    ("mode", "part", "level", "words"),
    [
        ("transaction", "pooler", Level.OK, "pooling by transaction"),
        ("session", "pooler", Level.OK, "pooling by session"),
        ("statement", "database", Level.PROBLEM, "statement pooling"),
    ],
)
def test_pooler_is_found_with_its_mode(server_folder, monkeypatch, mode, part, level, words):
    pooler = pgbouncer.PgBouncer(server_folder, database_url(), mode=mode)
    pooler.start()
    try:
        monkeypatch.setitem(connection.settings_dict, "PORT", str(pooler.port))
        assert words in one(database.check, part, level).found
    finally:
        pooler.stop()


# --- Redis --------------------------------------------------------------------------------------


@pytest.fixture
def valkey(own_valkey, settings) -> Iterator[Redis]:
    """A Valkey of this test's own, which the checks use."""
    settings.REDIS_URL = own_valkey.url
    settings.CHANNEL_LAYERS = {"default": {"CONFIG": {"hosts": [own_valkey.url]}}}
    with Redis.from_url(own_valkey.url) as client:
        yield client


def test_fresh_valkey_is_ok(valkey):
    assert {finding.level for finding in found_by(redis_server.check)} == {Level.OK}


def test_evicting_redis_is_a_problem(valkey):
    valkey.config_set("maxmemory-policy", "allkeys-lru")
    assert "allkeys-lru" in one(redis_server.check, "redis memory", Level.WARNING).found
    valkey.config_set("maxmemory", "100mb")
    assert "noeviction" in one(redis_server.check, "redis memory", Level.PROBLEM).advice


def test_full_redis_is_a_problem(valkey):
    valkey.config_set("maxmemory", "500kb")
    assert "Raise maxmemory" in one(redis_server.check, "redis memory", Level.PROBLEM).advice


def test_foreign_keys_are_reported_by_their_prefix(valkey):
    valkey.set("celery-task-meta-1:secret", "x")
    valkey.set("run:1:log", "x")
    finding = one(redis_server.check, "redis keys", Level.WARNING)
    assert "celery-task-meta-1" in finding.found
    assert "secret" not in finding.found
    assert "run" not in finding.found


def test_second_parley_on_the_server_is_a_problem(valkey, own_valkey):
    with Redis.from_url(own_valkey.url.replace("/0", "/3")) as other:
        other.hset("loops", "host:1", "{}")
    finding = one(redis_server.check, "redis keys", Level.PROBLEM)
    assert "database 3" in finding.found


def test_replica_is_a_problem(valkey):
    valkey.replicaof("127.0.0.1", 9)
    assert "replica" in one(redis_server.check, "redis", Level.PROBLEM).found


@pytest.mark.parametrize(
    ("password", "advice"), [("wrong", "Correct user and password"), ("", "Correct user")]
)
def test_refused_password_is_a_problem(valkey, settings, password, advice):
    valkey.config_set("requirepass", "right")
    settings.REDIS_URL = settings.REDIS_URL.replace("redis://", f"redis://:{password}@")
    finding = one(redis_server.check, "redis", Level.PROBLEM)
    assert advice in finding.advice
    assert "wrong" not in finding.found


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        (("ACL", "SETUSER", "default", "-@scripting"), "Allow this user all commands"),
        (("ACL", "SETUSER", "default", "resetkeys", "~run:*"), "Allow this user all commands"),
        (("ACL", "SETUSER", "default", "resetchannels"), "Allow this user all commands"),
        (("CONFIG", "SET", "min-replicas-to-write", "1"), "min-replicas-to-write 0"),
    ],
)
def test_redis_that_refuses_commands_is_a_problem(valkey, changes, advice):
    valkey.execute_command(*changes)
    assert advice in found_by(redis_server.check, "redis")[-1].advice


def test_unreachable_redis_is_a_problem(settings):
    settings.REDIS_URL = "redis://127.0.0.1:9/0"
    settings.CHANNEL_LAYERS = {"default": {"CONFIG": {"hosts": ["redis://127.0.0.1:9/1"]}}}
    assert "refused" in one(redis_server.check, "redis", Level.PROBLEM).found
    assert "CHANNEL_LAYER_URLS" in one(redis_server.check, "live events", Level.PROBLEM).found


# --- Processes ------------------------------------------------------------------------------------


def test_missing_processes_are_problems(owner, assistant):
    run = send(owner, begin(owner, assistant), "Hello")
    type(run).objects.filter(pk=run.pk).update(queued_at="2026-01-01T00:00Z")
    workers = found_by(processes.check_workers, "worker")
    assert [finding.level for finding in workers] == [Level.PROBLEM] * 3
    assert all("manage.py rqworker" in finding.advice for finding in workers)
    one(processes.check_workers, "queue", Level.WARNING)
    assert "manage.py clock" in one(processes.check_clock, "clock", Level.PROBLEM).advice


# --- This machine -----------------------------------------------------------------------------------


def test_static_files_must_be_collected_from_this_version(tmp_path):
    variables = environment(
        STATIC_MANIFEST="1", STATIC_ROOT=str(tmp_path), DATABASE_URL=database_url()
    )

    def finding() -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "manage.py", "doctor", "--json"],
            cwd=BASE_DIR,
            env=variables,
            stdout=subprocess.PIPE,
            timeout=120,
        )
        findings = json.loads(done.stdout)["findings"]
        [found] = [each for each in findings if each["part"] == "static files"]
        return found["level"], found["found"] + found["advice"]

    level, words = finding()
    assert level == "problem"
    assert "no staticfiles.json" in words
    collect = [sys.executable, "manage.py", "collectstatic", "--noinput", "--verbosity", "0"]
    subprocess.run(collect, cwd=BASE_DIR, env=variables, check=True, timeout=120)
    assert finding()[0] == "ok"
    with (tmp_path / "css" / "base.css").open("a") as copy:
        copy.write("/* of another version */")
    level, words = finding()
    assert level == "problem"
    assert "css/base.css" in words
    assert "collectstatic" in words


@pytest.mark.parametrize(
    ("skew", "level"), [(0.5, Level.OK), (-3.0, Level.WARNING), (60.0, Level.PROBLEM)]
)
def test_skewed_clock_is_reported(skew, level):
    """A clock that differs by seconds makes living workers look dead."""
    one(machine.check_time, "time", Level.OK)
    finding = machine.judge_skews({"Postgres": 0.0, "Redis": skew})
    assert finding.level is level
    assert f"Postgres +0.0 s, Redis {skew:+.1f} s" in finding.found


def test_full_disk_is_a_problem(monkeypatch):
    assert {finding.part for finding in found_by(machine.check_disk)} == {"disk"}
    monkeypatch.setattr(machine, "NO_SPACE", 2**62)
    full = found_by(machine.check_disk)
    assert {finding.level for finding in full} == {Level.PROBLEM}
    assert "GB free" in full[0].found


# --- The catalogue --------------------------------------------------------------------------------


def test_catalogue_without_its_parts_is_a_problem(assistant):
    one(catalogue.check, "catalogue", Level.OK)
    one(catalogue.check, "staff", Level.WARNING)
    User.objects.create_superuser("staff@example.org", "correct horse battery")
    assert found_by(catalogue.check, "staff") == []
    LanguageModel.objects.update(provider_model="unpriced")
    assert "price" in one(catalogue.check, "catalogue", Level.PROBLEM).found
    Provider.objects.create(name="Off", base_url="https://api.example.org/v1", enabled=False)
    LanguageModel.objects.update(provider=Provider.objects.get())
    assert "disabled" in one(catalogue.check, "catalogue", Level.PROBLEM).found
    Assistant.objects.update(enabled=False)
    assert "assistant" in one(catalogue.check, "catalogue", Level.PROBLEM).found
    LanguageModel.objects.update(enabled=False)
    assert "create_catalogue" in one(catalogue.check, "catalogue", Level.PROBLEM).advice
    Assistant.objects.all().delete()
    LanguageModel.objects.all().delete()
    Provider.objects.all().delete()
    call_command("create_catalogue", stdout=StringIO())
    one(catalogue.check, "catalogue", Level.OK)


# --- Mail -----------------------------------------------------------------------------------------


@pytest.fixture
def server(settings) -> Iterator[Any]:
    """A mail server, and the settings to send through it."""
    with mail_server() as server:
        settings.EMAIL_BACKEND = "chatproject.lib.mail.backend.OutboxBackend"
        settings.MAIL_TRANSPORT = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", server.port
        settings.DEFAULT_FROM_EMAIL = "Parley <chat@example.org>"
        yield server


def test_mail_server_is_asked_without_sending(server):
    finding = one(mail.check, "mail", Level.OK)
    assert "accepts mails from Parley" in finding.found
    assert server.sessions == 1
    assert server.received == []


@pytest.mark.parametrize(
    ("answers", "changes", "advice"),
    [
        ({"MAIL": "550 no"}, {}, "DEFAULT_FROM_EMAIL"),
        ({}, {"EMAIL_USE_TLS": True}, "tls=0"),
        ({}, {"EMAIL_USE_SSL": True}, "smtps://"),
        ({}, {"EMAIL_PORT": 9}, "host and port"),
        (
            {"EHLO": "250-fake\r\n250 AUTH PLAIN", "AUTH": "535 no"},
            {"EMAIL_HOST_USER": "me"},
            "%40",
        ),
    ],
    ids=["sender", "STARTTLS", "TLS", "port", "password"],
)
def test_refusing_mail_server_is_a_problem(server, settings, answers, changes, advice):
    server.answers |= answers
    settings.EMAIL_HOST_PASSWORD = "s3cret" if "EMAIL_HOST_USER" in changes else ""
    for name, value in changes.items():
        setattr(settings, name, value)
    finding = found_by(mail.check, "mail")[0]
    assert finding.level is Level.PROBLEM
    assert advice in finding.advice
    assert "s3cret" not in finding.found


def test_site_without_mail_is_ok(settings):
    settings.EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"
    one(mail.check, "mail", Level.OK)


# --- The provider ---------------------------------------------------------------------------------


def test_unreachable_provider_is_a_problem(settings):
    finding = one(provider.check, "provider", Level.PROBLEM)
    assert "127.0.0.1:9" in finding.found
    assert "OPENAI_BASE_URL" in finding.advice
    assert settings.OPENAI_API_KEY not in finding.found


def test_each_enabled_provider_is_asked():
    with serving() as server:
        right = Provider(name="Right", base_url=server.url("/v1"))
        right.key = "s3cret-of-right"
        wrong = Provider(name="Wrong", base_url="http://127.0.0.1:9/v1", encrypted_key="broken")
        off = Provider(name="Off", base_url="http://127.0.0.1:9/", enabled=False)
        for row in (right, wrong, off):
            row.save()
        for name in ("small", "gone"):
            LanguageModel.objects.create(name=name, provider_model=name, provider=right)
        fine, unlisted, undecryptable = found_by(provider.check, "provider")
    assert (fine.level, fine.found.partition(":")[0]) == (Level.OK, "Right")
    assert (unlisted.level, unlisted.found) == (Level.WARNING, "Right does not list gone")
    assert undecryptable.found.startswith("Wrong: ")
    assert "ENCRYPTION_KEYS" in undecryptable.advice


# --- Secrets --------------------------------------------------------------------------------------


def test_no_finding_has_a_secret(server, own_valkey):
    """Right or wrong, none of the passwords and keys is printed."""
    secrets = [f"s3cret-{name}" for name in ("db", "redis", "mail", "model", "django")]
    database, redis_password, mail_password, model, django = secrets
    with Redis.from_url(own_valkey.url) as client:
        client.config_set("requirepass", redis_password)
    server.answers |= {"EHLO": "250-fake\r\n250 AUTH PLAIN", "AUTH": f"535 no {mail_password}"}
    right = own_valkey.url.replace("redis://", f"redis://:{redis_password}@")
    for redis_url in (
        right,
        right.replace(redis_password, f"{redis_password}-wrong"),
        "redis://a:1",
    ):
        done = subprocess.run(
            [sys.executable, "manage.py", "doctor"],
            cwd=BASE_DIR,
            env=environment(
                DATABASE_URL=f"postgres://stranger:{database}@127.0.0.1:{connection.settings_dict['PORT']}/x",
                REDIS_URL=redis_url,
                EMAIL_URL=f"smtp://me:{mail_password}@127.0.0.1:{server.port}?tls=0",
                OPENAI_API_KEY=model,
                SECRET_KEY=django * 5,
            ),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 1
        assert "problem  database" in done.stdout
        assert "Traceback" not in done.stderr
        assert [secret for secret in secrets if secret in done.stdout + done.stderr] == []


def test_identity_providers_are_asked(settings):
    assert found_by(sign_in.check) == []
    settings.SITE_URL = "https://chat.example.org"
    with identity_provider.running() as issuer:
        settings.OIDC_ISSUER, settings.OIDC_CLIENT_ID = issuer.address, "parley"
        settings.GITHUB_URL, settings.GITHUB_CLIENT_ID = issuer.address, "parley"
        back = "https://chat.example.org/accounts/login/with/{}/callback/"
        found = found_by(sign_in.check, "sign-in")
        assert [one.level for one in found] == [Level.OK, Level.OK]
        for key, finding in zip(("oidc", "github"), found, strict=True):
            assert back.format(key) in finding.found
        settings.GITHUB_CLIENT_ID = ""
        issuer.issuer = "https://other.example.org"
        wrong = one(sign_in.check, "sign-in", Level.PROBLEM)
        assert "https://other.example.org" in wrong.found
    unreachable = one(sign_in.check, "sign-in", Level.PROBLEM)
    assert "OIDC_ISSUER" in unreachable.advice
