"""docs/python.md: every example is run, in order, and what it prints is what the page shows."""

import contextlib
import io
import re
import shlex

import pytest

from tests.docs.pages import DOCS, write_files

PAGE = "python.md"

pytestmark = pytest.mark.xdist_group("documented recipes")


def test_every_example_prints_what_the_page_shows(cli, my_texts, tmp_path):
    write_files("recipes.md", tmp_path)
    done = cli("fit", "--recipe", "notes.yaml")
    assert done.code == 0, done.err
    found = re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / PAGE).read_text(), re.MULTILINE | re.DOTALL)
    names, printed = {}, None
    for language, block in found:
        if language == "console":
            done = cli(*shlex.split(block.removeprefix("$ dla-train ")))
            assert done.code == 0, done.err
        elif language == "python":
            assert printed is None, f"what this prints is not shown:\n{printed}"
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block, PAGE, "exec"), names)
            printed = output.getvalue()
        else:
            assert language == "text"
            assert printed == block
            printed = None
    assert printed is None
    assert [language for language, _ in found].count("python") >= 8
