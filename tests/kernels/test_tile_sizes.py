"""Tile sizes: measured ones come before the rule, a bad table is refused, and tuning finds and checks."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch

from dla_kernels.reader.fused import configs, measured
from dla_kernels.reader.fused.measured import Layer
from dla_kernels.tune import main, neighbours, tune

LAYER = Layer(key_dim=128, value_dim=64, slots=30, type="bfloat16", delta=False)
CUDA = torch.device("cuda", 0)


def chosen(delta=False):
    return configs.tiles_for(128, 64, 30, torch.bfloat16, CUDA, delta=delta)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes a table of one row and makes it the one in use, as on an H100."""

    def write(**changes):
        row = {"architecture": "sm_90", "layer": asdict(LAYER), "sizes": {"tile": 32, "stages": 2}} | changes
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps({"rows": [row]}))
        monkeypatch.setenv(measured.VARIABLE, str(path))
        return path

    monkeypatch.setattr(measured, "_architecture", lambda index: "sm_90")
    return write


def test_a_measured_layer_comes_before_the_rule(table):
    rule = replace(configs.tiles_by_rule(128, 64, 30, torch.bfloat16, delta=False), registers=168)  # on an H100
    table()
    assert chosen() == replace(rule, tile=32, stages=2), "what a table leaves out, the rule chooses"
    assert chosen(delta=True).tile == rule.tile, "another rule is another layer"
    table(architecture="sm_80")
    assert chosen() == rule, "another GPU"
    with configs.override(tile=16):
        assert chosen().tile == 16


@pytest.mark.parametrize(
    ("layer", "delta", "long"),
    [
        ((128, 64, 30), False, 1024), ((128, 64, 15), False, 1024), ((64, 64, 8), False, 512),
        ((128, 64, 1), False, 256), ((192, 384, 30), True, 1024), ((128, 128, 30), True, 512),
        ((128, 64, 15), True, 256),
    ],
)  # fmt: skip
def test_chunks_are_longer_where_states_are_larger(layer, delta, long):
    assert configs.tiles_for(*layer, torch.bfloat16, torch.device("cpu"), delta=delta).long == long


def test_an_override_holds_in_every_thread(table):
    """On a GPU, autograd runs backward passes in threads of its own."""
    with configs.override(tile=16), ThreadPoolExecutor(1) as pool:
        assert pool.submit(chosen).result().tile == 16
    assert chosen().tile != 16


@pytest.mark.parametrize(
    ("architecture", "type_", "layer", "tile"),
    [
        ("sm_90", "bfloat16", (256, 512, 64, True), 64), ("sm_100", "float16", (256, 512, 64, False), 64),
        ("sm_90", "float32", (16, 512, 64, False), 32), ("sm_90", "float32", (16, 512, 32, False), 64),
        ("sm_80", "bfloat16", (16, 512, 64, False), 32), ("sm_120", "bfloat16", (256, 16, 30, True), 32),
        ("sm_120", "bfloat16", (256, 16, 30, False), 64), ("sm_80", "bfloat16", (192, 384, 30, True), 64),
        ("gfx942", "bfloat16", (256, 512, 64, True), 64),
    ],
)  # fmt: skip
def test_tiles_are_small_where_registers_are_short(monkeypatch, architecture, type_, layer, tile):
    """Many slots, all of a long K: in float32, and where tensor cores take their factors from registers. The paper's
    layers keep what was timed."""
    monkeypatch.setattr(measured, "_architecture", lambda index: architecture)
    *shape, delta = layer
    assert configs.tiles_for(*shape, getattr(torch, type_), CUDA, delta=delta).tile == tile


@pytest.mark.parametrize(
    ("architecture", "type_", "limits"),
    [
        ("sm_90", "bfloat16", {"maxnreg": 168}), ("sm_100", "float16", {"maxnreg": 168}), ("sm_90", "float32", {}),
        ("sm_80", "bfloat16", {}), ("gfx942", "bfloat16", {}),
    ],
)  # fmt: skip
def test_pairs_leave_registers_to_a_third_program_where_they_can_spare_them(monkeypatch, architecture, type_, limits):
    """Not where tensor cores take their factors from registers. AMD's compiler knows no such option."""
    monkeypatch.setattr(measured, "_architecture", lambda index: architecture)
    tiles = configs.tiles_for(128, 64, 30, getattr(torch, type_), CUDA, delta=False)
    assert tiles.limits() == limits
    assert tiles.limits(summed=2) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": {"warps": 8}}, r"row 0: warps is 8; allowed are 1, 2, 4"),
        ({"sizes": {"tiles": 64}}, r"row 0: tiles is 64; allowed are the names tile, long"),
        ({"sizes": {"tile": 128, "long": 64}}, "long is 64; it must be a multiple of tile, 128"),
        ({"sizes": {"long": 32}}, "long is 32; it must be a multiple of tile, 64"),
        ({"layer": {"key_dim": 128}}, r"expected architecture, layer \(key_dim, value_dim, slots, type, delta\)"),
    ],
)
def test_a_bad_table_is_refused(table, change, message):
    table(**change)
    with pytest.raises(ValueError, match=message):
        chosen()


