"""Loading a model as the options of a command say. Imports nothing heavy."""

import argparse
from typing import TYPE_CHECKING, Any

from bsformat import Container
from bsformat.errors import BudgetError

from .console import quiet_libraries, reporter, say
from .governing import first_budget

if TYPE_CHECKING:
    import torch

    from bitstack import Use
    from bitstack.loader import AutoBudget


def check_budgets(container: Container, budgets: list[str]) -> None:
    """Refuse budgets below the minimum before anything heavy is imported.

    Raises:
        BudgetError: naming the minimum.
    """
    for budget in budgets:
        if budget != "auto":
            container.plan(budget)


def checked_reach(container: Container, option: str, tokens: int | None, most: int | None = None) -> int | None:
    """Tokens that an option asks a model to read at once; without one, ``most`` or what the model can read, if less.

    Raises:
        BudgetError: the model cannot read so many.
    """
    from bitstack.reach import readable_tokens_of

    limit = readable_tokens_of(container)
    if tokens is None:
        return min(most, limit or most) if most is not None else None
    if limit is not None and tokens > limit:
        raise BudgetError(f"{option} {tokens} is more than this model can read, {limit} tokens")
    return tokens


def place(args: argparse.Namespace) -> "tuple[torch.device, torch.dtype]":
    """The device and the type to compute in that options name, or the usual ones; their kernels are used from here on.

    Raises:
        BstkError: there is no such device, or no such kernels for it.
    """
    from .devices import default_dtype, find_device, find_dtype, use_kernels

    quiet_libraries()
    device = find_device(args.device)
    use_kernels(args.kernels, device)
    return device, find_dtype(args.dtype) or default_dtype(device)


def load_as_asked(container: Container, args: argparse.Namespace, use: "Use") -> "tuple[Any, AutoBudget | None]":
    """The model within the budget that options name, whole or progressively, and what ``auto`` came to, which is said.

    Raises:
        BstkError: as `place`, `first_budget` and `bitstack.load`.
    """
    import bitstack

    device, dtype = place(args)
    budget, auto = first_budget(container, args, device, dtype, use)
    if auto is not None:
        say(auto)
    if args.progressive:
        return bitstack.load(container, budget, device, dtype, use=use, progressive=True), auto
    return load_with_bar(container, budget, device, dtype, use=use), auto


def load_with_bar(container: Container, budget: str | int, device: Any, dtype: Any, **options: Any) -> Any:
    """`bitstack.load`, with a bar over the resident bytes."""
    import bitstack

    with reporter().stage("load", expected_bytes(container, budget), "B") as advance:
        return bitstack.load(container, budget, device, dtype, progress=advance, **options)


def expected_bytes(container: Container, budget: str | int) -> int:
    """About how many bytes a load will bring. In a narrow type a model may fit where its stored bytes do not."""
    if budget == "auto":
        return container.total_bytes
    try:
        return container.plan(budget).resident_bytes
    except BudgetError:
        return container.minimum_bytes
