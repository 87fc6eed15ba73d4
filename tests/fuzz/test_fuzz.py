"""Fuzzing: the short run, what earlier runs kept, and that a fault would be found."""

import importlib.util
import json
import re
import shutil
import tracemalloc
import types
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bitstack.tools import fuzz
from bitstack.tools.fuzzing import examine as examine_module
from bitstack.tools.fuzzing.examine import Finding, examine, held_to_limits, most_memory
from bitstack.tools.fuzzing.javascript import JavaScript, agree
from bitstack.tools.fuzzing.mutator import MAX_BYTES, mutate
from bitstack.tools.fuzzing.parts import Map, Raw, packed, split, unpacked
from bitstack.tools.fuzzing.session import Session
from bitstack.tools.fuzzing.worker import read_seeds
from bsformat import BstkError

ROOT = Path(__file__).resolve().parents[2]
VECTORS, READER, CORPUS = (
    ROOT / "spec" / "vectors",
    ROOT / "spec" / "readers" / "js",
    ROOT / "tests" / "fuzz" / "corpus",
)
#: Executions of the short run, and what it is drawn from.
RUNS, SEED = 4000, 2026

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed (apt-get install nodejs)")


@pytest.fixture(scope="module")
def valid() -> list[bytes]:
    seeds = read_seeds(VECTORS / "valid")
    # Of a file in volumes the first one alone is not sound.
    return [data for data in seeds if not data[16] & 1 or data[80:88] == data[88:96]]


def reason_codes() -> set[str]:
    text = (ROOT / "spec" / "bstk-v1.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `([a-z0-9-]+)` \|", text[text.index("### 9.1 ") :], re.M))


# ------------------------------------------------------------------------------------------------ the short run


def test_mutations_get_past_the_digests_and_nothing_breaks(valid: list[bytes]) -> None:
    random, pool = Random(SEED), [*read_seeds(VECTORS), *read_seeds(CORPUS)]
    reasons: Counter[str | None] = Counter()
    for number in range(RUNS):
        data = mutate(random.choice(pool), random, valid)
        reasons[held_to_limits(data, memory=number % 20 == 0)[0]] += 1
    assert set(reasons) - reason_codes() == {None}
    assert len(reasons) >= 38
    # Nearly all that is refused is refused for what it says, not for a digest.
    assert reasons["head-digest"] + reasons["block-digest"] < RUNS // 20
    assert reasons[None] > RUNS // 30
    assert sum(count for reason, count in reasons.items() if str(reason).startswith("index")) > RUNS // 8
    assert sum(count for reason, count in reasons.items() if str(reason).startswith("block")) > RUNS // 40


def test_what_earlier_runs_kept_holds_still() -> None:
    kept = [path.read_bytes() for path in sorted(CORPUS.glob("*.bstk"))]
    assert len(kept) >= 50
    assert sum(map(len, kept)) < 300_000
    for data in kept:
        held_to_limits(data, memory=True)


@needs_node
def test_the_javascript_reader_agrees_on_what_was_kept_and_on_mutations(valid: list[bytes]) -> None:
    random = Random(SEED + 1)
    files = [*read_seeds(CORPUS), *(mutate(random.choice(valid), random, valid) for _ in range(300))]
    with JavaScript(READER) as reader:
        answers = [(examine(data), reader.ask(data)) for data in files]
    assert [pair for pair in answers if not agree(*pair)] == []
    assert sum(reason is None for reason, _ in answers) > 20


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed (bitstack[fuzz])")
def test_a_run_guided_by_coverage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--runs", "3000", "--vectors", str(VECTORS), "--corpus", str(CORPUS), "--work", str(tmp_path / "work")]
    reader = ["--javascript", str(READER)] if shutil.which("node") else []
    assert fuzz.main([*arguments, *reader, "--output", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out) == result
    assert result["executions"] == 3000 == sum(result["reasons"].values())
    assert result["memory_measured"] == 3000 // 32
    assert result["asked_javascript"] == (3000 // 64 if reader else 0)
    assert result["covered_edges"] > 500
    assert result["findings"] == {}


def test_a_process_may_take_as_much_whoever_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz.resource, "getrusage", lambda who: types.SimpleNamespace(ru_maxrss=3 << 20))
    assert fuzz.memory_flag() == f"-rss_limit_mb={2048 + 3072}"


def test_a_process_that_ends_in_time_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        returncode = 0

        def poll(self) -> int:
            return 0

    started: list[int] = []

    def start(args: Any, work: Path, number: int, seconds: float) -> Ended:
        started.append(number)
        return Ended()

    monkeypatch.setattr(fuzz, "start", start)
    args = fuzz.options().parse_args(["--minutes", "0.04"])
    assert fuzz.run(args, tmp_path) == []
    assert len(started) >= 3
    assert started == list(range(len(started)))


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed (bitstack[fuzz])")
def test_what_reaches_new_code_is_kept(tmp_path: Path) -> None:
    vectors, corpus = tmp_path / "vectors", tmp_path / "kept"
    (vectors / "valid").mkdir(parents=True)
    shutil.copy(VECTORS / "valid" / "every-kind.bstk", vectors / "valid")
    arguments = ["--runs", "400", "--vectors", str(vectors), "--corpus", str(corpus), "--keep"]
    assert fuzz.main([*arguments, "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out.json")]) == 0
    kept = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["kept"]
    assert kept == len(read_seeds(corpus)) > 10


