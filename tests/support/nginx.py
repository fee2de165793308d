"""nginx with the site of deploy/, on free ports and with a certificate of its own."""

from __future__ import annotations

import datetime
import ipaddress
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from chatproject.local.servers import BASE_DIR, free_port
from tests.support.programs import Program, is_open, wait_until

SITE = BASE_DIR / "deploy/nginx/parley.conf"
HOST = "chat.example.org"
PROGRAM = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")

MAIN = """
pid {folder}/nginx.pid;
error_log stderr;
worker_processes 1;
daemon off;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/parley.conf;
}}
"""


def write_certificate(folder: Path) -> None:
    """Write a self-signed certificate for HOST, and its key: `fullchain.pem`, `privkey.pem`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    names = [x509.DNSName(HOST), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "fullchain.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "privkey.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def write_configuration(folder: Path, *, http: int, https: int, web: list[int]) -> Path:
    """Write the site's file with these ports and paths, and the file that includes it."""
    text = SITE.read_text()
    for name, port in (("80", http), ("443 ssl http2", https)):
        address = name.replace(name.split()[0], str(port))
        for written in (f"listen {name};", f"listen [::]:{name};"):
            assert written in text
            text = text.replace(
                written, f"listen 127.0.0.1:{address};" if "[" not in written else ""
            )
    for number, port in enumerate(web, start=1):
        assert f"127.0.0.1:800{number}" in text
        text = text.replace(f"127.0.0.1:800{number}", f"127.0.0.1:{port}")
    text = text.replace(f"/etc/letsencrypt/live/{HOST}", str(folder))
    text = text.replace("https://$host$", f"https://$host:{https}$")
    (folder / "parley.conf").write_text(text)
    main = folder / "nginx.conf"
    main.write_text(MAIN.format(folder=folder))
    return main


@contextmanager
def running_nginx(folder: Path, *, web: list[int]) -> Iterator[tuple[int, int]]:
    """Run nginx in front of web processes on these ports; yields its ports of http and https."""
    assert PROGRAM is not None
    http, https = free_port(), free_port()
    write_certificate(folder)
    main = write_configuration(folder, http=http, https=https, web=web)
    with Program([PROGRAM, "-p", str(folder), "-c", str(main)], cwd=folder):
        wait_until(lambda: is_open(https), "nginx listens")
        yield http, https
