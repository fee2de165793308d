"""Runs the tests of static/js with Node's test runner, on machines that have Node."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from chatproject.local.servers import BASE_DIR

NODE = shutil.which("node")
IMPORT = re.compile(r"""^import [^;]*?["']([^"']+)["'];$""", re.MULTILINE)


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_modules_pass_their_own_tests():
    assert NODE is not None
    tests = sorted(map(str, (BASE_DIR / "tests/js").glob("*.test.js")))
    assert tests
    done = subprocess.run([NODE, "--test", *tests], cwd=BASE_DIR, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_import_is_rewritten_by_the_manifest():
    # Django's regular expressions match `import … from "./x.js";` only. Another form would keep the name
    # without a hash, and after an update browsers would keep the old module.
    for path in (BASE_DIR / "static/js").rglob("*.js"):
        text = path.read_text()
        imported = IMPORT.findall(text)
        assert text.count("import ") - text.count("// import ") >= len(imported)
        assert len(re.findall(r"^import\b", text, re.MULTILINE)) == len(imported), path
        assert "import(" not in text, path
        for target in imported:
            assert target.startswith(("./", "../")), (path, target)
            assert (path.parent / target).is_file(), (path, target)
