from __future__ import annotations

import pytest

from probe.testing import tiny_pipeline


@pytest.fixture(scope="session")
def shared_pipe():
    """One pipeline for tests that leave it as it was; `pipe` asserts that they do."""
    return tiny_pipeline()


@pytest.fixture
def pipe(shared_pipe):
    from tests.erase.snapshots import snapshot

    before = snapshot(shared_pipe)
    yield shared_pipe
    assert snapshot(shared_pipe) == before


@pytest.fixture
def own_pipe():
    """A pipeline that the test may break."""
    return tiny_pipeline()
