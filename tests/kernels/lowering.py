"""Lowers launches to Triton's own representations, for a GPU that this machine does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.kernels.ttir import Launched


def ttir_of(report: Any) -> Callable[[Launched], str]:
    """A function that lowers a launch to TTIR, with the types that `compile_report` gives its arguments."""

    def translate(launch: Launched) -> str:
        typed = report.Launch(kernel=launch.kernel, arguments=launch.arguments, options={"num_warps": 4})
        return lowered(typed, report.target_of("sm_90"), "ttir")

    return translate


def lowered(launch: Any, target: Any, *stages: str) -> str:
    """The result of the given first stages of Triton's compiler for a launch (of `compile_report`) and a target."""
    from triton._C.libtriton import ir
    from triton.compiler.compiler import make_backend

    backend: Any = make_backend(target)
    options = backend.parse_options(dict(launch.options))
    source = launch.source()
    known: dict[str, Any] = {}
    backend.add_stages(known, options, source.language)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module = source.make_ir(
        target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context
    )
    notes: dict[str, Any] = {}
    for stage in stages:
        module = known[stage](module, notes)
    return str(module)
