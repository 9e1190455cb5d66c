"""The engine and the image under test. Without them the tier is left out, and the summary says what makes them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from image.containers import Containers


@pytest.fixture
def containers() -> Iterator[Containers]:
    with Containers.opened() as opened:
        yield opened
