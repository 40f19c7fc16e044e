"""The short convolution against torch's own, in one call, in pieces and with packed documents."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dla_train.models.context import Heads
from dla_train.models.convolution import ShortConvolution
from dla_train.models.documents import Documents


def make(channels: int, width: int, *, bias: bool = True) -> ShortConvolution:
    torch.manual_seed(0)
    conv = ShortConvolution([Heads(channels, 1)], width, bias=bias).double()
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter)
    return conv


def torch_convolution(conv: ShortConvolution, x: Tensor) -> Tensor:
    padded = F.pad(x.transpose(1, 2), (conv.width - 1, 0))
    return F.conv1d(padded, conv.weight[:, None], conv.bias, groups=x.shape[2]).transpose(1, 2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("time", [1, 2, 3, 9])
def test_equals_conv1d_with_gradients(time: int, width: int, bias: bool) -> None:
    conv = make(5, width, bias=bias)
    wide = torch.randn(2, time, 11, dtype=torch.float64, requires_grad=True)
    x = wide[..., 3:8]  # as in the mixers: a slice of a wider projection
    weights = torch.randn(2, time, 5, dtype=torch.float64)
    inputs = [wide, *conv.parameters()]
    y = conv(x)[0]
    expected = torch_convolution(conv, x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(
        torch.autograd.grad((y * weights).sum(), inputs), torch.autograd.grad((expected * weights).sum(), inputs)
    )


def test_gradients_pass_gradcheck_with_documents() -> None:
    conv = make(3, 4)
    x = torch.randn(1, 8, 3, dtype=torch.float64, requires_grad=True)
    documents = Documents.of(torch.tensor([0, 2, 3, 8]), 1, 8)
    weight, bias = conv.weight, conv.bias
    assert bias is not None

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(conv, {"weight": weight, "bias": bias}, (x,), {"documents": documents})[0]

    assert torch.autograd.gradcheck(run, (x, weight, bias))


@pytest.mark.parametrize("pieces", [[1] * 9, [2, 1, 6], [5, 4], [8, 1]])
def test_pieces_equal_one_call(pieces: list[int]) -> None:
    conv = make(5, 4)
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    expected, history_of_all = conv(x, return_history=True)
    outputs, history = [], None
    for piece in x.split(pieces, 1):
        y, history = conv(piece, history=history, return_history=True)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), expected)
    assert history is not None
    assert history_of_all is not None
    assert torch.equal(history, history_of_all)
    assert history.shape == (2, 3, 5)


def test_history_does_not_keep_the_input_alive() -> None:
    history = make(5, 4)(torch.randn(2, 1000, 5, dtype=torch.float64), return_history=True)[1]
    assert history is not None
    assert history.untyped_storage().nbytes() == 2 * 3 * 5 * 8


def test_documents_are_convolved_alone() -> None:
    conv = make(5, 4)
    lengths = [1, 2, 5, 3, 1]
    x = torch.randn(1, 12, 5, dtype=torch.float64)
    documents = Documents.of(torch.tensor([0, 1, 3, 8, 11, 12]), 1, 12)
    alone = torch.cat([conv(part)[0] for part in x.split(lengths, 1)], 1)
    assert torch.equal(conv(x, documents=documents)[0], alone)


def test_bfloat16_sums_are_rounded_once() -> None:
    conv = make(64, 4).float()
    x = torch.randn(2, 50, 64).bfloat16()
    y = conv(x)[0]
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, conv(x.float())[0].bfloat16())


def test_compiles_without_a_graph_break() -> None:
    conv = make(5, 4)
    x = torch.randn(2, 9, 5, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(lambda x: conv(x)[0], backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), conv(x)[0])
    torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), x), torch.autograd.grad(conv(x)[0].sum(), x))
