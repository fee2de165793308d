"""Mail: the connection to the mail server, without sending anything."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Iterator
from email.utils import parseaddr
from typing import Any

from django.conf import settings
from django.core.mail import get_connection

from chatproject.lib.mail import outbox
from chatproject.ops.doctor.finding import Finding, ok, one_line, problem, warning

PART = "mail"
SMTPS = 465  # the port where TLS begins with the first byte
SECONDS = 5.0  # for each answer of the mail server


def check() -> Iterator[Finding]:
    """Yield the findings about the mail server: connection, TLS, sign-in, and the sender."""
    if not outbox.is_configured():
        yield ok(PART, "none: staff approve accounts and create links for passwords in the admin")
        return
    if settings.MAIL_TRANSPORT.endswith("files.EmailBackend"):
        yield ok(PART, f"mails are written to files in {settings.EMAIL_FILE_PATH}")
        return
    if not settings.MAIL_TRANSPORT.endswith("smtp.EmailBackend"):
        yield ok(PART, "mails are printed to the log")
        return
    server = f"{settings.EMAIL_HOST}, port {settings.EMAIL_PORT}"
    connection: Any = get_connection(settings.MAIL_TRANSPORT, timeout=SECONDS)
    try:
        connection.open()
        code, reply = connection.connection.mail(parseaddr(settings.DEFAULT_FROM_EMAIL)[1])
    except smtplib.SMTPAuthenticationError as error:
        yield problem(
            PART,
            f"{server} refuses user or password ({error.smtp_code})",
            "Correct both in EMAIL_URL. In a password write @ : / as %40 %3A %2F.",
        )
    except smtplib.SMTPNotSupportedError as error:
        yield problem(
            PART,
            f"{server}: {one_line(error)}",
            "For TLS from the first byte write smtps:// in EMAIL_URL; without TLS add ?tls=0.",
        )
    except ssl.SSLCertVerificationError as error:
        yield problem(
            PART,
            f"{server}: its certificate is refused: {error.verify_message}",
            "Name the host that the certificate is for in EMAIL_URL, or renew the certificate.",
        )
    except ssl.SSLError as error:
        yield problem(
            PART,
            f"{server}: TLS failed: {error.reason or one_line(error)}",
            "Use smtps:// for TLS from the first byte (port 465), and smtp:// for STARTTLS (587).",
        )
    except (OSError, smtplib.SMTPException) as error:
        advice = "Correct host and port in EMAIL_URL, or allow the connection in the firewall."
        if settings.EMAIL_PORT == SMTPS and not settings.EMAIL_USE_SSL:
            advice = (
                "Write smtps:// in EMAIL_URL: at port 465 servers expect TLS from the first byte."
            )
        yield problem(PART, f"{server} is unreachable: {one_line(error)}", advice)
    else:
        if code >= 400:
            yield problem(
                PART,
                f"{server} refuses the sender: {code} {one_line(reply.decode(errors='replace'))}",
                "Set DEFAULT_FROM_EMAIL to an address that this server may send from.",
            )
        else:
            yield ok(PART, f"{server} accepts mails from {settings.DEFAULT_FROM_EMAIL}")
    finally:
        connection.close()
    if settings.EMAIL_HOST_PASSWORD and not (settings.EMAIL_USE_TLS or settings.EMAIL_USE_SSL):
        yield warning(
            PART,
            "the password is sent without TLS",
            "Remove tls=0, or write smtps:// in EMAIL_URL.",
        )
    if settings.DEFAULT_FROM_EMAIL.endswith(("@localhost", "@localhost>")):
        yield warning(
            PART,
            f"mails come from {settings.DEFAULT_FROM_EMAIL}, which most servers refuse",
            "Set DEFAULT_FROM_EMAIL to an address of your domain.",
        )
    if outbox.is_delayed():
        yield warning(
            "outbox",
            "mails wait, because the last attempt failed",
            "The admin's list of mails shows the reason; they are repeated automatically.",
        )