# ------------------------------------------------------------------------------------------------ the mutator


def test_a_sound_file_that_is_taken_apart_and_sealed_is_sound(valid: list[bytes]) -> None:
    assert len(valid) >= 90
    for data in valid:
        parts = split(data)
        assert parts is not None
        assert (examine(parts.seal()), examine(data)) == (None, None)


def test_the_same_state_gives_the_same_file(valid: list[bytes]) -> None:
    first, second = ([mutate(data, random, valid) for data in valid] for random in (Random(5), Random(5)))
    assert first == second
    assert max(map(len, first)) <= MAX_BYTES


def test_trees_keep_what_no_dict_can_hold() -> None:
    tree = Map([("a", 1), ("a", [Map(), Raw(b"\xc1"), -1.5, b"x"]), (7, None)])
    data = packed(tree)
    assert data == b"\x83\xa1a\x01\xa1a\x94\x80\xc1\xcb\xbf\xf8\0\0\0\0\0\0\xc4\x01x\x07\xc0"
    assert unpacked(data) is None  # 0xc1 is no MessagePack
    assert unpacked(packed(Map([("a", 1), ("a", 2)]))) == [("a", 1), ("a", 2)]


def test_what_is_no_file_is_changed_too() -> None:
    assert {len(mutate(b"", Random(seed))) for seed in range(20)} > {1}


# ------------------------------------------------------------------------------------------------ the oracles


def test_an_exception_that_is_no_bstk_error_is_passed_on() -> None:
    def ask(data: bytes) -> str | None:
        raise KeyError("a")

    with pytest.raises(KeyError):
        held_to_limits(b"", memory=True, ask=ask)
    assert not tracemalloc.is_tracing()


def test_a_warning_is_an_exception() -> None:
    def ask(data: bytes) -> str | None:
        warnings.warn("overflow", RuntimeWarning, stacklevel=1)
        return None

    with pytest.raises(RuntimeWarning):
        held_to_limits(b"", memory=False, ask=ask)


@pytest.mark.parametrize(("over", "found"), [(-4096, False), (1, True)])
def test_memory_beyond_the_stated_multiple_is_a_finding(over: int, found: bool) -> None:
    def ask(data: bytes) -> str | None:
        return None if bytearray(most_memory(data) + over) else ""

    if found:
        with pytest.raises(Finding, match=r"^memory: \d+ bytes, more than \d+, for 100$"):
            held_to_limits(bytes(100), memory=True, ask=ask)
    else:
        assert held_to_limits(bytes(100), memory=True, ask=ask)[0] is None


def test_the_memory_of_a_head_is_a_multiple_of_what_it_decodes_to(valid: list[bytes]) -> None:
    """The worst that a head can hold: maps in maps, three bytes each."""
    parts = split(valid[0])
    assert parts is not None
    assert parts.tree is not None
    inner = Raw(b"\xdd\0\0\x4e\x20" + b"\x81\xa0\x80" * 20000)
    parts.tree.put("extra", Map([("a", inner)]))
    data = parts.seal()
    assert len(data) < 500
    reason, peak = held_to_limits(data, memory=True)
    assert reason is None
    assert 60000 * 64 < peak < most_memory(data) < 2 << 22


