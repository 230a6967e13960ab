"""The guarantee stands in the documentation word for word."""

from __future__ import annotations

from pathlib import Path

from scopeferry.reports import receipt

ROOT = Path(__file__).parents[2]

#: A copy of the text that the project has promised. It changes only when the promise does.
GUARANTEE = (
    # what it says
    "For every file that a run calls *verified*, scopeferry read the source once from its first to its last byte, "
    "and inode, size, modification time and change time of the source were the same before and after. It wrote "
    "these bytes under a temporary name in the destination folder, had them flushed to the storage, asked for the "
    "cached copy to be dropped, read the file back in full, and found the digest named in the receipt equal. Only "
    "then did the file get its name, and only after that was it recorded. (A file called *adopted* was there "
    "before: both sides were read in full and found equal.) So any file of ours that bears its final name is "
    "whole, at every moment, also after a crash. A file that changed, vanished, could not be read or could not be "
    "proved is named, and the run does not end with exit code 0. Nothing is deleted at the source by a copy, and "
    "nothing at the destination is overwritten that scopeferry did not put there, unless you ask for it. "
    # and what it does not say
    "What this does not say: that a file server or mount which answered had its answer from its disks (the "
    "receipt then says *server* or *mount*); that the storage will still return tomorrow what it returned today "
    "(run `verify` again); that the instrument wrote what the camera saw; that the files of a source still in use "
    "belong to one instant; that a program which writes through a memory map into a file while it is read was "
    "noticed on every system; that nobody forged data and manifest together (keep the manifest's SHA-256 "
    "elsewhere, and use sha256 or blake3). A sample is called a sample."
)


def quoted(page: Path) -> str:
    lines = page.read_text("utf-8").splitlines()
    return " ".join(" ".join(line.removeprefix(">") for line in lines if line.startswith(">")).split())


def test_the_guarantee_is_word_for_word():
    assert quoted(ROOT / "docs/explanation/guarantees.md") == GUARANTEE


SAME_WORDS = (
    "last byte",
    "change time",
    "temporary name",
    "flushed",
    "cached copy",
    "in full",
    "Only then",
    "elsewhere",
)


def test_the_receipt_says_it_in_short_with_the_same_words():
    short = " ".join(receipt.GUARANTEE.split())
    assert [words for words in SAME_WORDS if words not in short or words not in GUARANTEE] == []
