"""Sizes as people write them."""

import pytest

from bsformat import format_size, parse_size
from bsformat.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (123, 123),
        (10**30, 10**30),
        ("0", 0),
        ("123", 123),
        ("123B", 123),
        ("80MiB", 80 << 20),
        ("80 MiB", 80 << 20),
        (" 80MiB\n", 80 << 20),
        ("3.5GiB", 7 << 29),
        (".5KiB", 512),
        ("5.KiB", 5 << 10),
        ("1TiB", 1 << 40),
        ("80MB", 80_000_000),
        ("2GB", 2_000_000_000),
        ("1KB", 1000),
        ("1TB", 10**12),
        # Any case, but a small b after a decimal prefix means bits, as accelerate reads it.
        ("80MIB", 80 << 20),
        ("80mib", 80 << 20),
        ("80Mib", 80 << 20),
        ("80kib", 80 << 10),
        ("80mB", 80_000_000),
        ("80Mb", 10_000_000),
        ("80mb", 10_000_000),
        ("8b", 8),
        # Fractions of a byte are rounded down, and decimal fractions are exact.
        ("1.9", 1),
        ("0.1KB", 100),
        ("4.35KB", 4350),
        ("0.29KB", 290),
        ("60%", 600),
        ("60 %", 600),
        ("0%", 0),
        ("100%", 1000),
        ("33.35%", 333),
        ("250%", 2500),
    ],
)
def test_parse(text: str | int, size: int) -> None:
    assert parse_size(text, 1000) == size


def test_a_percentage_of_a_large_total_is_exact() -> None:
    total = (1 << 60) + 1
    assert parse_size("100%", total) == total
    assert parse_size("50%", total) == 1 << 59


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "MiB",
        "-1",
        "-1MiB",
        "+1MiB",
        "1e3",
        "1,5GiB",
        "1.2.3",
        ".",
        "1 2",
        "80XiB",
        "80MiBs",
        "80iB",
        "%",
        "nan",
        "inf",
        "auto",
        "0x10",
        "1_000",
        -1,
        1.5,
        True,
        None,
        b"80MiB",
    ],
)
def test_refuses(text: object) -> None:
    with pytest.raises(BudgetError) as caught:
        parse_size(text, 1000)  # type: ignore[arg-type]
    assert caught.value.reason == "budget-invalid"
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["9" * 1_100_000 + "TiB", "0." + "9" * 1_100_000 + "GiB", "9" * 1_100_000 + "%"])
def test_refuses_more_digits_than_a_number_needs(text: str) -> None:
    with pytest.raises(BudgetError) as caught:
        parse_size(text, 1000)
    assert len(str(caught.value)) < 1000
    assert parse_size("9" * 28) == 10**28 - 1


@pytest.mark.parametrize("spaces", ["{}", "1{}!", "1{}%!", "1B{}!"])
def test_refuses_many_spaces_at_once(spaces: str) -> None:
    """In time that grew with the square of their number this would take most of an hour."""
    with pytest.raises(BudgetError):
        parse_size(spaces.format(" " * 1_100_000), 1000)


def test_a_percentage_of_nothing() -> None:
    with pytest.raises(BudgetError) as caught:
        parse_size("60%")
    assert caught.value.reason == "budget-invalid"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (17, "17 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1228, "1.2 KiB"),
        (86_507_520, "82.5 MiB"),
        (7 << 29, "3.5 GiB"),
        (1 << 40, "1.0 TiB"),
        (5000 << 40, "5000.0 TiB"),
        ((1 << 20) - 1, "1.0 MiB"),
    ],
)
def test_format(size: int, text: str) -> None:
    assert format_size(size) == text
