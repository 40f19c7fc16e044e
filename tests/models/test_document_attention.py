"""Documents that are attended to in groups, against one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dla_train.models import document_attention
from dla_train.models.document_attention import attend_to_documents
from dla_train.models.documents import Documents
from dla_train.models.sliding_window import attend


def documents_of(*lengths: int) -> Documents:
    ends = torch.tensor((0, *lengths)).cumsum(0)
    return Documents.of(ends, 1, int(ends[-1]))


def one_by_one(q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None) -> Tensor:
    parts = zip(*(x.split(documents.lengths, 2) for x in (q, k, v)), strict=True)
    return torch.cat([attend(q, k, v, window) for q, k, v in parts], 2)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(
    "lengths",
    [(5,), (1, 1, 1), (1, 2, 3, 4, 5, 6, 7, 8, 9), (20, 1, 17, 2), (17, 20), (16, 7, 16), (3, 40, 3, 33, 1)],
    ids=str,
)
def test_each_token_reads_its_own_document(
    lengths: tuple[int, ...], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_attention, "LONG", 16)
    document_attention._groups.cache_clear()
    generator = torch.Generator().manual_seed(0)
    documents = documents_of(*lengths)
    shapes = ((1, heads, sum(lengths), 6) for heads in (4, 2, 2))
    q, k, v = (torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes)
    o, expected = (read(q, k, v, documents, window) for read in (attend_to_documents, one_by_one))
    torch.testing.assert_close(o, expected)
    weight = torch.randn(o.shape, dtype=torch.float64, generator=generator)
    found, wanted = (torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (o, expected))
    torch.testing.assert_close(found, wanted)


def test_hundreds_of_documents_take_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(document_attention, "attend", lambda q, k, v, window: calls.append(q.shape) or q)
    lengths = [1 + number * 37 % 300 for number in range(200)]
    x = torch.randn(1, 1, sum(lengths), 2)
    assert torch.equal(attend_to_documents(x, x, x, documents_of(*lengths), None), x), (
        "every token is back in its place"
    )
    assert len(calls) <= 10
    assert sum(batch * width for batch, _, width, _ in calls) < 2 * sum(lengths), "less padding than text"


def test_documents_that_validation_has_read_can_be_trained_on() -> None:
    document_attention._groups.cache_clear()
    documents = documents_of(3, 5, 4)
    x = torch.randn(1, 2, 12, 4, requires_grad=True)
    with torch.inference_mode():
        attend_to_documents(x, x, x, documents, None)
    attend_to_documents(x, x, x, documents, None).sum().backward()
    assert x.grad is not None
