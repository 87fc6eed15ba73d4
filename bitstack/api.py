"""Loading a model from a container, and the handle that resizes it: where packed layers and the loader meet."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

import bsformat
from bitstack import loader
from bsformat import Container, Plan, format_size
from bsformat.errors import BudgetError

from .attached import load_tokenizer
from .device_names import checked_dtype, device_named
from .loaded import refuse_saving, tied_already
from .needs import Needs, Use, needs_of
from .shell import Shell


class Elastic:
    """The handle of a loaded model, ``model.bitstack``: what is resident, and changing it.

    Attributes:
        container: the open file; it counts the requests and bytes of all reads in ``container.source``.
        use: what ``auto`` leaves room for: the context, the batch.
        auto: what ``auto`` came to when it was last asked for, and why; None if it never was.
    """

    def __init__(self, container: Container, shell: Shell, use: Use | None = None) -> None:
        self.container = container
        self.use = Use() if use is None else use
        self.auto: loader.AutoBudget | None = None
        self._shell = shell
        self._resident = loader.Resident(container, shell)
        self._growth: loader.Growth | None = None

    @property
    def plan(self) -> Plan:
        """The prefix that is resident now."""
        return self._resident.plan

    @property
    def resident_bytes(self) -> int:
        """Bytes of all weights in the model, counted from its tensors; at most the budget."""
        return self._shell.resident_bytes

    @property
    def widening(self) -> int:
        """Bytes that raw tensors take in this model's type beyond those in the file; negative if fewer."""
        return self._shell.widening

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._shell.device

    @property
    def needs(self) -> Needs:
        """What the model takes beside its weights for its `use`."""
        shell, steady = self._shell, loader.heap_is_steady()
        return needs_of(shell.model, self.container, shell.device, shell.dtype, self.use, steady=steady)

    @property
    def growth(self) -> loader.Growth | None:
        """The last growth in the background, under way or ended; None if there was none."""
        return self._growth

    def resize(self, budget: int | str | None, progress: Callable[[int], object] = lambda n: None) -> Plan:
        """Grow or shrink to another budget, while other threads generate or not.

        Growing reads only the new bytes, shrinking frees the last blocks. Either happens in one moment between two
        forward passes: a pass sees the blocks of before or those of after. If growing fails, nothing has changed. A
        resize that comes while another is under way takes its place, growth in the background included.

        Args:
            budget: bytes, a size, a percentage of all blocks, or ``auto``: what is free now and held already, less the
                cache and the workspace of the model's `use`; counts every resident byte of the weights.
            progress: called with the number of bytes added or dropped since the last call; what it raises ends the
                resize, as any failure does.

        Returns:
            The plan that is resident now.

        Raises:
            BudgetError: below the minimum.
            SourceError, FormatError: bytes could not be read; what was resident still is.
            ResizeError: a later resize took the place of this one; or it was called within a forward pass.
        """
        self._shell.gate.refuse_within()
        if budget not in (None, "auto"):
            self.planned(budget)  # nonsense calls nothing off
        turn = self._resident.turn()  # first, because what is called off holds memory that auto may then use
        plan = self.planned(budget)
        turn.move_to(plan, progress)
        return plan

    def grow(
        self,
        budget: int | str | None,
        progress: Callable[[int], object] = lambda n: None,
        watch: Callable[[Plan], object] = lambda plan: None,
    ) -> loader.Growth:
        """Grow in the background, step by step; the model is used meanwhile, and better after every step.

        No pass waits for more than the moment of a step: bytes are read, checked and copied to the device beside it.

        Args:
            budget: as for `resize`.
            progress: called with the number of bytes that were read and checked since the last call.
            watch: called with the plan that is resident after each step. Both are called by another thread.

        Returns:
            The growth: wait for it, cancel it, ask what became of it.

        Raises:
            BudgetError: below the minimum.
        """
        target, within = self.planned(budget), self._shell.gate.refuse_within
        self._growth = loader.Growth(self._resident, target, progress, watch, within)
        return self._growth

    def frozen(self) -> AbstractContextManager[None]:
        """Within it the blocks stay what they are, over several forward passes of the calling thread.

        Resizes of other threads wait for its end; a resize within it is refused. A replay of a captured CUDA graph is
        no call of the model: while others resize, replay within this.
        """
        return self._shell.gate.passing()

    def planned(self, budget: int | str | None) -> Plan:
        """The prefix that `resize` would go to now.

        Raises:
            BudgetError: it is no budget, or below the minimum.
        """
        if budget is None or budget == "auto":
            return self.plan_for(self.decide_auto().budget)
        wanted = loader.resolve_budget(budget, self.container, self._shell.device)
        if isinstance(budget, str) and budget.strip().endswith("%"):
            return self.container.planner.plan(wanted)  # a share of the blocks, whatever type they are computed in
        return self.plan_for(wanted)

    def _start(
        self, budget: int | str | None, progressive: bool | int | str, progress: Callable[[int], object]
    ) -> Plan:
        """Make the model usable, for `load`: with the whole of ``budget``, or with what growing begins with."""
        plan = self.planned(budget)
        if progressive is True:
            plan = loader.useful_plan(self.container, plan)
        elif progressive is not False:
            first = self.planned(progressive)
            plan = first if first.n_blocks < plan.n_blocks else plan
        self._resident.move_to(plan, progress)
        return plan

    def decide_auto(self) -> loader.AutoBudget:
        """What ``auto`` comes to now; `auto` keeps it.

        Raises:
            BudgetError: it is below the minimum, or the free memory cannot be told.
        """
        planner, wider = self.container.planner, self._shell.widening
        self.auto = loader.auto_budget(
            self._shell.device,
            lambda: self.needs,
            least=planner.minimum_bytes + wider,
            most=planner.total_bytes + wider,
            held=self.resident_bytes if self.plan.n_blocks else 0,
            where=self.container.uri,
        )
        return self.auto

    def plan_for(self, budget: int) -> Plan:
        """The prefix for ``budget`` bytes, with raw tensors in the type that this model computes in.

        Raises:
            BudgetError: below the minimum, which is another one in another type.
        """
        planner, widening = self.container.planner, self._shell.widening
        if budget < planner.minimum_bytes + widening:
            least = planner.minimum_bytes + widening
            raise BudgetError(
                f"a budget of {budget} bytes ({format_size(budget)}) is below the minimum of this file computing in "
                f"{self._shell.dtype}: {least} bytes ({format_size(least)})",
                where=self.container.uri,
                reason="budget-too-small",
            )
        return replace(planner.plan(budget - widening), budget=budget)

    def tokenizer(self) -> Any:
        """The tokenizer in the file, read from it now."""
        return load_tokenizer(self.container)

    def close(self) -> None:
        """Close the file; the model stays as it is, and can shrink but not grow. Ends growth in the background."""
        if self._growth is not None:
            self._growth.cancel()
        self.container.close()


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where that cannot be told."""
    return loader.free_bytes(device)


def load(
    uri: str | os.PathLike[str] | Container | bsformat.ByteSource,
    budget: int | str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    root: str | None = None,
    network: bsformat.Network | None = None,
    cache: bsformat.BlockCache | bool = True,
    memory: int | str | None = None,
    progressive: bool | int | str = False,
    use: Use | None = None,
    context: int | None = None,
    batch: int = 1,
    progress: Callable[[int], object] = lambda n: None,
    watch: Callable[[Plan], object] = lambda plan: None,
    **storage_options: Any,
) -> Any:
    """A transformers model with as many blocks as fit a budget; ``model.bitstack`` resizes it.

    Reads the head and exactly the prefix of the plan; every block is checked before it is used. The dense weights
    never exist.

    Args:
        uri: a path, ``http(s)://``, ``s3://``, ``hf://``, anything fsspec opens, or an open container.
        budget: resident bytes of the weights: a number, ``80MiB``, ``60%`` of all blocks, or ``auto`` (or None):
            what the device has free, less room for a cache of keys and values and for the workspace of a pass, at most
            all blocks; ``model.bitstack.auto`` says how it came about.
        device: where the weights go; None: CUDA if there is one, else the CPU.
        dtype: what it computes in: torch.float32, float16 or bfloat16; None: bfloat16 on CUDA, float32 on the CPU.
        root: the root digest (64 hexadecimal digits) that the file must have.
        network: timeouts, attempts and deadlines of reads over http(s) and s3; it holds for later resizes too.
        cache: where blocks of remote files are kept on this machine, as in `bsformat.open`.
        memory: bytes, or a size as ``64MiB``, of host memory that reading may take beside what becomes resident, from a
            local file too, and for later resizes; None: that of ``network``, else ``BSTK_MEMORY``, else 256 MiB. An
            open container keeps its own.
        context, batch: what ``auto`` leaves room for: tokens of a sequence, prompt and answer together (None: 4096, or
            what the model can read, if that is less), and sequences at once.
        use: the same in more detail, in place of both.
        progressive: return as soon as the smallest useful prefix is in (`bitstack.loader.useful_plan`), or the prefix
            of another budget if it is one, and grow to ``budget`` in the background; see `Elastic.grow`, and
            ``model.bitstack.growth`` for what becomes of it.
        progress: called with the number of resident bytes added since the last call; also while growing in the
            background, by another thread.
        watch: called with the plan that is resident after each step of growing in the background, by that thread.
        storage_options: given to the fsspec file system.

    Raises:
        SourceError, FormatError, BudgetError, ModelError, and BstkError where there is no such device: one line each
            that says what, where, and what to do.
    """
    place = device_named(str(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    kind = checked_dtype(dtype or (torch.bfloat16 if place.type == "cuda" else torch.float32))
    container = (
        uri
        if isinstance(uri, Container)
        else bsformat.open(uri, root=root, network=network, cache=cache, memory=memory, **storage_options)
    )
    try:
        shell = Shell(container, device=place, dtype=kind)
        return fill(container, shell, budget, use or Use(context, batch), progressive, progress, watch)
    except BaseException:
        if container is not uri:
            container.close()
        raise


def fill(
    container: Container,
    shell: Shell,
    budget: int | str | None,
    use: Use,
    progressive: bool | int | str = False,
    progress: Callable[[int], object] = lambda n: None,
    watch: Callable[[Plan], object] = lambda plan: None,
) -> Any:
    """Load a budget of blocks into an empty model, and give it its handle; the arguments are those of `load`.

    Raises:
        SourceError, FormatError, BudgetError, ModelError: as `load`.
    """
    elastic = Elastic(container, shell, use)
    elastic._start(budget, progressive, progress)
    shell.check_complete()
    # Harnesses such as lm-eval call it on any model; what is tied here shares its blocks already, and has no weight.
    shell.model.tie_weights = tied_already
    refuse_saving(shell.model, container.uri)
    shell.model.bitstack = elastic
    if progressive is not False:
        elastic.grow(budget, progress, watch)
    return shell.model
