"""The entry of a job in the register of runs, made when it begins and closed with how it ended."""

from __future__ import annotations

from scopeferry.copying.place import Place
from scopeferry.copying.runs import Registration
from scopeferry.jobs.result import Result
from scopeferry.logs import command_words

COUNTS = ("items", "bytes", "copied", "skipped", "verified", "failed")


def register(result: Result, where: Place) -> Registration:
    """Register a run."""
    return Registration(
        result.run,
        command=list(command_words("scopeferry", result.command, *_operands(result))),
        job=result.command,
        source=result.source,
        destination=result.destination,
        journal=where.journal,
        lock=where.lock,
        records=where.records,
    )


def _operands(result: Result) -> list[str]:
    """What the command would name, where a program called the job."""
    if result.command == "verify":
        return [result.destination, *([result.source] if result.source else [])]
    if result.command == "clean":
        return [result.source, *(word for copy in result.destination.split(", ") for word in ("--copy", copy))]
    return [result.source, result.destination]


def ended(registration: Registration, result: Result) -> None:
    """Say how it ended."""
    counts = {name: getattr(result, name) for name in COUNTS}
    registration.end(result.state, result.exit_code, **counts)
