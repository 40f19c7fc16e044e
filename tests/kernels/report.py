"""The script `kernels/benchmarks/compile_report.py` as a module."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SCRIPT = Path(__file__).parents[2] / "kernels/benchmarks/compile_report.py"


@functools.cache
def loaded_report() -> ModuleType:
    """The module, loaded once; it can compile only in a process in which the interpreter does not replace the
    compiler."""
    spec = importlib.util.spec_from_file_location("compile_report", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    report = importlib.util.module_from_spec(spec)
    sys.modules["compile_report"] = report
    spec.loader.exec_module(report)
    return report
