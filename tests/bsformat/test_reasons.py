"""Every reason code that bsformat can give has a test that provokes it."""

import ast
from pathlib import Path

import bsformat
from bsformat import errors
from tests.bsformat.test_hostile import CASES

#: Code -> the test that provokes it, for codes that no hostile file of `test_hostile` does.
ELSEWHERE = {
    "access-denied": "test_source.py::test_access_denied",
    "attachment-unknown": "test_container.py::test_an_unknown_attachment",
    "budget-invalid": "test_units.py::test_refuses",
    "budget-too-small": "test_container.py::test_a_budget_below_the_minimum",
    "disk-full": "test_writer.py::test_a_full_disk_leaves_nothing_behind",
    "not-found": "test_source.py::test_a_missing_object",
    "range-unsupported": "test_source.py::test_a_bad_answer_to_the_first_read",
    "repack-invalid": "test_repack.py::test_losses_that_do_not_fit",
    "root-mismatch": "test_hostile.py::test_another_root_than_demanded",
    "short-read": "test_source.py::test_get_beyond_the_end",
    "sign-missing": "test_signing.py::test_without_cryptography",
    "signature-format": "test_signing.py::test_every_truncated_signature",
    "signature-invalid": "test_signing.py::test_another_root_in_the_statement",
    "signature-key": "test_signing.py::test_another_key",
    "source": "test_source.py::test_a_bad_answer_later",
    "source-changed": "test_source.py::test_an_object_that_changes_between_two_reads",
    "volume-missing": "test_volumes.py::test_a_volume_that_is_missing",
    "volume-size": "test_volumes.py::test_a_size_that_nothing_fits_into",
    "volume-trailing-bytes": "test_volumes.py::test_a_volume_of_another_length",
    "volume-truncated": "test_volumes.py::test_a_volume_of_another_length",
    "write": "test_writer.py::test_a_folder_that_is_not_there",
}
#: Names of base classes: bsformat itself raises none of them without a code of its own.
GENERAL = {"budget", "error", "format", "integrity", "model", "recipe", "resize", "unsupported"}


def test_every_code_has_a_test(reasons: frozenset[str]) -> None:
    hostile = {case.reason for case in CASES}
    assert len(reasons) > 45
    assert reasons - hostile - set(ELSEWHERE) - GENERAL == set()
    # And no table names a code that is gone, or that has a hostile file after all.
    assert (hostile | set(ELSEWHERE) | GENERAL) - reasons == set()
    assert hostile & set(ELSEWHERE) == set()


def test_the_tests_named_are_there_and_name_the_code() -> None:
    for code, place in ELSEWHERE.items():
        name, function = place.split("::")
        source = (Path(__file__).parent / name).read_text()
        names = {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
        assert function in names, place
        assert f'"{code}"' in source, place


def test_general_codes_are_never_raised() -> None:
    """A class whose default is a general code is always given a more exact one."""
    general = {name for name in errors.__all__ if getattr(errors, name).default_reason in GENERAL}
    calls = [
        (path.name, node)
        for path in Path(bsformat.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in general
    ]
    bare = [f"{name}:{node.lineno}" for name, node in calls if not any(k.arg == "reason" for k in node.keywords)]
    assert len(calls) > 20
    assert bare == []
