import logging
import os
import subprocess

import pytest

from scopeferry import logs


@pytest.fixture
def root():
    """The root logger, left as it was found."""
    root, ours = logging.getLogger(), logging.getLogger("scopeferry")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)


@pytest.mark.parametrize("verbose", [False, True])
def test_log_lines_go_where_the_console_wants_them(root, verbose):
    lines = []
    logs.configure(verbose=verbose, write=lines.append)
    logging.getLogger("scopeferry.stores").debug("one")
    logging.getLogger("scopeferry.stores").warning("two")
    logging.getLogger("foreign").info("three")
    wanted = ["DEBUG scopeferry.stores: one"] if verbose else []
    assert [line.split(" ", 2)[2] for line in lines] == [*wanted, "WARNING scopeferry.stores: two"]


def test_words_are_quoted_as_a_shell_reads_them():
    hard = ["", "a b", "it's", "$HOME `x` \\", "new\nline", "tab\t", "-x", "*", "~", "细胞", "#", "\x1b[31m"]
    hard.append(os.fsdecode(b"\xff'\\"))
    line = " ".join(map(logs.quoted, hard))
    assert line.isprintable()
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    assert done.stdout == b"".join(os.fsencode(word) + b"\0" for word in hard)