def test_another_file_is_refused(table):
    table().write_text("[1, 2]")
    with pytest.raises(ValueError, match=r'a table of tile sizes is {"rows": \[\.\.\.\]}'):
        chosen()


def test_a_missing_table_is_refused(monkeypatch, tmp_path, table):
    monkeypatch.setenv(measured.VARIABLE, str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match=r"none.json: the table .* unset DLA_KERNELS_TILES"):
        chosen()


def test_the_shipped_table_can_be_read():
    rows = measured.read_table(measured.SHIPPED)
    assert len({row[:2] for row in rows}) == len(rows), "a layer is listed twice"


def test_what_is_written_is_read_back(tmp_path):
    rows = [("sm_90", LAYER, {"tile": 64, "long": 512}, {"gpu": "NVIDIA H100", "seconds": 0.5})]
    measured.write_table(tmp_path / "table.json", rows)
    assert measured.read_table(tmp_path / "table.json") == rows


def test_tuning_finds_the_fastest_and_measures_nothing_twice():
    """Times that fall towards one choice, and a cliff of choices that do not work."""
    goal = {"tile": 32, "long": 128, "block_k": 32, "block_v": 64, "warps": 2, "stages": 2, "registers": 168}
    asked = []

    def seconds(tiles):
        asked.append(tiles)
        if tiles.stages >= 5:
            return math.inf
        return 1.0 + sum(abs(math.log2(getattr(tiles, name) / value)) for name, value in goal.items())

    first = configs.tiles_by_rule(128, 64, 30, torch.bfloat16, delta=False)
    best, time = tune(first, seconds, lambda tiles: neighbours(tiles, LAYER))
    assert asdict(best) == goal
    assert time == 1.0
    assert len(set(asked)) == len(asked)


def test_tuning_keeps_the_rule_when_all_else_is_noise():
    first = configs.tiles_by_rule(128, 64, 30, torch.bfloat16, delta=False)
    best, _ = tune(first, lambda tiles: 1.0 if tiles == first else 0.99, lambda tiles: neighbours(tiles, LAYER))
    assert best == first


def test_neighbours_are_choices_that_a_table_may_hold():
    first = configs.tiles_by_rule(128, 64, 30, torch.bfloat16, delta=False)
    found = list(neighbours(first, LAYER))
    assert len(set(found)) == len(found) >= 8
    for tiles in found:
        changed = [name for name, value in asdict(tiles).items() if value != getattr(first, name)]
        assert len(changed) == 1
        assert getattr(tiles, changed[0]) in measured.ALLOWED[changed[0]]
    assert all(tiles.block_v < 128 for tiles in found), "V is 64"
    assert all(low < high for values in measured.ALLOWED.values() for low, high in pairwise(values))


def test_without_a_gpu_there_is_nothing_to_tune(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["--layer", "128,64,30"]) == 1
    assert "nothing to tune for" in capsys.readouterr().err


def test_a_bad_layer_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--layer", "128,64"])
    assert "'128,64' is not K,V,M" in capsys.readouterr().err


@pytest.mark.interpret
@pytest.mark.parametrize("delta", [False, True])
def test_a_trial_times_what_is_right_and_leaves_out_what_is_wrong(monkeypatch, delta):
    from dla_kernels import tune as tuning

    layer = Layer(key_dim=16, value_dim=16, slots=3, type="float32", delta=delta)
    trial = tuning.Trial(layer, heads=1, tokens=40, device=torch.device("cpu"), repeats=1)
    tiles = configs.Tiles(tile=16, long=32, block_k=16, block_v=16)
    assert 0 < trial.seconds(tiles) < math.inf
    assert not trial.failures
    monkeypatch.setattr(trial, "exact", [1.01 * x for x in trial.exact])
    assert trial.seconds(tiles) == math.inf
    assert "relative error" in trial.failures[tiles]
    wrong = replace(tiles, tile=12)
    assert trial.seconds(wrong) == math.inf
    assert wrong in trial.failures
