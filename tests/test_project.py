"""Files of the project that must agree: variables, migrations, locks, targets of make."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator

import pytest
from django.core.management import call_command
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from chatproject import VERSION
from chatproject.local.run import documented_variables
from chatproject.local.servers import BASE_DIR

PACKAGES = ("chatproject", "accounts", "billing", "chat")
READ = re.compile(r"""env\.[a-z_]+\(\s*"([A-Z_]+)\"""")


def test_documented_variables_are_those_read():
    sources = (path for package in PACKAGES for path in (BASE_DIR / package).rglob("*.py"))
    read = {name for source in sources for name in READ.findall(source.read_text())}
    assert sorted(documented_variables()) == sorted(read)


@pytest.mark.django_db
def test_no_migration_is_missing():
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def wanted(name: str) -> dict[str, Requirement]:
    """The requirements of a .in file by package."""
    lines = (BASE_DIR / f"{name}.in").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and line[0] not in "#-"]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def pinned(name: str) -> Iterator[tuple[str, str, str]]:
    """Package, version and the whole text of each entry of a .txt file."""
    text = (BASE_DIR / f"{name}.txt").read_text()
    for entry in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]:
        found = re.match(r"([a-z0-9-]+)(?:\[.*\])?==(\S+)", entry)
        assert found is not None, entry.partition("\n")[0]
        yield found[1], found[2], entry


LOCKS = [
    "requirements",
    "requirements-embedded",
    "requirements-dev",
    "bench/peers/requirements",
    "tests/gateways/requirements",
]


@pytest.mark.parametrize("name", LOCKS)
def test_lock_agrees_with_its_source(name):
    # `make lock` makes them agree again. There is no resolver here, which would need the network.
    assert "://" not in (BASE_DIR / f"{name}.txt").read_text()
    assert all("--hash=sha256:" in entry for *_, entry in pinned(name))
    direct = {package: version for package, version, why in pinned(name) if f"-r {name}.in" in why}
    assert direct.keys() == wanted(name).keys()
    for package, requirement in wanted(name).items():
        assert requirement.specifier.contains(direct[package], prereleases=True), package


def test_locks_of_one_environment_agree_on_versions():
    versions: dict[str, set[str]] = {}
    for name in LOCKS[:3]:  # the others have environments of their own
        for package, version, entry in pinned(name):
            if " ; " not in entry.partition("\n")[0]:
                versions.setdefault(package, set()).add(version)
    assert not {package: found for package, found in versions.items() if len(found) > 1}


def test_version_is_that_of_the_changelog():
    project = tomllib.loads((BASE_DIR / "pyproject.toml").read_text())["project"]
    sections = re.findall(r"^## (\S+)", (BASE_DIR / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert project["version"] == VERSION
    assert next(name for name in sections if name != "Unreleased") == VERSION


def test_make_describes_all_targets():
    listed = subprocess.check_output(["make"], cwd=BASE_DIR, text=True)
    makefile = (BASE_DIR / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (\S+)$", makefile, re.MULTILINE)
    assert targets
    assert {*re.findall(r"^  make (\S+) +\S", listed, re.MULTILINE)} == {*targets}


def test_styles_turn_with_the_direction():
    """Pages run from right to left in Arabic: sides are named by start and end."""
    side = re.compile(
        r"^\s*((?:(?:padding|margin|border)-)?(?:left|right)|text-align: (?:left|right)"
        r"|(?:padding|margin)(?=: \S+ (\S+) \S+ (?!\2;)\S+;))\b.*$",
        re.MULTILINE,
    )
    found = [
        f"{path.name}:{match.group().strip()}"
        for path in sorted((BASE_DIR / "static" / "css").glob("*.css"))
        if not path.name.startswith("admin")
        for match in side.finditer(path.read_text())
    ]
    # Code runs from left to right in each language, and the notice is centred by half of its width.
    assert found == ["notice.css:left: 50%;", "prose.css:text-align: left;", "prose.css:right: 0;"]
