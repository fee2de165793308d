"""Transactions that write money: outermost, and tried again after lock errors only."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import (
    DataError,
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)

from accounts.models import User
from chatproject.lib import db
from chatproject.lib.db import MoneyBusy, money_transaction, transactions
from chatproject.lib.metrics import REGISTRY

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(transactions, "MONEY_PAUSE", 0.001)
    monkeypatch.setattr(transactions, "MONEY_SETTINGS", "SET LOCAL lock_timeout = '50ms'")


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Locked:
    """Another session, which has the lock of a user's row until `let_go` is set."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._has_it, self.let_go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold)

    def __enter__(self) -> Locked:
        self._thread.start()
        self._has_it.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go.set()
        self._thread.join()

    def _hold(self) -> None:
        with transaction.atomic():
            User.objects.select_for_update().get(pk=self._user.pk)
            self._has_it.set()
            self.let_go.wait()
        connections.close_all()


@pytest.fixture
def user() -> User:
    return User.objects.create_user("somebody@example.org")


def test_lock_timeout_is_tried_again_and_counted(user):
    before = counted("parley_money_retries_total", sqlstate="55P03")
    turns = []

    def change() -> str:
        turns.append(1)
        if len(turns) == 3:
            other.let_go.set()
            other._thread.join()
        User.objects.filter(pk=user.pk).update(first_name="Ada")
        return "done"

    with Locked(user) as other:
        assert money_transaction(change) == "done"
    assert len(turns) == 3
    assert counted("parley_money_retries_total", sqlstate="55P03") == before + 2
    user.refresh_from_db()
    assert user.first_name == "Ada"


def test_repeated_lock_timeouts_raise_money_busy(user):
    before = counted("parley_money_busy_total")
    turns = []

    def change() -> None:
        turns.append(1)
        User.objects.create_user(f"{len(turns)}@example.org")
        User.objects.filter(pk=user.pk).update(first_name="Ada")

    with Locked(user), pytest.raises(MoneyBusy):
        money_transaction(change)
    assert len(turns) == transactions.MONEY_TRIES
    assert counted("parley_money_busy_total") == before + 1
    assert User.objects.count() == 1


@pytest.mark.parametrize(
    ("sqlstate", "error"),
    [
        ("40001", None),
        ("40P01", None),
        ("55P03", None),
        ("23505", IntegrityError),
        ("22003", DataError),
        ("57014", OperationalError),
        ("53300", OperationalError),
    ],
)
def test_only_lock_errors_are_tried_again(sqlstate, error):
    turns = []

    def change() -> int:
        turns.append(1)
        if error or len(turns) == 1:
            raise_in_database(sqlstate)
        return len(turns)

    if error is None:
        assert money_transaction(change) == 2
    else:
        with pytest.raises(error):
            money_transaction(change)
        assert len(turns) == 1


def raise_in_database(sqlstate: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"DO $$ BEGIN RAISE 'on purpose' USING ERRCODE = '{sqlstate}'; END $$")


def test_real_deadlock_is_tried_again(monkeypatch):
    users = [User.objects.create_user(f"{name}@example.org") for name in "ab"]
    before = counted("parley_money_retries_total", sqlstate="40P01")
    met = threading.Barrier(2)
    turns: list[int] = []
    committed = threading.Event()

    def change(first: int) -> None:
        turns.append(first)
        if len(turns) > 2:
            # Earlier it could lock the row for which the other one is being woken: a second deadlock.
            committed.wait(20)
        User.objects.filter(pk=users[first].pk).update(first_name=str(first))
        if not committed.is_set():
            met.wait()
        User.objects.filter(pk=users[1 - first].pk).update(last_name=str(first))

    def work(first: int) -> None:
        money_transaction(change, first)
        committed.set()
        connections.close_all()

    patient = "SET LOCAL lock_timeout = '20s'; SET LOCAL deadlock_timeout = '50ms'"
    monkeypatch.setattr(transactions, "MONEY_SETTINGS", patient)
    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(turns) == 3
    assert counted("parley_money_retries_total", sqlstate="40P01") == before + 1
    names = User.objects.order_by("pk").values_list("first_name", "last_name")
    assert list(names) == [("0", "1"), ("1", "0")]


def test_error_after_the_commit_is_not_tried_again(user):
    turns = []

    def change() -> None:
        turns.append(1)
        transaction.on_commit(lambda: raise_in_database("55P03"))
        User.objects.filter(pk=user.pk).update(first_name="Ada")

    with pytest.raises(OperationalError, match="on purpose") as raised:
        money_transaction(change)
    assert not isinstance(raised.value, MoneyBusy)
    assert len(turns) == 1
    user.refresh_from_db()
    assert user.first_name == "Ada"


def test_error_in_after_commit_is_only_logged(user, caplog):
    def change() -> None:
        db.after_commit(raise_in_database, "55P03")
        db.after_commit(done.append, 1)
        User.objects.filter(pk=user.pk).update(first_name="Ada")

    done: list[int] = []
    money_transaction(change)
    assert done == [1]
    assert "on purpose" in caplog.text


def test_money_transaction_must_be_outermost():
    with pytest.raises(RuntimeError), transaction.atomic():
        money_transaction(lambda: None)
    with pytest.raises(RuntimeError):
        money_transaction(lambda: money_transaction(lambda: None))
    assert not db.in_money_transaction()


def test_error_undoes_everything():
    def change() -> None:
        User.objects.create_user("a@example.org")
        assert db.in_money_transaction()
        raise KeyError("a")

    with pytest.raises(KeyError):
        money_transaction(change)
    assert not User.objects.exists()
    assert not db.in_money_transaction()


def test_locks_and_idle_transactions_time_out(monkeypatch):
    monkeypatch.undo()

    def ask() -> Any:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT current_setting('lock_timeout'),"
                " current_setting('idle_in_transaction_session_timeout')"
            )
            return cursor.fetchone()

    assert money_transaction(ask) == ("3s", "10s")
    with transaction.atomic():
        assert ask() == ("0", "0")