@pytest.mark.parametrize("where", ["key", "shape", "point", "alias"])
def test_a_message_quotes_no_more_than_it_can_hold(where: str) -> None:
    """Values of sixty thousand bytes that are refused: their text would be many times as long."""
    parts = split((VECTORS / "valid" / "every-kind.bstk").read_bytes())
    assert parts is not None
    tree = parts.tree
    assert tree is not None
    many = Raw(b"\xdd\0\0\x4e\x20" + b"\x81\xa0\x80" * 20000)
    if where == "key":
        tree.put("extra", Map([(Map([("a", many)]), 1)]))
    elif where == "shape":
        tree.get("tensors")[0].put("shape", many)
    elif where == "point":
        tree.get("curves")[0].put("points", [many])
    else:
        tree.put("aliases", Map([("a", many)]))
    reason, peak = held_to_limits(parts.seal(), memory=True)
    assert reason == ("metadata-msgpack" if where == "key" else "metadata-value")
    assert peak < 90 * 60000 + (1 << 20)


def test_of_several_faults_of_an_index_the_first_in_the_list_of_reasons_is_named() -> None:
    def broken(**cells: dict[str, Any]) -> str | None:
        parts = split((VECTORS / "valid" / "every-kind.bstk").read_bytes())
        assert parts is not None
        for row, forced in cells.items():
            parts.rows[int(row[1:])].forced = forced
        return examine(parts.seal())

    level, kind, plane = {"level": 3}, {"form": 2}, {"level": 0, "form": 4}
    assert broken(b5=level) == "index-level"
    assert broken(b0=kind) == "index-form"
    assert broken(b0=kind, b5=level) == "index-form"
    assert broken(b0=kind, b5={"worth": -1.0}) == "index-form"
    assert broken(b5=level | {"worth": -1.0}) == "index-worth"
    assert broken(b4=plane | {"level": 0}) == "index-plane"
    assert broken(b4=plane, b8=level) == "index-level"


def test_a_file_that_takes_long_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine_module, "DEADLINE", -1.0)
    with pytest.raises(Finding, match=r"^slow: "):
        held_to_limits(b"", memory=False)


def test_a_message_of_two_lines_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BstkError, "__str__", lambda error: "one\ntwo")
    with pytest.raises(Finding, match=r"^message: "):
        examine(b"")


def test_a_finding_is_kept_once_and_counted(
    valid: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bsformat.plan.Planner.plan", lambda planner, budget: 1 // 0)
    session = Session(tmp_path, "0", None)
    for data in valid[:10]:
        session.run(data)
    session.close()
    stats = json.loads((tmp_path / "stats-0.json").read_text(encoding="utf-8"))
    assert stats["executions"] == 10
    assert list(stats["findings"].values()) == [10]
    assert [path.read_bytes() for path in tmp_path.glob("finding-*.bstk")] == [valid[0]]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_readers_agree_where_the_specification_says_so() -> None:
    assert agree(None, "sound")
    assert agree("metadata-key", "metadata-value")  # one step of §7.1
    assert agree("block-codec", "sound")  # decoders differ, §8.3
    assert agree(None, "unsupported")  # a limit of that reader's platform
    assert not agree(None, "metadata-key")
    assert not agree("metadata-key", "sound")
    assert not agree("head-digest", "metadata-key")
    assert not agree("index-level", "index-form")  # §9.3 has an order
    assert not agree("block-codec", "! the process ended")


@needs_node
def test_the_other_reader_is_asked_about_one_file_after_the_other(valid: list[bytes]) -> None:
    with JavaScript(READER) as reader:
        assert [reader.ask(data) for data in (valid[0], b"", valid[0][:-1], valid[1])] == [
            "sound",
            "truncated",
            "truncated",
            "sound",
        ]
    assert reader.ask(b"").startswith("!")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "say how long"),
        (["--runs", "1", "--vectors", "nowhere"], "nowhere has no valid"),
        (["--runs", "1", "--vectors", str(VECTORS), "--javascript", "nowhere"], "nowhere has no answers.js"),
    ],
)
def test_wrong_usage_is_said(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        fuzz.main(arguments)
    assert says in capsys.readouterr().err
