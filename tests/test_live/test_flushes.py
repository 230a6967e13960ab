"""What is flushed of the disk that the instrument writes to: no more than our own files, unless it has ended."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scopeferry.kernel import publish

COMMAND = str(Path(sys.executable).with_name("scopeferry"))


@pytest.fixture
def flushes(store, tmp_path):
    """Follow the store with these options; how often (a whole file system, one file) was flushed."""
    if shutil.which("strace") is None or not publish.disk(str(tmp_path)).flushes_whole:
        pytest.skip("needs strace, and a file system that is flushed as a whole")

    def follow(*options):
        log = tmp_path / "strace.log"
        words = ["strace", "-f", "-qq", "-o", str(log), "-e", "trace=syncfs,fdatasync", COMMAND, "live"]
        words += [str(store.root), str(tmp_path / "copy"), "--quiet", *options]
        subprocess.run(words, check=True, timeout=120, env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")})
        text = log.read_text()
        return text.count("syncfs("), text.count("fdatasync(")

    return follow


def test_a_store_that_is_said_to_be_finished_is_flushed_batch_by_batch(store, flushes):
    store.put(*range(200))
    store.finish()
    whole, single = flushes()
    assert whole >= 1
    assert single < 200


def test_a_store_that_may_be_written_to_is_not_flushed_whole(store, flushes):
    store.put(*range(200))
    whole, single = flushes("--finish", "quiet=1s", "--settle", "1s")
    assert whole == 0
    assert single >= 200
