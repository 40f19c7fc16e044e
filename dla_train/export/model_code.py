"""The source of the model, flattened into one folder, so that it works without dla-train installed.

The files are those that training used: `modeling_dla` and every module of dla-train that it imports, directly or
indirectly, with these imports made relative. transformers copies the files that it finds through relative imports
within one folder; before version 5, of a local folder, only those that `modeling_dla` itself names.
"""

import ast
from importlib import metadata, resources

ENTRY = "dla_train.export.hugging_face.modeling_dla"
_PACKAGE = "dla_train"


def model_code() -> dict[str, str]:
    """File contents by name, including `modeling_dla.py` and `configuration_dla.py`."""
    files: dict[str, str] = {}
    waiting = [ENTRY]
    while waiting:
        module = waiting.pop()
        if file_name(module) in files:
            continue
        source = _source(module)
        imported = own_imports(source)
        for name in imported:
            source = source.replace(f"from {name} import", f"from .{file_name(name).removesuffix('.py')} import")
        files[file_name(module)] = f"# Part of dla-train {metadata.version('dla-train')}, Apache-2.0.\n{source}"
        waiting += imported
    entry = file_name(ENTRY)
    files[entry] += _naming(sorted(files.keys() - {entry}))
    return files


def file_name(module: str) -> str:
    """The file name of a module: `dla_block.py` for `dla_train.models.block`; files that transformers looks for keep
    their name."""
    room, name = module.rsplit(".", 1)
    return f"{name}.py" if room.endswith("hugging_face") else f"dla_{name}.py"


def _naming(names: list[str]) -> str:
    """Relative imports that are only read, never executed."""
    imports = [f"    from .{name.removesuffix('.py')} import __name__" for name in names]
    beginning = ["", "", "if False:  # transformers before version 5 copies only the files that are named here"]
    return "\n".join([*beginning, *imports, ""])


def own_imports(source: str) -> list[str]:
    """The modules of dla-train that `source` imports from."""
    found = [node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return sorted({name for name in found if name.split(".")[0] == _PACKAGE})


def _source(module: str) -> str:
    package, name = module.rsplit(".", 1)
    return resources.files(package).joinpath(f"{name}.py").read_text(encoding="utf-8")
