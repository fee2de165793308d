"""The files of deploy/, checked by the programs that read them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chatproject.local.servers import BASE_DIR
from chatproject.local.supervisor import read_procfile
from tests.support import nginx

DEPLOY = BASE_DIR / "deploy"
PROGRAMS = Path(sys.executable).parent  # of the environment of the tests


def run(*command: str | Path, **variables: str) -> None:
    """Run a program; fails with its output."""
    done = subprocess.run(
        command,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


def needs(program: str, package: str) -> pytest.MarkDecorator:
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    return pytest.mark.skipif(found is None, reason=f"{program} is missing: install {package}")


def test_dockerfile_passes_its_linter():
    run(PROGRAMS / "hadolint", DEPLOY / "Dockerfile")


def test_image_has_the_folders_of_the_site():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert all((BASE_DIR / name).exists() for name in kept)
    packages = {path.parent.name for path in BASE_DIR.glob("*/apps.py")}
    assert packages | {"templates", "static", "manage.py", "requirements.txt"} == kept


def test_compose_file_fits_its_schema():
    checker = [sys.executable, "-m", "check_jsonschema"]
    run(*checker, "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


@needs("systemd-analyze", "systemd")
def test_units_are_valid(tmp_path: Path):
    units = sorted((DEPLOY / "systemd").iterdir())
    for unit in units:
        text = unit.read_text().replace("/opt/parley/.venv/bin/python", sys.executable)
        (tmp_path / unit.name).write_text(text.replace("/opt/parley", str(BASE_DIR)))
    started = [unit.name.replace("@", "@1") for unit in units]
    # With its own units only: those of this machine are not the subject.
    run(
        *("systemd-analyze", "verify", "--man=no", "--recursive-errors=no"),
        *(tmp_path / unit.name for unit in units if "@" not in unit.name),
        *(name for name in started if "@" in name),
        SYSTEMD_UNIT_PATH=f"{tmp_path}:",
    )


def test_units_run_the_commands_of_the_procfile():
    commands = {" ".join(words) for words in read_procfile(BASE_DIR / "Procfile").values()}
    started = {
        line.removeprefix("ExecStart=/opt/parley/.venv/bin/")
        for unit in (DEPLOY / "systemd").glob("*.service")
        for line in unit.read_text().splitlines()
        if line.startswith("ExecStart=")
    }
    assert started == commands


@needs("nginx", "nginx-light")
def test_nginx_takes_its_site(tmp_path: Path):
    nginx.write_certificate(tmp_path)
    main = nginx.write_configuration(tmp_path, http=8080, https=8443, web=[8001, 8002])
    run("nginx", "-t", "-p", tmp_path, "-c", main)


@needs("caddy", "caddy")
def test_caddy_takes_its_file():
    caddyfile = DEPLOY / "caddy/Caddyfile"
    run("caddy", "validate", "--config", caddyfile, "--adapter", "caddyfile", SITE="localhost")
    run("caddy", "fmt", "--diff", caddyfile)
