"""Runs the tests of static/js with Node's own runner, wherever there is a Node."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from chatproject.local.servers import BASE_DIR

NODE = shutil.which("node")
IMPORT = re.compile(r"""^import [^;]*?["']([^"']+)["'];$""", re.MULTILINE)


@pytest.mark.skipif(NODE is None, reason="there is no node on this machine")
def test_the_modules_pass_their_own_tests():
    assert NODE is not None
    tests = sorted(str(path) for path in (BASE_DIR / "tests/js").glob("*.test.js"))
    done = subprocess.run(
        [NODE, "--test", *tests], cwd=BASE_DIR, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert tests


def test_every_import_is_of_the_form_that_the_manifest_rewrites():
    # Django's regular expressions know `import … from "./x.js";` and no other; a module that is
    # imported otherwise keeps its name without a hash, and browsers keep the old one after an update.
    for path in (BASE_DIR / "static/js").rglob("*.js"):
        text = path.read_text()
        imported = IMPORT.findall(text)
        assert text.count("import ") - text.count("// import ") >= len(imported)
        assert len(re.findall(r"^import\b", text, re.MULTILINE)) == len(imported), path
        assert "import(" not in text, path
        for target in imported:
            assert target.startswith(("./", "../")), (path, target)
            assert (path.parent / target).is_file(), (path, target)
