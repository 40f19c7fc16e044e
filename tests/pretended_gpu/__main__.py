"""`python -m tests.pretended_gpu LIBRARY`: calls in JSON from standard input, results in JSON to standard output."""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.pretended_gpu.pretend import pretend

pretend(Path(sys.argv[1]))

from tests.pretended_gpu import steps  # noqa: E402  (torch must not be imported before)


def made(what: str, *arguments: Any) -> dict[str, object]:
    """The results of one call, or how it failed."""
    try:
        return getattr(steps, what)(*arguments)
    except Exception:
        return {"failure": traceback.format_exc()}


json.dump([made(*call) for call in json.load(sys.stdin)], sys.stdout)
