"""Exports of WhatsApp as phones write them in many countries, with the messages that a reader finds in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

LRM = "\u200e"
RLM = "\u200f"
NARROW = "\u202f"
NO_BREAK = "\u00a0"

Expected = tuple[str, str, str, str]  # kind, sender, time, text


@dataclass(frozen=True)
class Export:
    """An export and its blocks; `is_sure` of the order of day and month."""

    name: str
    text: str
    blocks: list[Expected]
    is_sure: bool = True
    options: dict[str, str] = field(default_factory=dict)


def _simple(name: str, headers: list[tuple[str, str]], senders: tuple[str, str], **more) -> Export:
    """Return an export of one message for each (header, time), by two people in turn."""
    lines, blocks = [], []
    for index, (header, time) in enumerate(headers):
        sender, text = senders[index % 2], f"Number {index}: ok?"
        lines.append(f"{header}{sender}: {text}")
        blocks.append(("message", sender, time, text))
    return Export(name, "\n".join(lines) + "\n", blocks, **more)


EXPORTS = [
    Export(
        "android, German, with all kinds",
        "12.03.24, 09:58 - Nachrichten und Anrufe sind Ende-zu-Ende-verschlüsselt. Tippe, um mehr zu erfahren.\n"
        "12.03.24, 09:58 - Anna hat die Gruppe \"Reise: Rom\" erstellt\n"
        "12.03.24, 10:15 - Anna: Guten Morgen\nzweite Zeile\n\nvierte Zeile\n"
        "12.03.24, 10:16 - Ben: <Medien ausgeschlossen>\n"
        "12.03.24, 10:17 - Ben: Diese Nachricht wurde gelöscht.\n"
        "12.03.24, 10:18 - Anna: Bis später <Diese Nachricht wurde bearbeitet.>\n"
        f"12.03.24, 10:19 - Anna: {LRM}IMG-20240312-WA0001.jpg (Datei angehängt)\nVom Balkon\n"
        "12.03.24, 10:20 - Ben: UMFRAGE:\nPizza?\nOPTION: Ja (2 Stimmen)\nOPTION: Nein (0 Stimmen)\n\n"
        "31.03.24, 23:59 - Anna: https://example.org/a?b=c: schau\n"
        "01.04.24, 00:00 - +49 170 1234567: neu hier\n"
        "01.04.24, 00:01 - Ben hat Anna hinzugefügt\n",
        [
            ("system", "", "2024-03-12T09:58:00", "Nachrichten und Anrufe sind Ende-zu-Ende-verschlüsselt. Tippe, um mehr zu erfahren."),
            ("system", "", "2024-03-12T09:58:00", 'Anna hat die Gruppe "Reise: Rom" erstellt'),
            ("message", "Anna", "2024-03-12T10:15:00", "Guten Morgen\nzweite Zeile\n\nvierte Zeile"),
            ("media", "Ben", "2024-03-12T10:16:00", "<Medien ausgeschlossen>"),
            ("deleted", "Ben", "2024-03-12T10:17:00", "Diese Nachricht wurde gelöscht."),
            ("message", "Anna", "2024-03-12T10:18:00", "Bis später"),
            ("media", "Anna", "2024-03-12T10:19:00", "IMG-20240312-WA0001.jpg (Datei angehängt)\nVom Balkon"),
            ("poll", "Ben", "2024-03-12T10:20:00", "UMFRAGE:\nPizza?\nOPTION: Ja (2 Stimmen)\nOPTION: Nein (0 Stimmen)"),
            ("message", "Anna", "2024-03-31T23:59:00", "https://example.org/a?b=c: schau"),
            ("message", "+49 170 1234567", "2024-04-01T00:00:00", "neu hier"),
            ("system", "", "2024-04-01T00:01:00", "Ben hat Anna hinzugefügt"),
        ],
    ),
    Export(
        "iOS, German group",
        f"[12.03.24, 10:15:33] Reise: {LRM}Nachrichten und Anrufe sind Ende-zu-Ende-verschlüsselt.\r\n"
        f"{LRM}[12.03.24, 10:15:40] ~{NARROW}Anna: {LRM}Bild weggelassen\r\n"
        "[12.03.24, 10:16:01] Ben 🦊: Schön! 😀👍🏽\r\n"
        f"{LRM}[13.03.24, 08:00:00] Ben 🦊: Hinweg {LRM}<Anhang: 00000012-PHOTO-2024-03-13-08-00-00.jpg>\r\n"
        f"[13.03.24, 08:01:00] ~{NARROW}Anna: Neu geschrieben {LRM}<Diese Nachricht wurde bearbeitet.>\r\n"
        f"{LRM}[13.03.24, 08:02:00] Ben 🦊: {LRM}Du hast diese Nachricht gelöscht.\r\n"
        f"{LRM}[13.03.24, 08:03:00] Ben 🦊: {LRM}Ben 🦊 hat Cem hinzugefügt\r\n"
        f"{LRM}[13.03.24, 08:04:00] Ben 🦊: Liste.pdf • {LRM}3 Seiten {LRM}Dokument weggelassen\r\n"
        f"{LRM}[13.03.24, 08:05:00] Ben 🦊: {LRM}UMFRAGE:\nWann?\n{LRM}OPTION: Heute (1 Stimme)\r\n",
        [
            ("system", "", "2024-03-12T10:15:33", "Nachrichten und Anrufe sind Ende-zu-Ende-verschlüsselt."),
            ("media", "Anna", "2024-03-12T10:15:40", "Bild weggelassen"),
            ("message", "Ben 🦊", "2024-03-12T10:16:01", "Schön! 😀👍🏽"),
            ("media", "Ben 🦊", "2024-03-13T08:00:00", "Hinweg <Anhang: 00000012-PHOTO-2024-03-13-08-00-00.jpg>"),
            ("message", "Anna", "2024-03-13T08:01:00", "Neu geschrieben"),
            ("deleted", "Ben 🦊", "2024-03-13T08:02:00", "Du hast diese Nachricht gelöscht."),
            ("system", "", "2024-03-13T08:03:00", "Ben 🦊 hat Cem hinzugefügt"),
            ("media", "Ben 🦊", "2024-03-13T08:04:00", "Liste.pdf • 3 Seiten Dokument weggelassen"),
            ("poll", "Ben 🦊", "2024-03-13T08:05:00", "UMFRAGE:\nWann?\nOPTION: Heute (1 Stimme)"),
        ],
    ),
    _simple(
        "iOS, United States, narrow spaces before PM",
        [
            (f"[3/12/24, 12:05:00{NARROW}AM] ", "2024-03-12T00:05:00"),
            (f"[3/12/24, 12:05:00{NARROW}PM] ", "2024-03-12T12:05:00"),
            (f"[3/13/24, 9:15:10{NARROW}PM] ", "2024-03-13T21:15:10"),
        ],
        ("Anna", "Ben O'Hara"),
    ),
    _simple(
        "Android, United States, ambiguous days in sequence",
        [
            (f"5/6/24, 9:15{NARROW}AM - ", "2024-05-06T09:15:00"),
            (f"5/7/24, 9:15{NARROW}PM - ", "2024-05-07T21:15:00"),
            (f"5/8/24, 10:15{NARROW}AM - ", "2024-05-08T10:15:00"),
        ],
        ("Anna", "Ben"),
        is_sure=False,
    ),
    _simple(
        "Android, India, ambiguous days in sequence, lower case",
        [
            (f"05/06/24, 9:15{NARROW}am - ", "2024-06-05T09:15:00"),
            (f"06/06/24, 9:15{NARROW}pm - ", "2024-06-06T21:15:00"),
            (f"07/06/24, 12:15{NARROW}am - ", "2024-06-07T00:15:00"),
        ],
        ("Anna", "Ben"),
        is_sure=False,
    ),
    _simple(
        "iOS, United Kingdom, told by the order of time",
        [
            ("[10/01/2024, 10:15:33] ", "2024-01-10T10:15:33"),
            ("[11/01/2024, 10:15:33] ", "2024-01-11T10:15:33"),
            ("[05/02/2024, 10:15:33] ", "2024-02-05T10:15:33"),
        ],
        ("Anna", "Ben"),
    ),
    _simple(
        "Android, Spain, twelve hours with dots and spaces",
        [
            (f"13/3/24, 9:15{NARROW}a.{NO_BREAK}m. - ", "2024-03-13T09:15:00"),
            (f"13/3/24, 12:00{NARROW}p.{NO_BREAK}m. - ", "2024-03-13T12:00:00"),
            (f"1/4/24, 12:30{NARROW}a.{NO_BREAK}m. - ", "2024-04-01T00:30:00"),
        ],
        ("Ana María", "José"),
    ),
    _simple(
        "Android, France",
        [("31/01/2024 à 10:15 - ", "2024-01-31T10:15:00"), ("01/02/2024 à 07:00 - ", "2024-02-01T07:00:00")],
        ("Zoé", "Loïc"),
    ),
    _simple(
        "Android, Brazil, without a comma",
        [("31/01/2024 10:15 - ", "2024-01-31T10:15:00"), ("01/02/2024 22:00 - ", "2024-02-01T22:00:00")],
        ("João", "Luísa"),
    ),
    _simple(
        "iOS, Netherlands, dashes",
        [("[31-01-2024 10:15:33] ", "2024-01-31T10:15:33"), ("[01-02-2024 22:00:01] ", "2024-02-01T22:00:01")],
        ("Jan", "Saskia de Vries"),
    ),
    _simple(
        "Android, Sweden, year first",
        [("2024-01-02 10:15 - ", "2024-01-02T10:15:00"), ("2024-02-01 22:00 - ", "2024-02-01T22:00:00")],
        ("Åsa", "Björn"),
    ),
    _simple(
        "Android, Finland, dots in the time",
        [("31.1.2024 klo 9.05 - ", "2024-01-31T09:05:00"), ("1.2.2024 klo 22.00 - ", "2024-02-01T22:00:00")],
        ("Aino", "Väinö"),
    ),
    _simple(
        "Android, Hungary, dots and spaces",
        [("2024. 01. 02. 10:15 - ", "2024-01-02T10:15:00"), ("2024. 02. 01. 22:00 - ", "2024-02-01T22:00:00")],
        ("Ágnes", "Ödön"),
    ),
    _simple(
        "iOS, China, time of day in front",
        [
            ("[2024/1/2 上午12:15:33] ", "2024-01-02T00:15:33"),
            ("[2024/1/2 下午1:15:33] ", "2024-01-02T13:15:33"),
            ("[2024/1/3 晚上10:15:33] ", "2024-01-03T22:15:33"),
        ],
        ("小明", "李华"),
    ),
    _simple(
        "Android, Korea, two-digit years in front",
        [
            ("24. 1. 2. 오전 10:15 - ", "2024-01-02T10:15:00"),
            ("24. 1. 2. 오후 1:15 - ", "2024-01-02T13:15:00"),
            ("24. 1. 13. 오후 1:15 - ", "2024-01-13T13:15:00"),
        ],
        ("민수", "지영"),
    ),
    _simple(
        "iOS, Egypt, digits, comma and times of day in Arabic",
        [
            (f"[٣١{RLM}/١{RLM}/٢٠٢٤، ١٠:١٥:٣٣ ص] ", "2024-01-31T10:15:33"),
            (f"[١{RLM}/٢{RLM}/٢٠٢٤، ١:١٥:٣٣ م] ", "2024-02-01T13:15:33"),
        ],
        ("أحمد", "ليلى"),
    ),
    Export(
        "iOS, Brazil, files that were left out",
        f"[31/01/2024, 22:15:33] João: {LRM}imagem ocultada\n"
        f"[31/01/2024, 22:16:33] Luísa: {LRM}áudio ocultado\n"
        f"[01/02/2024, 08:00:01] João: Oi {LRM}<Mensagem editada>\n",
        [
            ("media", "João", "2024-01-31T22:15:33", "imagem ocultada"),
            ("media", "Luísa", "2024-01-31T22:16:33", "áudio ocultado"),
            ("message", "João", "2024-02-01T08:00:01", "Oi"),
        ],
    ),
    _simple(
        "iOS, Canada in French, hours and minutes by letters",
        [("[2024-01-31, 22 h 15 min 33 s] ", "2024-01-31T22:15:33"), ("[2024-02-01, 08 h 05 min 01 s] ", "2024-02-01T08:05:01")],
        ("Zoé", "Loïc"),
    ),
    _simple(
        "Android, Egypt, marks between digits in Arabic",
        [
            (f"٣١{RLM}/١{RLM}/٢٠٢٤, ١٠:١٥ م - ", "2024-01-31T22:15:00"),
            (f"١{RLM}/٢{RLM}/٢٠٢٤, ٨:٠٥ ص - ", "2024-02-01T08:05:00"),
        ],
        ("أحمد", "ليلى"),
    ),
    _simple(
        "iOS, Iran, Persian calendar",
        [
            (f"[۱۴۰۲/۱۱/۱۱،{RLM} ۲۲:۱۵:۳۳] ", "2024-01-31T22:15:33"),
            (f"[۱۴۰۳/۱/۱،{RLM} ۸:۰۵:۰۱] ", "2024-03-20T08:05:01"),
            (f"[۱۴۰۳/۱۲/۳۰،{RLM} ۸:۰۵:۰۱] ", "2025-03-20T08:05:01"),
        ],
        ("سارا", "رضا"),
    ),
    _simple(
        "iOS, Saudi Arabia, Islamic calendar",
        [(f"[١{RLM}/٩{RLM}/١٤٤٦، ١٠:١٥:٣٣ م] ", "2025-03-01T22:15:33"), (f"[٢٠{RLM}/٩{RLM}/١٤٤٦، ٨:٠٥:٠١ ص] ", "2025-03-20T08:05:01")],
        ("أحمد", "ليلى"),
    ),
    _simple(
        "Android, Vietnam, time before the date",
        [("22:15, 31/01/2024 - ", "2024-01-31T22:15:00"), ("08:05, 01/02/2024 - ", "2024-02-01T08:05:00")],
        ("Nguyễn", "Trần"),
    ),
    _simple(
        "Android, India in Tamil, time of day in front",
        [("31/1/24, பிற்பகல் 10:15 - ", "2024-01-31T22:15:00"), ("1/2/24, முற்பகல் 8:05 - ", "2024-02-01T08:05:00")],
        ("குமார்", "மீனா"),
    ),
    _simple(
        "Android, Albania, time of day in two words",
        [("31.1.24, 10:15 e pasdites - ", "2024-01-31T22:15:00"), ("1.2.24, 8:05 e paradites - ", "2024-02-01T08:05:00")],
        ("Ana", "Beni"),
    ),
    _simple(
        "iOS, Thailand, Buddhist years",
        [("[31/1/2567 10:15:33] ", "2024-01-31T10:15:33"), ("[1/2/2567 10:15:33] ", "2024-02-01T10:15:33")],
        ("สมชาย", "มาลี"),
    ),
    Export(
        "Android, Turkey, English kinds: names and texts that look like headers",
        "31.01.2024 10:15 - Dr. No: the second: Wann: jetzt?\n"
        "31.01.2024 10:16 - Ben: Zitat:\n[30/01/24, 09:00:00] Cem: alt\n30.01.24, 09:00 - Cem: anders\n99.99.2024 10:00 - Cem: nie\n"
        "31.01.2024 10:17 - Dr. No: the second: gut\n"
        "31.01.2024 10:17 - Dr. No: the second: sehr gut\n"
        "31.01.2024 10:18 - Ben: eingefügt:\n28.01.2024 10:18 - Cem: von früher\n28.01.2024 10:19 - Ben: auch\n"
        "31.01.2024 10:19 - Ben: <Media omitted>\n"
        "31.01.2024 10:20 - Ben: null\n"
        "31.01.2024 10:21 - Ben: \n"
        "31.01.2024 10:22 - Ben: This message was deleted\n",
        [
            ("message", "Dr. No: the second", "2024-01-31T10:15:00", "Wann: jetzt?"),
            ("message", "Ben", "2024-01-31T10:16:00", "Zitat:\n[30/01/24, 09:00:00] Cem: alt\n30.01.24, 09:00 - Cem: anders\n99.99.2024 10:00 - Cem: nie"),
            ("message", "Dr. No: the second", "2024-01-31T10:17:00", "gut"),
            ("message", "Dr. No: the second", "2024-01-31T10:17:00", "sehr gut"),
            ("message", "Ben", "2024-01-31T10:18:00", "eingefügt:\n28.01.2024 10:18 - Cem: von früher\n28.01.2024 10:19 - Ben: auch"),
            ("media", "Ben", "2024-01-31T10:19:00", "<Media omitted>"),
            ("message", "Ben", "2024-01-31T10:20:00", "null"),
            ("message", "Ben", "2024-01-31T10:21:00", ""),
            ("deleted", "Ben", "2024-01-31T10:22:00", "This message was deleted"),
        ],
    ),
    Export(
        "one message of one day",
        "\ufeff03/04/2024, 10:15 - Anna: only this",
        [("message", "Anna", "2024-04-03T10:15:00", "only this")],
        is_sure=False,
    ),
    Export(
        "one message of one day, American hint",
        "03/04/2024, 10:15 - Anna: only this",
        [("message", "Anna", "2024-03-04T10:15:00", "only this")],
        is_sure=False,
        options={"language": "en-us"},
    ),
]  # fmt: skip


def large(count: int, *, people: int = 4) -> str:
    """Return a German export of `count` messages over some years, with the kinds of a real one."""
    names = ["Anna", "Ben", "Cem", "Dörte", "Emil", "Fatma"][:people]
    words = [
        "wir",
        "treffen",
        "uns",
        "heute",
        "am",
        "Bahnhof",
        "und",
        "fahren",
        "dann",
        "nach",
        "Hause",
        "oder",
        "in",
        "die",
        "Stadt",
        "😀",
        "ja",
        "nein",
    ]
    lines = []
    minute = datetime(2020, 1, 1, 8, 0, tzinfo=UTC).timestamp()
    longest = max(1, min(45, 3_000_000 // count))  # minutes: about six years
    for index in range(count):
        minute += 60 * (1 + (index * 7919) % longest)
        stamp = datetime.fromtimestamp(minute, UTC).strftime("%d.%m.%y, %H:%M")
        name = names[(index * 31 + index // 7) % len(names)]
        kind = index % 50
        if kind == 7:
            text = "<Medien ausgeschlossen>"
        elif kind == 13:
            text = "Diese Nachricht wurde gelöscht."
        elif kind == 21:
            text = "schau https://www.example.org/seite?x=1\nund noch eine Zeile"
        else:
            length = 2 + (index * 13) % 12
            text = " ".join(words[(index + step * 5) % len(words)] for step in range(length))
            text += "?" if index % 9 == 0 else ""
        lines.append(f"{stamp} - {name}: {text}")
    return "\n".join(lines) + "\n"
