"""The errors: one line each, a name for each cause, and safe to send to another process."""

import copy
import inspect
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

import bsformat
from bsformat import errors

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.BstkError)]


def test_all_errors_are_exported() -> None:
    assert len(CLASSES) == 19
    assert sorted(errors.__all__) == errors.__all__ == [cls.__name__ for cls in CLASSES]


def test_the_tree_is_as_drawn() -> None:
    """The docstring of the module draws the tree."""
    tree: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        name = line.strip(" │├└─").split(" ")[0]
        if name in errors.__all__:
            depth = line.index(name)
            while stack and stack[-1][0] >= depth:
                stack.pop()
            tree[name] = stack[-1][1] if stack else "Exception"
            stack.append((depth, name))
    assert tree == {cls.__name__: cls.__base__.__name__ for cls in CLASSES}


def test_default_reasons_are_distinct() -> None:
    assert {cls.__name__: cls.default_reason for cls in CLASSES} == {
        "AccessDeniedError": "access-denied",
        "BstkError": "error",
        "BudgetError": "budget",
        "FormatError": "format",
        "IntegrityError": "integrity",
        "ModelError": "model",
        "NotBstkError": "not-bstk",
        "NotFoundError": "not-found",
        "RangeError": "range-unsupported",
        "RecipeError": "recipe",
        "RepackError": "repack-invalid",
        "ResizeError": "resize",
        "ShortReadError": "short-read",
        "SignatureError": "signature-invalid",
        "SourceChangedError": "source-changed",
        "SourceError": "source",
        "TruncatedError": "truncated",
        "UnsupportedError": "unsupported",
        "WriteError": "write",
    }


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_copies_are_equal(cls: type[errors.BstkError], copied: object) -> None:
    error = cls("what\nhappened", where="a.bstk", offset=7, reason="because")
    other = copied(error)  # type: ignore[operator]
    assert type(other) is cls
    assert (other.message, other.where, other.offset, other.reason) == ("what happened", "a.bstk", 7, "because")
    assert str(other) == str(error) == "a.bstk, byte 7: what happened [because]"


def test_crosses_a_process() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        future = pool.submit(errors.ShortReadError, "too\nfew", where="here", offset=0)
        error = future.result()
    assert str(error) == "here, byte 0: too few [short-read]"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.FormatError("bad"), "bad [format]"),
        (errors.FormatError("bad", reason="index-offset"), "bad [index-offset]"),
        (errors.FormatError("bad", where="a"), "a: bad [format]"),
        (errors.FormatError("bad", offset=0), "byte 0: bad [format]"),
        (errors.FormatError("bad", where="a", offset=0), "a, byte 0: bad [format]"),
        (errors.SourceError("a\n b\r\n\tc  d"), "a b c d [source]"),
        (errors.SourceError(""), " [source]"),
    ],
)
def test_text(error: errors.BstkError, text: str) -> None:
    assert str(error) == text


def test_at_names_the_place_once() -> None:
    error = errors.FormatError("bad")
    assert error.at("a") is error
    assert error.at("b").where == "a"


def test_a_long_message_keeps_both_ends() -> None:
    text = str(errors.FormatError("begin " + "x" * 10**6 + " end", where="a"))
    assert len(text) < 1000
    assert text.startswith("a: begin x")
    assert text.endswith("x end [format]")


def test_the_module_is_reached_from_the_package() -> None:
    assert bsformat.errors is errors
    assert bsformat.BstkError is errors.BstkError
