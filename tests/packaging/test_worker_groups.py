"""Groups of tests (mark xdist_group) depend on how pytest and pytest-xdist fit together, and are lost silently."""

import pytest


@pytest.mark.xdist_group("of this test")
def test_a_group_reaches_the_scheduler(request):
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("runs without --dist=loadgroup, as `make test` has it")
    assert request.node.nodeid.endswith("@of this test")
