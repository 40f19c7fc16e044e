"""The pages of docs/ as what the tests run: files, commands with their output, and Python."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page, language):
    """The code blocks of a page in one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def write_files(page, folder):
    """Write the YAML blocks that begin with `# NAME.yaml`; returns their names."""
    named = [(re.match(r"# (\S+\.yaml)\n", block), block) for block in blocks(page, "yaml")]
    for match, block in named:
        if match:
            (folder / match[1]).write_text(block)
    return [match[1] for match, _ in named if match]


def commands(page):
    """(command, output) of all console blocks, in order; a backslash at the end of a line goes on in the next."""
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.replace("\\\n", " ").partition("\n")
            yield command, output


def matches(shown, printed):
    """Whether output is what the page shows; `...` stands for any text within a line, alone in a line for any lines."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + r" *\n"
        for line in shown.splitlines()
    )
    return re.fullmatch(pattern, printed) is not None
