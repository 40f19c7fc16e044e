"""On Hopper our kernels are assembled by a correct ptxas: the given one, or the newer one that Triton brings."""

import os
from types import SimpleNamespace

import pytest
import torch
from triton import knobs
from triton.backends.nvidia import compiler

from dla_kernels import assembler
from dla_kernels.assembler import RIGHT, VARIABLE, choose_assembler, use_right_assembler

OF_BLACKWELL = "TRITON_PTXAS_BLACKWELL_PATH"


def as_called_by_triton_3_7(arch):
    return knobs.nvidia.ptxas_blackwell if arch >= 100 else knobs.nvidia.ptxas


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    for variable in (VARIABLE, OF_BLACKWELL):
        monkeypatch.setenv(variable, "")  # so that it is as before after the test, whatever that sets
        monkeypatch.delenv(variable)
    choose_assembler.cache_clear()
    compiler.get_ptxas_version.cache_clear()
    monkeypatch.setattr(compiler, "get_ptxas", as_called_by_triton_3_7)
    yield
    choose_assembler.cache_clear()
    compiler.get_ptxas_version.cache_clear()


@pytest.fixture
def give(tmp_path, monkeypatch):
    """Sets a variable to the path of a ptxas that knows its version and nothing else."""

    def give(variable, version):
        tool = tmp_path / f"ptxas-{variable}-{version}"
        tool.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.93'\n")
        tool.chmod(0o755)
        monkeypatch.setenv(variable, str(tool))
        return str(tool)

    return give


def test_triton_itself_has_one_that_is_right():
    use_right_assembler(driver=99)
    assert tuple(map(int, knobs.nvidia.ptxas.version.split("."))) >= RIGHT


def test_an_old_one_is_replaced_and_its_version_forgotten(give):
    """Triton's cache uses that version in its keys: otherwise it would return wrong code of an earlier run."""
    give(VARIABLE, "12.8")
    newer = give(OF_BLACKWELL, "13.1")
    assert "12.8" in compiler.get_ptxas_version(90)
    use_right_assembler(driver=13)
    assert os.environ[VARIABLE] == knobs.nvidia.ptxas.path == newer
    assert "13.1" in compiler.get_ptxas_version(90)


def test_where_triton_calls_the_newer_one_for_hopper_itself(give, monkeypatch):
    """As 3.9 does; the older one is then of no concern."""
    given = give(VARIABLE, "12.8")
    give(OF_BLACKWELL, "13.1")
    monkeypatch.setattr(compiler, "get_ptxas", lambda arch: as_called_by_triton_3_7(arch + 10))
    use_right_assembler(driver=12)
    assert os.environ[VARIABLE] == given


@pytest.mark.parametrize("version", ["12.9", "13.0", "14.2"])
def test_one_that_is_new_enough_is_left_alone(give, version):
    given = give(VARIABLE, version)
    give(OF_BLACKWELL, "13.1")
    use_right_assembler(driver=12)
    assert os.environ[VARIABLE] == given


def test_a_driver_that_is_too_old_for_the_newer_one(give):
    given, newer = give(VARIABLE, "12.8"), give(OF_BLACKWELL, "13.1")
    with pytest.raises(RuntimeError) as raised:
        use_right_assembler(driver=12)
    said = str(raised.value)
    for part in (f"12.8 ({given})", f"13.1 ({newer})", "CUDA up to 12", "pip install nvidia-cuda-nvcc-cu12",
                 f"set {VARIABLE}", "backend='torch'"):  # fmt: skip
        assert part in said
    assert os.environ[VARIABLE] == given


