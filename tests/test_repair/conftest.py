from __future__ import annotations

import pytest

from scopeferry.testing.copies import Made, make


@pytest.fixture
def made(tmp_path) -> Made:
    """A small source and its copy."""
    return make(tmp_path)


@pytest.fixture
def rich(tmp_path) -> Made:
    """The same with links, an attribute and a narrow mode."""
    return make(tmp_path, links=True)
