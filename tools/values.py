"""The values that options take, as types for argparse. Imports nothing heavy."""

import argparse
import json
import math
import os
from collections.abc import Callable
from typing import Any

from bitstack.fields import Kind
from bsformat import BstkError, parse_size


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A type for argparse: whole numbers from ``low`` to ``high``, both included."""
    span = f"from {low} to {high}" if high is not None else f"of at least {low}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number {span}")
        return value

    return parse


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def not_negative(text: str) -> float:
    """A finite number from 0."""
    return 0.0 if text.strip() in ("0", "0.0") else positive(text)


def size(text: str) -> str:
    """A size, checked and left as it was written: a percentage means nothing before the file is open."""
    if text != "auto":
        try:
            parse_size(text, 100)
        except BstkError as error:
            raise argparse.ArgumentTypeError(error.message) from None
    return text


def byte_count(text: str) -> int:
    """A number of bytes above 0, or a size as 4GiB."""
    try:
        count = parse_size(text)
    except BstkError as error:
        raise argparse.ArgumentTypeError(error.message) from None
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size above 0")
    return count


def exact(text: str) -> str:
    """A size that does not depend on a device."""
    if text == "auto":
        raise argparse.ArgumentTypeError("auto asks a device: name a size, as 80MiB or 60%")
    return size(text)


def memory(text: str) -> int:
    """A size above 0, in bytes."""
    try:
        value = parse_size(text)
    except BstkError as error:
        raise argparse.ArgumentTypeError(error.message) from None
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no memory at all")
    return value


def sizes(text: str) -> list[str]:
    """Several sizes, separated by commas."""
    return [size(part.strip()) for part in text.split(",")]


def text(value: str) -> str:
    """A text; UTF-8 that the encoding of the locale could not read is read here."""
    try:
        value.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(value).decode("utf-8")
        except UnicodeError:
            raise argparse.ArgumentTypeError("is no text in UTF-8") from None
    return value


def root(text: str) -> str:
    """A root digest."""
    value = text.strip().lower()
    if len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{text!r} is no root digest: 64 hexadecimal digits, as bstk inspect prints")
    return value


def storage_option(text: str) -> tuple[str, Any]:
    """``KEY=VALUE`` for fsspec; the value is read as JSON if it is JSON, else it is text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def setting(kind: Kind) -> Callable[[str], Any]:
    """A type for argparse: what a field of a recipe may be."""

    def parse(text: str) -> Any:
        try:
            return kind.parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {kind.expected}") from None

    return parse
