"""What is shipped for tests: contract suites, a store that fails on purpose, and builders of awkward trees.

Nothing at run time imports it but the demo. Importing it needs neither pytest nor hypothesis; the contract suites need
pytest, and are imported when they are asked for: ``from scopeferry.testing import StoreContract``.
"""

from __future__ import annotations

from typing import Any

_PUBLIC = {
    "Faulty": "scopeferry.testing.faulty",
    "SlowWriter": "scopeferry.testing.slow_writer",
    "SourceContract": "scopeferry.testing.contracts",
    "StoreContract": "scopeferry.testing.contracts",
    "TaskContract": "scopeferry.testing.contracts",
}

__all__ = ["Faulty", "SlowWriter", "SourceContract", "StoreContract", "TaskContract"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'scopeferry.testing' has no attribute {name!r}")
