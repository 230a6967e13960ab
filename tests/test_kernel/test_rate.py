"""`--limit`: what is to be moved waits for its turn first, in pieces that are small beside the limit."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

import scopeferry
from scopeferry.kernel import rate
from scopeferry.kernel.rate import TokenBucket
from scopeferry.kernel.task import Control
from scopeferry.testing.steps import Steps


@pytest.mark.parametrize("workers", [1, 4, 16])
@pytest.mark.parametrize("limit", [1000, 500_000, 50_000_000])
def test_no_five_seconds_see_more_than_their_share(monkeypatch, limit, workers):
    now = 0.0
    monkeypatch.setattr(rate.time, "monotonic", lambda: now)
    bucket = TokenBucket(limit)
    moved = []  # (when, bytes)
    ready = [0.0] * workers
    while now < 12:
        one = ready.index(min(ready))
        now = ready[one]
        ready[one] = now + bucket(bucket.piece_bytes)
        moved.append((ready[one], bucket.piece_bytes))
    for begin, _ in moved:
        assert sum(size for at, size in moved if begin <= at < begin + 5) <= 1.05 * 5 * limit


@dataclass
class Turns:
    """A limit that keeps nobody waiting, and remembers what was asked for."""

    piece_bytes: int = 1000
    steps: list[tuple[str, int]] = field(default_factory=list)

    def __call__(self, size_bytes: int) -> float:
        self.steps.append(("turn", size_bytes))
        return 0.0


@pytest.mark.parametrize("there", [False, True])
def test_every_byte_waits_before_it_is_moved(tmp_path, there):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a").write_bytes(b"a" * 3500)
    if there:
        (tmp_path / "dst").mkdir()
        (tmp_path / "dst/a").write_bytes(b"a" * 3500)
    turns = Turns()
    with Steps() as steps:
        steps.before("write_at", lambda _fd, data, _at: turns.steps.append(("write", len(data))), times=0)
        result = scopeferry.transfer(tmp_path / "src", tmp_path / "dst", control=Control(limit=turns))
    assert (result.exit_code, result.adopted) == (0, int(there))
    pieces = [1000, 1000, 1000, 500]
    of_the_file = [step for step in turns.steps if step[0] == "turn" or step[1] in pieces]
    if there:
        assert of_the_file == [("turn", size) for size in pieces]
    else:
        assert of_the_file == [step for size in pieces for step in (("turn", size), ("write", size))]
