"""The CPU's own matrix products against torch in float64, at sizes that fit no panel, block or group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch

from gpu_workers.layers import cpu_linear
from gpu_workers.layers.cpu_linear import FORMATS, PanelLinear, PanelProducts
from gpu_workers.layers.cpu_tile_linear import TileLinear, TileProducts
from gpu_workers.quantization.rounding import BITS, Rounded, rounded
from kernels_cpu import features
from tests.gpu_workers import software_tiles

SIZES = ((1, 1), (17, 33), (33, 70), (300, 200))
ROWS = (*range(1, 18), 40, 1100)


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def products(request: pytest.FixtureRequest) -> Iterator[PanelProducts]:
    formats = set(FORMATS) if request.param == torch.bfloat16 else set(BITS)
    with pytest.MonkeyPatch.context() as patch:
        if not features.amx() and features.wide():
            software_tiles.use(patch, PanelProducts)
        made = PanelProducts(formats, request.param, 2)
        assert made.wait(250)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield made
    torch.set_num_threads(before)


def held(name: str, weight: torch.Tensor) -> tuple[torch.Tensor | Rounded, torch.Tensor]:
    """What PanelLinear is given for the weight, and the weight that it stands for."""
    if name not in BITS:
        return weight, weight.double()
    few_bits = rounded(weight, BITS[name])
    return few_bits, few_bits.restored(torch.float64)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_products(products: PanelProducts, name: str, size: tuple[int, int]) -> None:
    if name == "bfloat16" and products.dtype != torch.bfloat16:
        pytest.skip("plain weights have the activations' dtype")
    check(products, name, size, ROWS)


@pytest.mark.parametrize("least", [1, 10**6], ids=["on tiles", "without"])
@pytest.mark.parametrize("size", [(33, 70), (96, 1100)], ids=str)
def test_int4_on_tiles_and_without(products: PanelProducts, size: tuple[int, int], least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a matrix unit the number of rows chooses the kernel; here each computes all of them."""
    if not products.tiles:
        pytest.skip("panels of this CPU are no tiles, or it is not for this dtype")
    monkeypatch.setattr(cpu_linear, "TILE_ROWS", least)
    check(products, "int4", size, (1, 5, 16, 33, 70))


def check(products: PanelProducts, name: str, size: tuple[int, int], row_counts: Iterable[int]) -> None:
    torch.manual_seed(0)
    dtype = products.dtype
    weight, bias = torch.randn(size).to(dtype), torch.randn(size[0]).to(dtype)
    given, exact = held(name, weight)
    linear = PanelLinear(products, name, given)
    for rows in row_counts:
        x = torch.randn(rows, size[1]).to(dtype)
        for added in (None, bias):
            wanted = x.double() @ exact.T + (0 if added is None else added.double())
            error = (linear(x, added).double() - wanted).abs().max() / wanted.abs().max()
            assert error < (5e-3 if dtype == torch.bfloat16 else 3e-6), rows


def test_serves_before_the_kernels_are_ready(products: PanelProducts) -> None:
    """torch computes the same from the plain weight, which goes away once the kernels take over."""
    torch.manual_seed(0)
    x = torch.randn(3, 64).to(products.dtype)
    for bits in BITS:
        products.ready = False
        linear = PanelLinear(products, bits, rounded(torch.randn(40, 64).to(products.dtype), BITS[bits]))
        before = linear(x, None)
        products.ready = True
        assert torch.allclose(before.float(), linear(x, None).float(), rtol=0.02, atol=0.1)
        assert linear.weight is None


def test_one_thread_gives_the_same_bits(products: PanelProducts) -> None:
    """Which thread takes a panel is chance; what comes out is not."""
    torch.manual_seed(0)
    linear = PanelLinear(products, "int8", rounded(torch.randn(700, 96).to(products.dtype), 8))
    x = torch.randn(13, 96).to(products.dtype)
    both = linear(x, None)
    torch.set_num_threads(1)
    alone = linear(x, None)
    torch.set_num_threads(2)
    assert torch.equal(both, alone)


def test_rounding() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
    eight, four = rounded(weight, 8), rounded(weight, 4)
    assert eight.numbers.tolist() == [[64, -127, 32, 0], [0, 0, 0, 0]]
    assert four.numbers.tolist() == [[4, -8, 2, 0], [0, 0, 0, 0]]
    assert torch.equal(four.restored(torch.float32), weight)
    assert torch.allclose(eight.restored(torch.float32), weight, atol=0.02)


def test_rounding_error_is_half_a_step() -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 70)
    for bits in (8, 4):
        few = rounded(weight, bits)
        steps = few.scales.abs().repeat_interleave(few.group, dim=1)[:, :70]
        # int4 has no +8: the number opposite to the largest may miss by a whole step.
        assert ((few.restored(torch.float32) - weight).abs() <= steps * (0.51 if bits == 8 else 1.04)).all()


