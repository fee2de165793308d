"""Comparison of Parley's parser of WhatsApp exports with whatstk, where that is installed.

    python -m bench.whatsapp                      which of the test exports each reads right, time and memory
    python -m bench.whatsapp --messages 500000    time and memory for so many messages

Of whatstk's reading only senders, times and texts are compared, and marks and Unicode forms not at all: it
has no kinds of messages, drops system lines, and folds characters.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from chat.documents.parsing import whatsapp
from chat.documents.statistics import chats
from tests.support.chat_exports import EXPORTS, LRM, RLM, Export, large

Row = tuple[str, str, str]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--messages", type=int, default=50_000)
    options.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--by", choices=list(READERS), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.read:
        _time(chosen.by, chosen.read)
        return
    has_whatstk = importlib.util.find_spec("whatstk") is not None
    systems = ["parley", *(["whatstk"] if has_whatstk else [])]
    if not has_whatstk:
        print("whatstk is not installed: pip install whatstk msgspec emoji in another environment")
    right = dict.fromkeys(systems, 0)
    with tempfile.TemporaryDirectory() as folder:
        for export in EXPORTS:
            verdicts = []
            for system in systems:
                verdict = _verdict(system, export, Path(folder))
                right[system] += verdict == "right"
                verdicts.append(f"{system}: {verdict}")
            print(f"{export.name:68} {'  '.join(verdicts)}")
    for system in systems:
        print(f"{system}: {right[system]} of {len(EXPORTS)} exports right", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chat.txt"
        path.write_text(large(chosen.messages))
        for system in systems:
            # Each in a process of its own, whose memory is its own.
            subprocess.run(
                [sys.executable, "-m", "bench.whatsapp", "--read", str(path), "--by", system],
                check=True,
            )


def _verdict(system: str, export: Export, folder: Path) -> str:
    path = folder / "chat.txt"
    path.write_bytes(export.text.encode())
    expected = [
        _row(sender, at, text) for kind, sender, at, text in export.blocks if kind != "system"
    ]
    try:
        found = list(READERS[system](path, export.options))
    except Exception as error:  # noqa: BLE001 # any failure is a verdict of the comparison
        return type(error).__name__
    if found == expected:
        return "right"
    wrong = sum(one != other for one, other in zip(found, expected, strict=False))
    return f"{wrong + abs(len(found) - len(expected))} of {len(expected)} wrong"


def _parley(path: Path, options: dict[str, str]) -> Iterable[Row]:
    for block in whatsapp.parse(str(path), options):
        if block["kind"] not in ("system", "notes"):
            yield _row(block["sender"], block["sent_at"].removesuffix("+00:00"), block["text"])


def _whatstk(path: Path, _options: dict[str, str]) -> Iterable[Row]:
    from whatstk.whatsapp.parser import df_from_whatsapp  # type: ignore[import-not-found]

    warnings.simplefilter("ignore")
    for row in df_from_whatsapp(str(path)).itertuples():
        yield _row(row.username, row.date.isoformat(), row.message)


READERS: dict[str, Callable[[Path, dict[str, str]], Iterable[Row]]] = {
    "parley": _parley,
    "whatstk": _whatstk,
}


def _row(sender: str, at: str, text: str) -> Row:
    text = unicodedata.normalize("NFKC", text).replace(LRM, "").replace(RLM, "")
    # An edited message's mark is taken away by Parley alone.
    text = text.removesuffix(" <Diese Nachricht wurde bearbeitet.>").strip()
    return sender.lstrip("~ \u202f"), datetime.fromisoformat(at).isoformat(), text


def _time(system: str, path: Path) -> None:
    started, cpu = time.monotonic(), time.process_time()
    count = 0
    if system == "parley":
        statistics = chats.ChatStatistics()
        for block in whatsapp.parse(str(path), {}):
            statistics.add(block)
            count += block["kind"] != "notes"
        statistics.result()
    else:
        count = sum(1 for _row in READERS[system](path, {}))
    wall, cpu = time.monotonic() - started, time.process_time() - cpu
    # Not ru_maxrss, which a process inherits.
    status = Path("/proc/self/status").read_text()
    memory = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    note = ", with the statistics" if system == "parley" else ""
    print(f"{system}: {count} messages in {wall:.1f} s ({cpu:.1f} s of CPU), {memory:.0f} MB{note}")


if __name__ == "__main__":
    main()
