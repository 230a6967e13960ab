"""The exception tree, and the one table of problem codes.

::

    ScopeferryError
    ├── UsageError         the command or its input is wrong: fix it                       exit 2
    ├── Failed             the run as a whole cannot go on                                 exit 1
    ├── NoSpace            make room, run the same command again                           exit 7
    ├── Temporary          try again later; a scheduler may requeue                        exit 75
    ├── Refused            a safety rule says no; the message names the way past it        exit 5
    ├── Interrupted        somebody stopped the run                                        exit 130
    └── ItemError          one item failed, the others go on                               exit 3
        └── SourceChanged  the file moved while it was read: it is tried again

Every exception carries a code of :data:`CODES`. The code decides the exit code, so a renamed message never changes
what a script sees. Codes are a contract (``specs/cli.md``): a new one may be added, none is used again for something
else.
"""

from __future__ import annotations

#: code -> (exit code, meaning, what to do next). Exit code 0 marks a note: it is said, and changes nothing.
CODES: dict[str, tuple[int, str, str]] = {
    "SF-100": (2, "wrong usage", "see scopeferry COMMAND --help"),
    "SF-101": (2, "source is not there", "check the path; is the disk or share mounted?"),
    "SF-102": (2, "parent folder of the destination is not there", "make it, or add --parents"),
    "SF-103": (2, "source and destination lie in one another", "choose a destination outside the source"),
    "SF-104": (2, "source and destination are the same", "choose another destination"),
    "SF-105": (2, "option value not understood", "see --help for the values"),
    "SF-106": (2, "unknown digest", "xxh128, blake3, sha256, sha512, sha1 or md5"),
    "SF-107": (2, "journal would lie on a network file system", "name a file on a local disk with --journal"),
    "SF-108": (2, "journal was written by a newer scopeferry", "use that version, or name another file with --journal"),
    "SF-109": (2, "setting not understood", "correct the configuration file or variable"),
    "SF-110": (2, "manifest or record line not understood", "restore the file, or make a new one from the source"),
    "SF-111": (2, "no manifest", "scopeferry verify DST SRC --adopt makes one"),
    "SF-112": (2, "neither a folder nor a regular file", "name a folder or a regular file"),
    "SF-113": (2, "source lies in the record folder of the destination", "choose another source"),
    "SF-114": (2, "no record of a copy from here", "run scopeferry transfer first"),
    "SF-115": (2, "no such run, or several", "scopeferry status lists the runs"),
    "SF-116": (2, "targets file not understood", "correct the line that is named"),
    "SF-117": (2, "targets are in each other's way", "give each a destination of its own, outside the others"),
    "SF-118": (2, "a source that is no folder", "live follows folders: scopeferry transfer copies a file"),
    "SF-130": (130, "interrupted", "run the same command again: it resumes"),
    "SF-201": (3, "changed each time it was read", "run the same command again when nothing writes it"),
    "SF-202": (3, "vanished before it was copied", "look for it at the source; run the same command again"),
    "SF-203": (3, "permission denied at the source", "give read permission, run the same command again"),
    "SF-204": (3, "read error at the source", "check the disk, run the same command again"),
    "SF-205": (3, "folder could not be listed", "give read permission, run the same command again"),
    "SF-206": (3, "what was read back differs from what was written, twice", "check the destination's disk and memory"),
    "SF-207": (3, "the destination cannot hold this name", "add --names percent, or rename it at the source"),
    "SF-208": (
        3,
        "the destination takes this name for another one's",
        "add --names percent, or rename it at the source",
    ),
    "SF-209": (3, "larger than the destination's file system allows", "choose a destination with another file system"),
    "SF-210": (3, "metadata could not be kept", "drop --strict, or drop that kind with --no-keep"),
    "SF-211": (3, "write error at the destination", "check the destination, run the same command again"),
    "SF-212": (3, "permission denied at the destination", "give write permission, run the same command again"),
    "SF-213": (3, "the file it is a hard link of was not copied", "see that file's problem"),
    "SF-214": (3, "source could not be used to heal the copy", "see the message; the copy was left as it is"),
    "SF-215": (
        3,
        "gone at the source, and missing in the copy",
        "put it back, from another copy or a backup; or --exclude it, if it is meant to be gone",
    ),
    "SF-301": (1, "destination cannot be written", "give write permission, or mount it for writing"),
    "SF-302": (1, "internal error", "please report this, with --verbose"),
    "SF-303": (
        1,
        "another disk or folder stands where the destination was",
        "mount the right one, run the same command again",
    ),
    "SF-304": (
        1,
        "the journal cannot be written",
        "make room or give permission there, or name another with --journal",
    ),
    "SF-305": (1, "a copy or its record cannot be read", "check the path and its permissions"),
    "SF-306": (1, "a check of the demo failed", "look at what it left; please report this"),
    "SF-311": (7, "not enough free space at the destination", "make room, run the same command again"),
    "SF-312": (7, "not enough free inodes at the destination", "make room, run the same command again"),
    "SF-313": (7, "destination is full", "make room, run the same command again: it resumes"),
    "SF-321": (75, "another run works on this destination", "wait until it has ended"),
    "SF-322": (75, "source is gone", "mount it again, run the same command again"),
    "SF-323": (75, "destination is gone", "mount it again, run the same command again"),
    "SF-324": (75, "the journal is in use", "wait until the other program has ended"),
    "SF-325": (75, "stopped by the scheduler", "run the same command again: it resumes"),
    "SF-401": (4, "copy differs from the manifest", "scopeferry repair SRC DST"),
    "SF-402": (4, "missing in the copy", "scopeferry repair SRC DST"),
    "SF-403": (4, "cannot be read", "check the disk; scopeferry repair SRC DST"),
    "SF-404": (4, "metadata differs from the record", "scopeferry repair SRC DST"),
    "SF-405": (4, "not in the manifest", "drop --strict if extra files are expected"),
    "SF-406": (4, "source differs from the record", "the copy is what was recorded; look at the source"),
    "SF-407": (
        4,
        "source and copy both differ from the record, and are equal to each other",
        "run scopeferry transfer again",
    ),
    "SF-408": (4, "source and copy differ", "scopeferry transfer with --on-conflict, if the source is right"),
    "SF-409": (4, "the chain of records is broken", "somebody changed a record: compare with a copy of it"),
    "SF-410": (4, "source and copy both differ from the record, and from each other", "neither is what was recorded"),
    "SF-411": (4, "something of another kind stands in the copy", "move it away, then scopeferry repair SRC DST"),
    "SF-501": (5, "other content stands at the destination", "--on-conflict replace, or keep-both"),
    "SF-502": (5, "something of another kind stands at the destination", "move it away, run the same command again"),
    "SF-503": (5, "source has become shorter than our copy", "look at the source; --on-conflict replace sends it"),
    "SF-504": (5, "a link stands where a folder should be", "remove the link, run the same command again"),
    "SF-505": (5, "the folder is not empty", "name an empty folder, or one that is not there yet"),
    "SF-506": (5, "nearly all chunks of an array vanished at once", "look at the source; the copy keeps them"),
    "SF-507": (
        5,
        "the source's own file stands at the destination: no copy",
        "remove that name or mount at the destination",
    ),
    "SF-511": (5, "no complete record of this copy", "scopeferry transfer SRC DST, to the end"),
    "SF-512": (5, "copy is not proved now", "scopeferry verify DST, then scopeferry repair SRC DST"),
    "SF-513": (5, "source is not what was copied", "scopeferry transfer SRC DST"),
    "SF-514": (5, "too few copies", "name more with --copy, or ask for fewer with --copies"),
    "SF-515": (5, "younger than asked for", "wait, or change --older-than"),
    "SF-516": (5, "pinned", "remove the pin in pin.toml of the record folder"),
    "SF-517": (5, "nobody has declared the source finished", "scopeferry clean --finish now, or transfer SRC DST"),
    "SF-518": (
        5,
        "copy lies on the same file system as the source",
        "name a copy on another disk, or drop --other-disk",
    ),
    "SF-519": (5, "something still runs on this copy", "wait until it has ended"),
    "SF-521": (5, "source differs from the record too", "neither side is what was recorded: decide by hand"),
    "SF-601": (6, "source is still being written", "scopeferry live SRC DST follows a source that is in use"),
    "SF-602": (6, "the acquisition was aborted", "the copy is what there is; see what is missing"),
    "SF-603": (6, "the end is not proved", "name what ends it with --finish, or declare it: --finish now"),
    "SF-901": (0, "skipped: not a file, folder or link", ""),
    "SF-902": (0, "healed: what was found is in set_aside", ""),
    "SF-903": (0, "gone at the source, kept at the destination", ""),
    "SF-904": (0, "metadata could not be kept", ""),
    "SF-905": (0, "what an earlier copy left in the source is not copied", ""),
    "SF-906": (0, "records lie elsewhere", ""),
    "SF-907": (0, "journal was damaged or lost: rebuilt from the records", ""),
    "SF-908": (0, "stored under another name", ""),
    "SF-909": (0, "replaced: other content stood there", ""),
    "SF-910": (0, "the copy lies on the file system of the source", ""),
    "SF-911": (0, "kept both: other content stands under this name", ""),
    "SF-912": (0, "checked again after a change of settings", ""),
    "SF-913": (0, "only part of it was looked at", ""),
    "SF-914": (0, "something that seems to say finished says nothing", ""),
    "SF-915": (0, "metadata that are not understood: copied as they are", ""),
    "SF-916": (0, "declared finished although this spoke against it", ""),
    "SF-917": (0, "not noted when this was checked", "make room for the journal, or give permission"),
}