@pytest.mark.parametrize(("version", "is_taken"), [("12.9", True), ("12.8", False), ("13.0", False)])
def test_that_of_nvidias_package(give, monkeypatch, version, is_taken):
    """For drivers that do not run the code of Triton's newer one."""
    packaged = give("PACKAGED", version)
    given, newer = give(VARIABLE, "12.8"), give(OF_BLACKWELL, "13.1")

    class Package:
        def locate_file(self, path):
            assert path == "nvidia/cuda_nvcc/bin/ptxas"
            return packaged

    monkeypatch.setattr(assembler.importlib.metadata, "distribution", {assembler.PACKAGE: Package()}.get)
    if is_taken:
        use_right_assembler(driver=12)
        assert os.environ[VARIABLE] == packaged
    else:
        with pytest.raises(RuntimeError, match="makes wrong machine code"):
            use_right_assembler(driver=12)
        assert os.environ[VARIABLE] == given
    monkeypatch.setenv(VARIABLE, given)
    use_right_assembler(driver=13)
    assert os.environ[VARIABLE] == newer  # Triton's own comes first


@pytest.mark.parametrize("there", ["an old one", "none", "unknown to Triton"])
def test_no_newer_one(give, monkeypatch, there):
    given = give(VARIABLE, "12.8")
    if there == "an old one":
        give(OF_BLACKWELL, "12.8")
    elif there == "none":
        monkeypatch.setattr(vars(type(knobs.nvidia))["ptxas_blackwell"], "default_path", "/no/such/file")
    else:
        monkeypatch.setattr(knobs, "nvidia", SimpleNamespace(ptxas=knobs.nvidia.ptxas))
    with pytest.raises(RuntimeError, match="comes with no newer one"):
        use_right_assembler(driver=13)
    assert os.environ[VARIABLE] == given


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_the_compile_report_assembles_as_the_target_would(compile_report, give, target):
    given, newer = give(VARIABLE, "12.8"), give(OF_BLACKWELL, "14.0")
    with compile_report.assembler_of(target):
        assert os.environ[VARIABLE] == (newer if target == "sm_90" else given)
    assert os.environ[VARIABLE] == given


def test_the_compile_report_leaves_nothing_behind(compile_report):
    with compile_report.assembler_of("sm_90"):
        assert tuple(map(int, knobs.nvidia.ptxas.version.split("."))) >= RIGHT
    assert VARIABLE not in os.environ


@pytest.fixture
def gpu(monkeypatch):
    """Makes all GPUs of one kind, and yields the drivers that `use_right_assembler` was called with."""
    drivers = []

    def gpu(capability, hip=None):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(assembler, "driver_version", lambda: 12)
        monkeypatch.setattr(assembler, "use_right_assembler", drivers.append)
        return drivers

    return gpu


def test_hopper_is_looked_at_once_per_gpu(gpu):
    drivers = gpu((9, 0))
    for index in (0, 1, 0, 1):
        choose_assembler(index)
    assert drivers == [12, 12]


@pytest.mark.parametrize(
    ("capability", "hip"), [((8, 0), None), ((8, 9), None), ((10, 0), None), ((12, 0), None), ((9, 4), "6.4")]
)
def test_other_gpus_keep_theirs(gpu, capability, hip):
    drivers = gpu(capability, hip)
    choose_assembler(0)
    assert drivers == []


class Driver:
    """A stand-in for NVIDIA's library, with what is called of it."""

    def __init__(self, version, answer=0):
        self.version, self.answer = version, answer

    def cuDriverGetVersion(self, into):
        into._obj.value = self.version
        return self.answer


@pytest.mark.parametrize(
    ("driver", "expected"),
    [(Driver(12090), 12), (Driver(13000), 13), (Driver(0), 11), (Driver(12090, answer=3), 11), (None, 11)],
)
def test_the_driver_says_what_it_runs_or_torch_what_it_was_built_for(monkeypatch, driver, expected):
    def load(name):
        assert name == "libcuda.so.1"
        if driver is None:
            raise OSError(name)
        return driver

    monkeypatch.setattr(assembler.ctypes, "CDLL", load)
    monkeypatch.setattr(torch.version, "cuda", "11.8")
    assert assembler.driver_version() == expected


def test_a_failure_is_not_remembered_as_done(gpu, give, monkeypatch):
    gpu((9, 0))
    monkeypatch.setattr(assembler, "use_right_assembler", use_right_assembler)
    give(VARIABLE, "12.8")
    give(OF_BLACKWELL, "13.1")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="CUDA up to 12"):
            choose_assembler(0)
