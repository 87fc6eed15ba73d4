"""`bstk repack`, `bstk sign`, and the options that demand a signature."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import bsformat
from tests.bsformat.test_signing import save_key
from tests.servers import Scripted
from tests.tools.conftest import Bstk

Failed = Callable[..., str]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and a public key."""
    return save_key(tmp_path, "key", ec.generate_private_key(ec.SECP256R1()))


def test_repack_in_words(bstk: Bstk, curved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.bstk"
    with bsformat.open(curved) as container:
        root, total = container.root, len(container)
    ended = bstk("repack", curved, "-o", out, "--order", "average", "--budget", "80%", "--root", root)
    assert (ended.code, ended.err) == (0, "")
    with bsformat.open(out) as container:
        assert f"{len(container)} of {total} blocks" in ended.out
        assert container.root in ended.out
    assert f"made of {root}" in ended.out
    assert "1 of 3 points still hold; bstk eval measures the new order" in ended.out
    assert bstk("verify", out).code == 0


def test_repack_as_json(bstk: Bstk, curved: Path, tmp_path: Path) -> None:
    ended = bstk("repack", curved, "-o", tmp_path / "out.bstk", "--codec", "none", "--json")
    assert ended.code == 0
    made = ended.json
    assert (made["curve_points"], made["source_curve_points"]) == (3, 3)
    assert made["size"] == (tmp_path / "out.bstk").stat().st_size


def test_a_repacked_model_says_the_same(bstk: Bstk, tiny_bstk: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.bstk"
    assert bstk("repack", tiny_bstk, "-o", out, "--order", "average").code == 0
    prompt = ("--prompt", "the sea", "--device", "cpu", "--max-new-tokens", 8, "--json", "--budget")
    texts = [bstk("generate", path, *prompt, "100%").json["text"] for path in (tiny_bstk, out)]
    assert texts[0] == texts[1]
    assert bstk("generate", out, *prompt, "50%").code == 0


def test_losses_of_a_file(bstk: Bstk, failed: Failed, tiny_bstk: Path, tmp_path: Path) -> None:
    losses = {}
    with bsformat.open(tiny_bstk) as container:
        chains = container.index.chain.tolist()
        for tensor in container.tensors:
            if tensor.packed:
                counts = [chains.count(tensor.first_chain + group) for group in range(tensor.n_chains)]
                losses[tensor.name] = [list(range(count, -1, -1)) for count in counts]
    path, out = tmp_path / "losses.json", tmp_path / "out.bstk"
    path.write_text(json.dumps(losses))
    assert bstk("repack", tiny_bstk, "-o", out, "--losses", path).code == 0
    with bsformat.open(out) as container:
        first = container.index.required
        worth = container.index.worth[first:].tolist()
    assert worth == sorted(worth, reverse=True)
    path.write_text("[1]")
    assert failed("repack", tiny_bstk, "-o", out, "--force", "--losses", path).endswith("[repack-invalid]")
    path.write_text('{"a": ')
    assert "cannot be read" in failed("repack", tiny_bstk, "-o", out, "--force", "--losses", path)
    assert "No such file" in failed("repack", tiny_bstk, "-o", out, "--force", "--losses", tmp_path / "none")
    path.write_text("{}")
    assert "every packed tensor needs them" in failed("repack", tiny_bstk, "-o", out, "--force", "--losses", path)


def test_repack_refuses(bstk: Bstk, failed: Failed, tiny_bstk: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.bstk"
    out.write_bytes(b"mine")
    assert failed("repack", tiny_bstk, "-o", out).endswith("--force replaces it [output-exists]")
    assert out.read_bytes() == b"mine"
    assert failed("repack", tiny_bstk, "-o", tmp_path / "no" / "out").endswith("[write]")
    assert failed("repack", tiny_bstk, "-o", out, "--force", "--budget", "1KiB").endswith("[budget-too-small]")
    assert bstk("repack", tiny_bstk, "-o", out, "--order", "best").code == 2
    assert bstk("repack", tiny_bstk, "-o", out, "--levels", "-1").code == 2
    assert bstk("repack", tiny_bstk, "-o", out, "--budget", "auto").code == 2
    assert bstk("repack", tiny_bstk, "-o", out, "--force").code == 0


def test_sign_and_demand(
    bstk: Bstk, failed: Failed, tiny_bstk: Path, keys: tuple[Path, Path], tmp_path: Path, scripted: Scripted
) -> None:
    sig = tmp_path / "tiny.sig"
    ended = bstk("sign", tiny_bstk, "--key", keys[0], "-o", sig, "--json")
    assert (ended.code, ended.err) == (0, "")
    with bsformat.open(tiny_bstk) as container:
        root, head, size = container.root, container.superblock.head_length, container.size
    assert ended.json["root"] == root
    assert failed("sign", tiny_bstk, "--key", keys[0], "-o", sig).endswith("[output-exists]")
    by = ("--signature", sig, "--public-key", keys[1])

    ended = bstk("verify", tiny_bstk, *by)
    assert ended.code == 0
    assert f"{size} bytes checked, signed with key " in ended.out
    ended = bstk("verify", tiny_bstk, *by, "--json")
    assert (ended.json["signed"]["root"], ended.json["bytes_checked"]) == (root, size)
    assert bstk("verify", tiny_bstk, "--json").json["signed"] is None
    for command in (("inspect", tiny_bstk), ("plan", tiny_bstk, "--budget", "60%")):
        assert bstk(*command, *by).code == 0

    scripted.data = tiny_bstk.read_bytes()
    ended = bstk("verify", scripted.url(), *by, "--head", "--json")
    assert (ended.json["signed"]["root"], ended.json["bytes_checked"]) == (root, head)
    assert len(scripted.requests) <= 2
    assert sum(r.stop - r.start for r in scripted.requests) <= max(head, 16384)

    damaged = bytearray(scripted.data)
    damaged[-1] ^= 1
    scripted.data, scripted.etag = bytes(damaged), '"two"'
    assert bstk("verify", scripted.url(), *by, "--head").code == 0  # the head says nothing of the last block
    ended = bstk("verify", scripted.url(), *by)
    assert (ended.code, "[block-digest]" in ended.out) == (1, True)


def test_signatures_that_do_not_hold(
    bstk: Bstk, failed: Failed, tiny_bstk: Path, curved: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    sig = tmp_path / "tiny.sig"
    assert bstk("sign", tiny_bstk, "--key", keys[0], "-o", sig).code == 0
    by = ("--signature", sig, "--public-key", keys[1])
    _, other = save_key(tmp_path, "other", ec.generate_private_key(ec.SECP256R1()))
    assert failed("verify", curved, *by).endswith("[root-mismatch]")
    assert failed("plan", curved, "--budget", "60%", *by).endswith("[root-mismatch]")
    assert failed("init-repo", curved, "-o", tmp_path / "repo", *by).endswith("[root-mismatch]")
    assert failed("verify", tiny_bstk, *by, "--root", "0" * 64).endswith("[root-mismatch]")
    assert failed("verify", tiny_bstk, "--signature", sig, "--public-key", other).endswith("[signature-key]")
    assert failed("verify", tiny_bstk, "--signature", keys[1], "--public-key", keys[1]).endswith("[signature-format]")
    assert failed("verify", tiny_bstk, "--signature", tmp_path / "no", "--public-key", other).endswith("[not-found]")
    sig.write_bytes(sig.read_bytes()[:300])
    assert failed("verify", tiny_bstk, *by).endswith("[signature-format]")
    assert bstk("verify", tiny_bstk, "--signature", sig).code == 2
    assert bstk("verify", tiny_bstk, "--public-key", other).code == 2
    assert bstk("sign", "https://example.org/a.bstk", "--key", keys[0]).code == 2


def test_the_password_of_a_key(
    bstk: Bstk, failed: Failed, tiny_bstk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, _ = save_key(tmp_path, "locked", ec.generate_private_key(ec.SECP384R1()), b"secret")
    assert "BSTK_KEY_PASSWORD" in failed("sign", tiny_bstk, "--key", private, "-o", tmp_path / "a.sig")
    monkeypatch.setenv("BSTK_KEY_PASSWORD", "secret")
    assert bstk("sign", tiny_bstk, "--key", private, "-o", tmp_path / "a.sig").code == 0
