"""How much, how often, how long: the numbers of a source that grows, in one place.

They are read where they are used (``limits.ROOM``), so that a test may make a small world of few.
"""

from __future__ import annotations

#: File systems whose folders change their time whenever a name in them does, at once and for everybody.
TRUSTED = {"ext4", "xfs", "btrfs", "f2fs", "tmpfs", "ntfs", "ntfs3"}

SLICE_S = 0.02  # of work between two items, or two ticks
SHARE = 20  # a look is repeated after this many times what it took, at least
MOST_LOOK_S, MOST_LOOK_NETWORK_S = 0.002, 0.02  # what took longer was no look: we were stopped, or waited for a server
MOST_STRETCH = 16.0  # so much rarer is everything due while the looks at folders cost more than their share

LONGEST_S = 5.0  # between two looks at a folder, up to FEW_FOLDERS
FEW_FOLDERS = 10_000
CROWDED_S = 1.0  # between two listings of a folder whose files wait for room to be looked at
WATCHED_S = 60.0  # between two looks at a watched folder where events are relied on
WALK_S = 60.0  # between two walks that nobody asked for
WALK_SHARE = 50
SETTLES_S = 12.0  # a file that is not whole and unchanged for so long does not hold up the end
FRESH_NS = 10_000_000_000  # written so lately is still in memory

BATCH = 400  # names between two looks at the clock
LARGE = 20_000  # names of one folder beyond which they are not held all at once
ROOM = 20_000  # items that wait to go; twice that with what events tell of and metadata
HELD_ROOM = 100_000  # items that are held off
LOOKS = 50_000  # files that are looked at one by one; metadata take half of it
LOOKS_AT_ONCE = 100
FIRST_WATCHES = 8192
MOST_TOLD = 100_000  # paths of each kind that are named
