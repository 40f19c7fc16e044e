"""The batch script in docs/cluster.md is what `dla-train submit` writes for the command that the page begins with."""

import re
import shlex
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/cluster.md"


def written(cli, tmp_path):
    """The script, as of a user whose work is in /home/ada/work."""
    (command,) = re.findall(r"^\$ dla-train (submit .*)$", PAGE.read_text(), re.MULTILINE)[:1]
    done = cli(*shlex.split(command), "--dry-run")
    assert done.code == 0, done.err
    text = done.out.replace(sys.executable, "/home/ada/work/.venv/bin/python")
    return text.replace(str(tmp_path), "/home/ada/work")


def test_the_page_shows_what_is_written(cli, tmp_path):
    (shown,) = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert shown == written(cli, tmp_path)