#: What decides when several things went wrong: the first that applies (``specs/transfer.md`` 5).
PRECEDENCE = (130, 7, 1, 5, 75, 2, 4, 3, 6, 0)


def exit_code(codes: set[str]) -> int:
    """The exit code of a run in which problems with these codes were met.

    >>> exit_code({"SF-204", "SF-313", "SF-901"})
    7
    >>> exit_code(set())
    0
    """
    exits = {CODES[code][0] for code in codes}
    return next((code for code in PRECEDENCE if code in exits), 0)


class ScopeferryError(Exception):
    """Root of all errors of this package: a code of :data:`CODES`, a message that names the thing, the path if there
    is one.
    """

    default = "SF-302"

    def __init__(self, message: str, *, code: str = "", path: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.code = code or self.default
        self.path = path
        self.hint = hint or CODES[self.code][2]

    @property
    def exit_code(self) -> int:
        """The exit code that this error gives a command."""
        return CODES[self.code][0]


class UsageError(ScopeferryError):
    """The command, a setting or a file that a person wrote is wrong."""

    default = "SF-100"


class Failed(ScopeferryError):
    """The run as a whole cannot go on."""

    default = "SF-302"


class NoSpace(ScopeferryError):
    """The destination has not enough room."""

    default = "SF-313"


class Temporary(ScopeferryError):
    """It may work later: a side is gone for now, or another run holds the lock."""

    default = "SF-323"


class Refused(ScopeferryError):
    """A safety rule says no."""

    default = "SF-501"


class Interrupted(ScopeferryError):
    """Somebody stopped the run; the same command resumes."""

    default = "SF-130"


class ItemError(ScopeferryError):
    """One item failed; the others go on."""

    default = "SF-211"


class SourceChanged(ItemError):
    """The source file moved while it was read: what was read is thrown away."""

    default = "SF-201"
