"""The wheel and the sdist hold all of the four packages and nothing else, and work when installed."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDERS = {
    "dla_train": "dla_train",
    "dla_kernels": "kernels/dla_kernels",
    "dla_data": "data/dla_data",
    "dla_recipes": "recipes",
}
SOURCE_ENTRIES = [
    *["dla_train", "kernels", "data", "recipes", "tests"],
    *["pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt"],
]
SDIST_TOP_LEVEL = {*SOURCE_ENTRIES, "PKG-INFO", "setup.cfg", "dla_train.egg-info"} - {"tests"}

pytestmark = pytest.mark.xdist_group("distribution")


def package_files(folder: str) -> set[PurePosixPath]:
    """Files below a package's folder that users need, relative to it: .md pages are for readers of the repository."""
    root = REPOSITORY / folder
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file() and path.suffix != ".md")
    return {PurePosixPath(path) for path in found if not any(p == "__pycache__" or p[0] == "." for p in path.parts)}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel made from that sdist, so that both are known to be complete."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCE_ENTRIES:
        entry = REPOSITORY / name
        if entry.is_dir():
            shutil.copytree(entry, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(entry, source)
    output = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(source)], cwd=source)
    return output


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    [path] = built.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def wheel_files(wheel: Path) -> set[PurePosixPath]:
    return {PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()}


@pytest.fixture(scope="session")
def sdist_files(built: Path) -> set[PurePosixPath]:
    """Files of the sdist, relative to its one top folder."""
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {PurePosixPath(*PurePosixPath(m.name).parts[1:]) for m in archive.getmembers() if m.isfile()}


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel. It borrows the dependencies of the running one and fetches nothing."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python_of(home)),
            "install",
            "--no-deps",
            "--no-index",
            str(wheel),
        ]
    )
    borrowed = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    # Not processed recursively, so an editable install in the running environment stays out of sight.
    (site_packages_of(home) / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return home


def python_of(home: Path) -> Path:
    return home / "bin" / "python"


def site_packages_of(home: Path) -> Path:
    [path] = home.glob("lib/python*/site-packages")
    return path


def run(command: list[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Standard output of a command that has to succeed."""
    result = subprocess.run(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert result.returncode == 0, f"{command} exited with {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.mark.parametrize("package", FOLDERS)
def test_wheel_holds_every_file_of_the_package_and_no_other(package: str, wheel_files: set[PurePosixPath]) -> None:
    in_wheel = {name.relative_to(package) for name in wheel_files if name.parts[0] == package}
    on_disk = package_files(FOLDERS[package])
    assert PurePosixPath("__init__.py") in on_disk
    assert in_wheel == on_disk, (
        "a folder with Python files needs an __init__.py; other files need a pattern in [tool.setuptools.package-data]"
    )


def test_every_recipe_is_in_the_wheel(wheel_files: set[PurePosixPath]) -> None:
    recipes = {path.relative_to(REPOSITORY / "recipes").as_posix() for path in (REPOSITORY / "recipes").rglob("*.yaml")}
    assert "tiny.yaml" in recipes
    assert {f"dla_recipes/{name}" for name in recipes} <= {str(name) for name in wheel_files}


def test_wheel_has_no_other_top_level_name(wheel_files: set[PurePosixPath]) -> None:
    assert {name.parts[0] for name in wheel_files} == {*FOLDERS, "dla_train-0.1.0.dist-info"}


@pytest.mark.parametrize("folder", FOLDERS.values())
def test_sdist_holds_every_file_of_the_package(folder: str, sdist_files: set[PurePosixPath]) -> None:
    assert {folder / name for name in package_files(folder)} <= sdist_files


def test_sdist_has_no_tests_and_no_stray_files(sdist_files: set[PurePosixPath]) -> None:
    assert {name.parts[0] for name in sdist_files} == SDIST_TOP_LEVEL
    assert not [name for name in sdist_files if "tests" in name.parts or "__pycache__" in name.parts]


@pytest.mark.parametrize("package", FOLDERS)
def test_package_imports_from_the_installed_wheel(package: str, installed: Path, tmp_path: Path) -> None:
    code = f"import {package}; print({package}.__file__)"
    origin = run([str(python_of(installed)), "-I", "-c", code], cwd=tmp_path)
    assert Path(origin.strip()) == site_packages_of(installed) / package / "__init__.py"


@pytest.mark.parametrize("launcher", ["dla-train", "python -m dla_train"])
def test_installed_command_finds_every_recipe_from_an_empty_folder(
    launcher: str, installed: Path, tmp_path: Path
) -> None:
    script, *arguments = launcher.split()
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    listed = run([str(installed / "bin" / script), *arguments, "recipes"], cwd=tmp_path, env=environment)
    for recipe in (REPOSITORY / "recipes").rglob("*.yaml"):
        assert recipe.stem in listed
    assert list(tmp_path.iterdir()) == [], "listing recipes must not write anything"
