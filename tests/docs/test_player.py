"""The player of pages itself: it must fail where a page is not so."""

from __future__ import annotations

import textwrap

import pytest

RIGHT = {
    "output": "```console\n$ echo one; echo two\none\ntwo\n```",
    "anything": "```console\n$ echo one; echo two; echo three\none\n...\nth...\n```",
    "nothing shown": "```console\n$ echo whatever\n```",
    "exit code in a comment": "```console\n$ sh -c 'exit 5'   # exit 5: refused\n```",
    "exit code in the last line": "```console\n$ echo 'exit 4: differs'; (exit 4)\nexit 4: differs\n```",
    "continued": "```console\n$ echo one \\\n>   two\none two\n```",
    "one shell": "```console\n$ cd /acq\n$ pwd\n/acq\n```",
    "what varies": "```console\n$ echo 20261125T032207Z-a24790 3.18 MB/s\n20260101T000000Z-000000 999 MB/s\n```",
    "python": '```python\nx = "/acq/run7"\nx, 1 + 1   # "/acq/run7", 2\n```',
    "setup": "<!-- setup\ntouch /acq/here\n-->\n```console\n$ ls /acq\nhere\nrun7\n```",
    "not run": "<!-- not run: it would fail -->\n```console\n$ false\n```",
    "in a list": "* item\n\n  ```console\n  $ echo one\n  one\n  ```",
}
WRONG = {
    "output": "```console\n$ echo one\ntwo\n```",
    "a line too many": "```console\n$ echo one; echo two\none\n```",
    "a line too few": "```console\n$ echo one\none\ntwo\n```",
    "exit code": "```console\n$ false\n```",
    "exit code that is not so": "```console\n$ true   # exit 1\n```",
    "python": "```python\n1 + 1   # 3\n```",
    "python raises": "```python\n1 / 0\n```",
    "setup": "<!-- setup\nfalse\n-->",
    "a reason too far away": "<!-- not run: another block -->\n\ntext\n\n```console\n$ false\n```",
}


@pytest.fixture
def page(tmp_path):
    def write(text):
        path = tmp_path / "page.md"
        path.write_text(textwrap.dedent(text) + "\n", "utf-8")
        return path

    return write


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_it_agrees(page, play, text):
    play(page(text))


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_it_disagrees(page, play, text):
    with pytest.raises((AssertionError, ZeroDivisionError)):
        play(page(text))
