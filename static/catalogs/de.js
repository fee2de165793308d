// Written by `make messages` from chatproject/locale/.
globalThis.catalog = { language: "de", plural: (n) => Number((n != 1)), messages: {
"<{amount}": "<{amount}",
"A reply is still being written. Wait for it, or stop it first.": "Eine Antwort wird noch geschrieben. Warten Sie darauf oder stoppen Sie sie zuerst.",
"Back to the text of footnote {label}": "Zurück zum Text der Fußnote {label}",
"Copied": "Kopiert",
"Footnote {label}": "Fußnote {label}",
"Hide": "Verbergen",
"New chat": "Neuer Chat",
"None chosen": "Nichts gewählt",
"Preview": "Vorschau",
"Queued behind your other replies": "Wartet auf Ihre anderen Antworten",
"Queued behind your other replies, {count} message ahead": [
"Wartet auf Ihre anderen Antworten, {count} Nachricht davor",
"Wartet auf Ihre anderen Antworten, {count} Nachrichten davor"
],
"Queued, {place}": "In der Warteschlange, {place}",
"Reading your message…": "Liest Ihre Nachricht …",
"Reply failed. {reason}": "Antwort fehlgeschlagen. {reason}",
"Reply finished": "Antwort fertig",
"Reply interrupted. Resuming…": "Antwort unterbrochen. Wird fortgesetzt …",
"Reply stopped": "Antwort gestoppt",
"Show": "Anzeigen",
"Show image from {host}": "Bild von {host} zeigen",
"Starting…": "Startet …",
"The browser blocked copying. Select the text and copy it by hand.": "Der Browser hat das Kopieren blockiert. Markieren Sie den Text und kopieren Sie ihn selbst.",
"The message is {count} character too long. Shorten it or send it in parts.": [
"Die Nachricht ist {count} Zeichen zu lang. Kürzen Sie sie oder senden Sie sie in Teilen.",
"Die Nachricht ist {count} Zeichen zu lang. Kürzen Sie sie oder senden Sie sie in Teilen."
],
"The model is busy: {place}": "Das Modell ist ausgelastet: {place}",
"The passkey was not used. Try again.": "Der Passkey wurde nicht verwendet. Versuchen Sie es erneut.",
"The site could not be reached. Check your connection and try again.": "Die Site ist nicht erreichbar. Prüfen Sie Ihre Verbindung und versuchen Sie es erneut.",
"This browser has no passkeys on this site.": "Dieser Browser hat auf dieser Site keine Passkeys.",
"This device already has a passkey of your account.": "Dieses Gerät hat schon einen Passkey Ihres Kontos.",
"Try again": "Erneut versuchen",
"Try again in {count} min": "Erneut versuchen in {count} min",
"Try again in {count} s": "Erneut versuchen in {count} s",
"You are offline. Your text is saved here. Send it when you are back online.": "Sie sind offline. Ihr Text ist hier gespeichert. Senden Sie ihn, wenn Sie wieder online sind.",
"about {count} min": "etwa {count} min",
"about {count} s": "etwa {count} s",
"next in line": "als Nächste an der Reihe",
"{amount} credits available": "{amount} Credits verfügbar",
"{count} character left": [
"noch {count} Zeichen",
"noch {count} Zeichen"
],
"{count} character over the limit": [
"{count} Zeichen über dem Limit",
"{count} Zeichen über dem Limit"
],
"{count} chosen on this page": [
"{count} auf dieser Seite gewählt",
"{count} auf dieser Seite gewählt"
],
"{count} earlier message loaded": [
"{count} frühere Nachricht geladen",
"{count} frühere Nachrichten geladen"
],
"{count} file": [
"{count} Datei",
"{count} Dateien"
],
"{n}nd": "{n}.",
"{n}rd": "{n}.",
"{n}st": "{n}.",
"{n}th": "{n}.",
"{ordinal} in line": "{ordinal} in der Reihe",
"{place}, {time}": "{place}, {time}"
} };
