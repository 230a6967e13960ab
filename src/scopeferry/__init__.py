"""Carries microscopy data from the instrument to the archive, unchanged, and proves it.

The jobs as functions, each imported at first use: ``scopeferry.transfer(...)``.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "transfer": "scopeferry.jobs.transfer",
    "verify": "scopeferry.jobs.verify",
    "repair": "scopeferry.jobs.repair",
    "clean": "scopeferry.jobs.clean",
    "live": "scopeferry.jobs.live",
    "Live": "scopeferry.jobs.live",
    "Target": "scopeferry.copying.target",
    "inspect": "scopeferry.jobs.inspect",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604  (the keys are strings)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'scopeferry' has no attribute {name!r}")
