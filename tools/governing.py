"""A governor around what a command does, as its options say."""

import argparse
import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

from bsformat import Container, format_size, parse_size
from bsformat.errors import BudgetError

if TYPE_CHECKING:
    import torch

    from bitstack import Use
    from bitstack.loader import AutoBudget, Driver


def is_governed(args: argparse.Namespace) -> bool:
    """Whether any of the options asks for a governor."""
    return any(value is not None for value in (args.floor, args.ceiling, args.governor_log))


def check_bounds(container: Container, args: argparse.Namespace) -> None:
    """Refuse a floor, a ceiling and a budget that do not go together.

    Raises:
        BudgetError: in one line.
    """
    if args.progressive and is_governed(args):
        raise BudgetError(
            "--progressive grows the model by itself, as a governor does: leave it out, or --floor, --ceiling and "
            "--governor-log",
            where=container.uri,
            reason="budget-invalid",
        )
    floor, ceiling = _bounds(container, args)
    least, most = container.minimum_bytes, container.total_bytes
    for name, size in (("floor", floor), ("ceiling", ceiling)):
        if size is not None and size < least:
            text = getattr(args, name)
            raise BudgetError(
                f"--{name} {text} is below the minimum of this file: {least} bytes ({format_size(least)})",
                where=container.uri,
                reason="budget-too-small",
            )
    if (floor or 0) > (most if ceiling is None else ceiling):
        raise BudgetError(
            f"--floor {args.floor} is above --ceiling {args.ceiling or '100%'}",
            where=container.uri,
            reason="budget-invalid",
        )
    size = None if args.budget == "auto" else parse_size(args.budget, most)
    if size is not None and (size < (floor or 0) or (ceiling is not None and size > ceiling)):
        raise BudgetError(
            f"--budget {args.budget} is not between --floor and --ceiling", where=container.uri, reason="budget-invalid"
        )


def first_budget(
    container: Container, args: argparse.Namespace, device: "torch.device", dtype: "torch.dtype", use: "Use"
) -> "tuple[int | str, AutoBudget | None]":
    """The budget to load with, and what ``auto`` came to, if that was asked for; it heeds floor and ceiling.

    Raises:
        BudgetError: ``auto`` is below the minimum of the file.
    """
    if args.budget != "auto":
        return args.budget, None
    from bitstack.automatic import plan_auto

    decided, _ = plan_auto(container, device, dtype, use)
    floor, ceiling = _bounds(container, args)
    budget = decided.budget if ceiling is None else min(decided.budget, ceiling)
    return budget if floor is None else max(budget, floor), decided


def _bounds(container: Container, args: argparse.Namespace) -> tuple[int | None, int | None]:
    total = container.total_bytes
    floor, ceiling = (None if text is None else parse_size(text, total) for text in (args.floor, args.ceiling))
    return floor, ceiling


@contextmanager
def governed(model: Any, args: argparse.Namespace) -> Iterator[list[dict[str, Any]] | None]:
    """Within it a model grows and shrinks with the free memory, if the options ask for that.

    Yields:
        What the governor did, event by event, as it happens; None without one. Decisions to hold are in the log only.
    """
    events = _Events()
    with driven(model, args, events) as driver:
        yield events.kept if driver is not None else None


@contextmanager
def driven(model: Any, args: argparse.Namespace, *handlers: logging.Handler) -> "Iterator[Driver | None]":
    """The same for a program that has a log of its own.

    Args:
        handlers: what the governor does goes to these too, as far as their levels let it through.

    Yields:
        What runs the governor; None without one.
    """
    if not is_governed(args):
        yield None
        return
    from bitstack import govern
    from bitstack.loader import JsonLines
    from bitstack.loader.governor_log import NAME

    logger = logging.getLogger(NAME)
    with ExitStack() as stack:
        every = list(handlers)
        if args.governor_log:
            every.append(stack.enter_context(closing(logging.FileHandler(args.governor_log, "w"))))
            every[-1].setFormatter(JsonLines())
        for handler in every:
            logger.addHandler(handler)
            stack.callback(logger.removeHandler, handler)
        level, spread = logger.level, logger.propagate
        stack.callback(logger.setLevel, level)
        stack.callback(setattr, logger, "propagate", spread)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        yield stack.enter_context(govern(model, args.floor, args.ceiling))


class _Events(logging.Handler):
    """Keeps what happened; of decisions those to do something."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.kept: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        event: dict[str, Any] = getattr(record, "governor", {})
        if event.get("event") != "decision" or event.get("action") != "hold":
            self.kept.append(event)