@pytest.fixture(scope="module", params=["bfloat16 amx", "bfloat16 dots", "int8 amx", "int8 dots"])
def tiles(request: pytest.FixtureRequest) -> Iterator[TileProducts]:
    dtype, unit = request.param.split()
    if unit == "dots" and not (features.dots()):
        pytest.skip("this CPU has no dot products of bfloat16 and int8")
    with pytest.MonkeyPatch.context() as patch:
        if unit == "dots":
            patch.setattr(features, "amx", lambda: False)
        elif not features.amx():
            software_tiles.use(patch, TileProducts)
        made = TileProducts(dtype == "int8", 2)
        assert made.wait(250)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield made
    torch.set_num_threads(before)


# Beside those that fit no tile: inputs of several chunks, with and without a rest.
@pytest.mark.parametrize("size", (*SIZES, (64, 32), (96, 2048), (40, 1100)), ids=str)
def test_products_on_tiles(tiles: TileProducts, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    bias = torch.randn(size[0]).bfloat16()
    given, exact = held("int8" if tiles.int8 else "", torch.randn(size).bfloat16())
    linear = TileLinear(tiles, given)
    for rows in (*ROWS, 31, 32, 33, 64, 65):
        x = torch.randn(rows, size[1]).bfloat16()
        for added in (None, bias):
            wanted = x.double() @ exact.T + (0 if added is None else added.double())
            out = linear(x, added)
            assert ((out.double() - wanted).abs().max() / wanted.abs().max()) < 5e-3, rows
            torch.set_num_threads(1)
            assert torch.equal(linear(x, added), out), rows
            torch.set_num_threads(2)


def test_a_row_on_tiles_has_the_same_bits_whatever_is_beside_it(tiles: TileProducts) -> None:
    torch.manual_seed(0)
    linear = TileLinear(tiles, held("int8" if tiles.int8 else "", torch.randn(70, 1100).bfloat16())[0])
    x = torch.randn(70, 1100).bfloat16()
    together = linear(x, None)
    for first, count in ((0, 1), (3, 2), (20, 3), (5, 4), (31, 7), (40, 9), (1, 40)):
        assert torch.equal(linear(x[first : first + count], None), together[first : first + count])


def test_tiles_serve_before_the_kernels_are_ready(tiles: TileProducts) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 64).bfloat16()
    tiles.ready = False
    linear = TileLinear(tiles, held("int8" if tiles.int8 else "", torch.randn(40, 64).bfloat16())[0])
    before = linear(x, None)
    tiles.ready = True
    assert linear.weight is not None
    torch.testing.assert_close(linear(x, None), before, rtol=0.02, atol=0.1)
    assert linear.weight is None


def test_a_nan_on_tiles_stays_in_its_row(tiles: TileProducts) -> None:
    """Rows that a tile lacks hold what was there before; neither they nor a row of NaNs touch another row."""
    linear = TileLinear(tiles, held("int8" if tiles.int8 else "", torch.randn(64, 64).bfloat16())[0])
    x = torch.randn(16, 64).bfloat16()
    clean = linear(x, None)
    x[3, 5] = float("nan")
    broken = linear(x, None)
    assert broken[3].isnan().all()
    assert torch.equal(torch.cat((broken[:3], broken[4:])), torch.cat((clean[:3], clean[4:])))
    assert torch.equal(linear(x[:3], None), clean[:3])


@pytest.mark.parametrize("size", [(32, 70), (96, 96), (192, 2048)], ids=str)
def test_gated_products_on_tiles(tiles: TileProducts, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    bias = torch.randn(size[0]).bfloat16()
    given, exact = held("int8" if tiles.int8 else "", torch.randn(size).bfloat16())
    linear = TileLinear(tiles, given, gated=True)
    for rows in (1, 16, 17, 40, 65):
        # Gates from far below zero to far above.
        x = torch.randn(rows, size[1]).bfloat16() * 4
        for added in (None, bias):
            wanted = x.double() @ exact.T + (0 if added is None else added.double())
            gate, up = wanted.chunk(2, dim=-1)
            wanted = torch.nn.functional.silu(gate) * up
            assert ((linear(x, added).double() - wanted).abs().max() / wanted.abs().max()) < 5e-3, rows


def test_int8_on_tiles_scales_each_row_by_itself(tiles: TileProducts) -> None:
    """Rows of very different size, one with an outlier among small numbers as language models have them, one of zeros, one too small."""
    torch.manual_seed(0)
    if not tiles.int8:
        pytest.skip("bfloat16 has an exponent of its own in each number")
    given, exact = held("int8", torch.randn(70, 300).bfloat16())
    x = torch.randn(6, 300).bfloat16()
    x[1] *= 1e20
    x[2] *= 1e-20
    x[3, 7] = 2000
    x[4] = 0
    x[5] *= 1e-38
    out, wanted = TileLinear(tiles, given)(x, None).double(), x.double() @ exact.T
    for row in range(4):
        assert ((out[row] - wanted[row]).abs().max() / wanted[row].abs().max()) < 5e-3, row
    # Where the outlier's own weight is zero, the rest of the row still has 5 bits and more.
    assert (out[3] - wanted[3]).abs().max() <= 2000 / 65024 * exact.abs().sum(dim=1).max() + 2**-8 * wanted[3].abs().max()
    assert torch.equal(out[4:], torch.zeros(2, 70, dtype=torch.float64))
