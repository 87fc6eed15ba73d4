"""How a model is packed: every setting, its type, range, default and meaning, each written once.

The YAML keys, their validation, the flags of ``bstk pack`` and the table in ``docs/recipes.md`` are all made from the
dataclasses below: a new setting is one line here, and the code that reads it. Imports nothing heavy.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from bsformat.errors import RecipeError
from bsformat.registry import FACTOR_DTYPES, MAX_RANK

from .design import parse_design
from .fields import Choice, Described, Number, Several, Switch, Text, Whole
from .settings import Section, Setting, checked, merged, option, plain, settings_of

#: Levels of one chain, at most.
_MOST_LEVELS = 64

#: From few bits at first, for small budgets, to many at once, for large ones; more or fewer entries for tails.
LINEAR_DESIGNS = ("s0.3 b3 s0.5 b2", "s1 b3 s0.5 b2", "s0.3 b4 s0.5 b3", "s1 b4 s0.5 b3", "s0.3 b2 b3", "s0.3 b2 b2")
#: Errors in an embedding grow faster than their estimate: bits come one by one there.
TOKEN_DESIGNS = ("b1 b1 b1 b1 b1 b1", "s0.2 b1 b1 b1 b1 b1 b1")


@dataclass(frozen=True, slots=True)
class Model(Section):
    """Which model; its source is named on the command line."""

    revision: str | None = option(
        Text("a branch, tag or commit", "REVISION", optional=True), None, "branch, tag or commit of a hub id"
    )


@dataclass(frozen=True, slots=True)
class Calib(Section):
    """The text that the statistics are taken from."""

    text: str = option(
        Text("a text file, or self", "FILE"), "self", "a text file, or self: text that the model writes", flag="--calib"
    )
    tokens: int = option(Whole(1), 65536, "tokens that the statistics of the inputs are taken from")
    gradient_tokens: int = option(Whole(0), 16384, "how many of them the gradients are taken from as well")
    window: int = option(Whole(2), 1024, "tokens of one window of text")


@dataclass(frozen=True, slots=True)
class Options(Section):
    """How the chains of one group of matrices are made."""

    designs: tuple[str, ...] = option(
        Several(Described(parse_design, "a design as 's0.3 b3 s0.5 b2'", "DESIGN"), 64, unique=True),
        LINEAR_DESIGNS,
        "designs of a chain, of which every matrix gets the best for it: s and a percentage is a sparse block, "
        "b and a number that many bits, a sign block and planes, chosen together",
    )
    tail: str = option(
        Described(parse_design, "a design as 'b2 b2'", "DESIGN"), "b2 b2", "what follows the design in every chain"
    )
    ranks: tuple[int, ...] = option(
        Several(Whole(1, MAX_RANK), _MOST_LEVELS),
        (1, 2, 4, 8),
        "ranks of the factors of which every block gets the best for it; with method paper, the rank of each level",
    )
    factors: tuple[str, ...] = option(
        Several(Choice(tuple(sorted(FACTOR_DTYPES))), 2, unique=True),
        ("F8_E4M3",),
        "element types of the factors of which every block gets the best for it",
    )
    stretches: tuple[float, ...] = option(
        Several(Number(0, 16), 16),
        (0.85, 1.0, 1.1),
        "magnitudes of which every block gets the best for it, relative to what fits a Gaussian",
    )
    walk: bool = option(
        Switch(), True, "choose codes column by column and push each error into the columns to come, as GPTQ does"
    )
    scales: str = option(
        Choice(("row_column", "column", "none")), "row_column", "which scales weigh the errors of a matrix"
    )
    mode: str = option(Choice(("pack", "raw")), "pack", "pack these matrices, or leave them as they are")
    method: str = option(
        Choice(("native", "paper")), "native", "this project's chains, or those of the BitStack paper as published"
    )
    svd: str = option(
        Choice(("randomised", "exact")), "randomised", "how a low-rank part is found; exact needs method paper"
    )
    absolute: bool = option(
        Switch(), True, "take apart signs and absolute values; without it (needs method paper) a level is low-rank only"
    )


@dataclass(frozen=True, slots=True)
class Decompose(Section):
    """How matrices become chains of blocks: the linear layers, and embeddings and output heads (token)."""

    bits: tuple[float, ...] = option(
        Several(Number(0, 64), 64),
        (2.5, 2.75, 3.25, 3.75, 4.25, 5.0, 6.0, 7.0, 8.5),
        "bits a weight, over the whole model, of the budgets that designs are weighed at",
    )
    emphasis: float = option(
        Number(0, 1),
        0.5,
        "near 0 the smallest of these budgets decide, at 1 bytes count alike at all of them",
    )
    linear: Options = Options()
    token: Options = Options(designs=TOKEN_DESIGNS)


@dataclass(frozen=True, slots=True)
class Tune(Section):
    """Training of scales and raw vectors against the dense model, at many budgets at once."""

    steps: int = option(Whole(0), 60, "windows of text to train on, other ones than the statistics are from; 0: none")
    rate: float = option(Number(0, 1), 0.003, "step of every multiplier")


@dataclass(frozen=True, slots=True)
class Order(Section):
    """The order of all blocks of all chains."""

    method: str = option(
        Choice(("worth", "average", "greedy", "random")),
        "worth",
        "by estimated worth per byte, or the paper's: level by level, greedily by measured perplexity, or at random",
    )
    sweep_tokens: int = option(
        Whole(0), 1024, "tokens of the calibration text that average and greedy measure perplexity on"
    )
    sweep_levels: int = option(
        Whole(0, _MOST_LEVELS), 0, "measure only so many levels of each chain and interpolate; 0: all of them"
    )


@dataclass(frozen=True, slots=True)
class Eval(Section):
    """The quality curve in the file."""

    heldout_tokens: int = option(Whole(1), 8192, "tokens of other text that the quality curve is measured on")
    curve_points: int = option(Whole(1), 6, "points of the quality curve")


@dataclass(frozen=True, slots=True)
class Save(Section):
    """The file."""

    codec: str = option(
        Choice(("zstd", "none")), "zstd", "compression of raw tensors, used where it saves something; or none"
    )


@dataclass(frozen=True, slots=True)
class Recipe(Section):
    """How a model is packed.

    Attributes:
        name: of the recipe that this one is, or started from.
    """

    name: str = "default"
    seed: int = option(Whole(0), 0, "seed of everything random")
    model: Model = Model()
    calib: Calib = Calib()
    decompose: Decompose = Decompose()
    tune: Tune = Tune()
    order: Order = Order()
    eval: Eval = Eval()
    save: Save = Save()

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        for broken, path, message in self._rules():
            if broken:
                raise RecipeError(f"{path}: {message}")

    def _rules(self) -> Iterable[tuple[bool, str, str]]:
        """What settings demand of each other: whether it is broken, whose fault it is, and what to do."""
        for name in ("linear", "token"):
            chains, path = getattr(self.decompose, name), f"decompose.{name}"
            native = chains.method == "native"
            yield chains.walk and not native, f"{path}.walk", "method paper takes signs as they are: set it to false"
            yield native and chains.svd == "exact", f"{path}.svd", f"exact needs {path}.method paper"
            yield native and not chains.absolute, f"{path}.absolute", f"false needs {path}.method paper"
        raw = self.decompose.linear.mode == self.decompose.token.mode == "raw"
        yield raw, "decompose.token.mode", "raw for linear and token leaves nothing to pack: set one of them to pack"
        chosen = any(c.method == "native" and c.mode == "pack" for c in (self.decompose.linear, self.decompose.token))
        blind = self.calib.gradient_tokens == 0 and (chosen or self.order.method == "worth")
        what = "order.method worth" if self.order.method == "worth" else "decompose.*.method native"
        yield blind, "calib.gradient_tokens", f"{what} needs gradients: set it to 1 or more"
        greedy = self.order.method == "greedy" and self.order.sweep_tokens < 2
        yield greedy, "order.sweep_tokens", "order.method greedy measures perplexity: set it to 2 or more"

    def to_json(self) -> dict[str, Any]:
        """All settings as plain values, and the name."""
        return {"name": self.name} | plain(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe that `to_json` described.

        Raises:
            RecipeError: an unknown setting, or a value that it does not accept.
        """
        rest = dict(values)
        return merged(cls(name=checked(Text("a name", "NAME"), rest.pop("name", "default"), "name")), rest)

    def changed(self, changes: Mapping[str, Any]) -> "Recipe":
        """The recipe with other settings: ``{"decompose.linear.walk": False}``.

        Raises:
            RecipeError: an unknown setting, or a value that it does not accept.
        """
        nested: dict[str, Any] = {}
        for path, value in changes.items():
            *parents, last = path.split(".")
            place = nested
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
        return merged(self, nested)


@cache
def recipe_settings() -> tuple[Setting, ...]:
    """All settings of a recipe, with the defaults of the default recipe."""
    return tuple(settings_of(Recipe()))


def differences(recipe: Recipe, other: Recipe) -> dict[str, Any]:
    """The settings of ``recipe`` that ``other`` has not, by their paths."""
    pairs = zip(settings_of(recipe), settings_of(other), strict=True)
    return {mine.path: mine.value for mine, theirs in pairs if mine.value != theirs.value}
