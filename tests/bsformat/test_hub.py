"""``hf://``: what is asked of whom, that a load stays with one commit, who sees the token, and what is refused how."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import bsformat
from bsformat import BlockCache, Network
from bsformat.errors import AccessDeniedError, BstkError, NotFoundError, SourceChangedError, SourceError
from bsformat.hub_file import HubFile
from bsformat.source import ByteSource, FileSource
from bsformat.uri import open_source
from tests.bsformat.conftest import write_small
from tests.bsformat.test_faults import Clock, network
from tests.bsformat.volumes import names_of, write_volumes
from tests.hub import TOKEN, Hub, downloaded

DATA = random.Random(3).randbytes(50_000)
SMALL = DATA[:1000]


def opened(uri: str = "hf://someone/tiny/model.bstk", **options: object) -> ByteSource:
    return open_source(uri, network=network(Clock()), **options)


def refused(kind: type[SourceError], call: Callable[[], object], *said: str) -> SourceError:
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.where.startswith("hf://")
    assert TOKEN not in text
    assert "signature=" not in text
    for part in said:
        assert part in text, text
    return caught.value


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "file", "again"),
    [
        ("hf://a/b/c.bstk", HubFile("models", "a/b", "main", "c.bstk"), None),
        ("hf://a/b", HubFile("models", "a/b"), None),
        ("hf://a/b/", HubFile("models", "a/b"), "hf://a/b"),
        ("hf://models/a/b/c/d.bstk", HubFile("models", "a/b", "main", "c/d.bstk"), "hf://a/b/c/d.bstk"),
        ("hf://datasets/a/b@v1.0/c.bstk", HubFile("datasets", "a/b", "v1.0", "c.bstk"), None),
        ("hf://a/b@main/c.bstk", HubFile("models", "a/b", "main", "c.bstk"), "hf://a/b/c.bstk"),
        ("hf://a/b@feature%2Fx/c.bstk", HubFile("models", "a/b", "feature/x", "c.bstk"), None),
        ("hf://a/b@refs/pr/12/c.bstk", HubFile("models", "a/b", "refs/pr/12", "c.bstk"), None),
        ("hf://a/b@refs/pr/12", HubFile("models", "a/b", "refs/pr/12"), None),
        ("hf://a/b/c@d.bstk", HubFile("models", "a/b", "main", "c@d.bstk"), None),
    ],
)
def test_what_a_uri_names(uri: str, file: HubFile, again: str | None) -> None:
    assert HubFile.parse(uri) == file
    assert file.uri == (again or uri)
    assert HubFile.parse(file.uri) == file


@pytest.mark.parametrize(
    "uri", ["hf://", "hf://a", "hf://a/", "hf:///b", "hf://a/b@/c", "hf://a/b//c", "hf://a/b/../c", "hf://a?x/b/c"]
)
def test_what_no_uri_names(uri: str) -> None:
    refused(SourceError, lambda: HubFile.parse(uri))


def test_urls_are_quoted() -> None:
    file = HubFile("datasets", "a/b", "x/y", "c d/é?.bstk")
    assert file.resolve_url("https://h") == "https://h/datasets/a/b/resolve/x%2Fy/c%20d/%C3%A9%3F.bstk"
    assert file.tree_url("https://h") == "https://h/api/datasets/a/b/tree/x%2Fy"


# --- what is asked for ------------------------------------------------------------------------------------------------


def test_a_large_file_is_read_where_the_hub_leads(hub: Hub) -> None:
    commit = hub.repository().commit({"model.bstk": DATA})
    source = opened()
    assert source.name == f"hf://someone/tiny@{commit}/model.bstk"
    assert source.start(100) == (DATA[:100], len(DATA))
    for offset in (0, 777, 49_000):
        assert source.get(offset, 1000) == DATA[offset : offset + 1000]
    assert [r.path for r in hub.asked("hub")] == ["/someone/tiny/resolve/main/model.bstk"]
    assert [r.headers["range"] for r in hub.asked("store")] == [
        "bytes=0-99",
        "bytes=0-999",
        "bytes=777-1776",
        "bytes=49000-49999",
    ]
    # The object is pinned by the store's ETag from the second read on.
    assert ["if-match" in r.headers for r in hub.asked("store")] == [False, True, True, True]
    source.close()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_small_file_is_read_from_the_hub(hub: Hub, ranges: bool) -> None:
    hub.ranges = ranges
    commit = hub.repository().commit({"model.bstk": SMALL})
    source = opened()
    assert source.start(10) == (SMALL[:10], len(SMALL))
    assert source.get(500, 500) == SMALL[500:]
    assert source.get(3, 7) == SMALL[3:10]
    paths = [r.path for r in hub.asked("hub")]
    assert paths[0] == "/someone/tiny/resolve/main/model.bstk"
    assert set(paths[1:]) == {f"/someone/tiny/resolve/{commit}/model.bstk"}
    assert hub.asked("store") == []
    source.close()


@pytest.mark.parametrize("large", [0, 1 << 20])
def test_a_file_without_bytes(hub: Hub, large: int) -> None:
    hub.large = large
    hub.repository().commit({"model.bstk": b""})
    assert opened().start(100) == (b"", 0)


def test_a_revision_that_moves_while_it_is_read(hub: Hub) -> None:
    hub.large = 0
    repository = hub.repository()
    first = repository.commit({"model.bstk": DATA})
    source = opened()
    source.start(100)
    second = repository.commit({"model.bstk": bytes(len(DATA))})
    hub.good += 1  # and the link expires
    assert source.get(100, 100) == DATA[100:200]
    assert [r.path.split("/")[4] for r in hub.asked("hub")] == ["main", first]
    assert opened().get(100, 100) == bytes(100)
    assert opened(f"hf://someone/tiny@{first}/model.bstk").get(0, 9) == DATA[:9]
    assert opened("hf://someone/tiny@main/model.bstk").name == f"hf://someone/tiny@{second}/model.bstk"


def test_links_that_expire_are_asked_for_anew(hub: Hub) -> None:
    hub.uses = 2
    hub.repository().commit({"model.bstk": DATA})
    source = opened()
    source.start(1000)
    for offset in range(1000, 10_000, 1000):
        assert source.get(offset, 1000) == DATA[offset : offset + 1000]
    store = hub.asked("store")
    assert len(store) == 10 + 4  # two answers, then a refusal
    assert len(hub.asked("hub")) == 1 + 4


def test_links_that_expire_under_several_readers(hub: Hub) -> None:
    hub.uses = 50
    hub.repository().commit({"model.bstk": DATA})
    source = opened()
    source.start(10)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda i: source.get(i * 250, 250), range(200)))
    assert b"".join(parts) == DATA
    refusals = len(hub.asked("store")) - 201
    assert 4 <= refusals <= 4 * 8
    assert 4 <= len(hub.asked("hub")) - 1 <= refusals  # one asks for all of them


def test_a_store_that_refuses_every_link(hub: Hub) -> None:
    hub.repository().commit({"model.bstk": DATA})
    source = opened()
    source.start(100)
    hub.uses = 0
    refused(AccessDeniedError, lambda: source.get(100, 100), "HTTP 403")
    assert len(hub.asked("hub")) < 5


def test_what_may_pass_is_tried_again(hub: Hub) -> None:
    hub.repository().commit({"model.bstk": DATA})
    hub.trouble = {"hub": [503, 429, 500], "store": [500, 503]}
    source = opened()
    assert source.start(10)[0] == DATA[:10]
    hub.trouble["store"] = [502, 503]
    assert source.get(10, 10) == DATA[10:20]
    hub.trouble["hub"] = [500] * 9
    uri = "hf://someone/tiny/model.bstk"
    refused(SourceError, lambda: open_source(uri, network=network(Clock(), attempts=3)), "HTTP 500", "after 3 attempts")
    assert hub.trouble["hub"] == [500] * 6


def test_no_hub_at_all(hub: Hub) -> None:
    clock = Clock()
    uri, endpoint = "hf://someone/tiny/model.bstk", "http://127.0.0.1:1"
    refused(SourceError, lambda: open_source(uri, network=network(clock), endpoint=endpoint), "cannot connect")
    assert len(clock.slept) == 3


def test_names_with_spaces_and_revisions_with_slashes(hub: Hub) -> None:
    repository = hub.repository("datasets/someone/tiny")
    repository.commit({"sub dir/a é.bstk": DATA}, branch="feature/x")
    source = opened("hf://datasets/someone/tiny@feature%2Fx/sub dir/a é.bstk")
    assert source.get(5, 5) == DATA[5:10]


def test_a_proxy_of_the_environment(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.repository().commit({"model.bstk": SMALL})
    monkeypatch.setenv("http_proxy", hub.endpoint)
    monkeypatch.delenv("no_proxy", raising=False)
    source = opened(endpoint="http://hub.invalid")
    assert source.start(10) == (SMALL[:10], len(SMALL))
    assert source.get(100, 10) == SMALL[100:110]
    url = "http://hub.invalid/someone/tiny/resolve"
    assert [r.path for r in hub.requests] == [f"{url}/{rev}/model.bstk" for rev in ("main", commit, commit)]
    monkeypatch.setenv("no_proxy", "hub.invalid")
    with pytest.raises(SourceError, match="cannot connect"):
        opened(endpoint="http://hub.invalid")


def test_the_hub_of_these_tests_speaks_as_huggingface_hub_wants_it(hub: Hub) -> None:
    """Else they would prove nothing of real ones: its file system reads the same bytes, its list has the same names."""
    from huggingface_hub import HfApi, HfFileSystem

    commit = hub.repository(private=True).commit({"model.bstk": DATA, "small.bstk": SMALL})
    fs = HfFileSystem(endpoint=hub.endpoint, token=TOKEN, skip_instance_cache=True)
    for name, data in (("model.bstk", DATA), ("small.bstk", SMALL)):
        source = opened(f"hf://someone/tiny/{name}", token=TOKEN)
        assert fs.cat_file(f"someone/tiny/{name}", start=100, end=900) == source.get(100, 800) == data[100:900]
        assert fs.info(f"someone/tiny/{name}")["size"] == source.start(1)[1]
    assert [row["name"] for row in fs.ls("someone/tiny")] == ["someone/tiny/model.bstk", "someone/tiny/small.bstk"]
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    assert api.model_info("someone/tiny").sha == commit
    assert Path(api.hf_hub_download("someone/tiny", "model.bstk")).read_bytes() == DATA
    assert isinstance(opened(token=TOKEN), FileSource)  # which is found there from now on


# --- the token --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["environment", "file", "option"])
def test_the_token_goes_to_the_hub_and_to_nobody_else(hub: Hub, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.repository(private=True).commit({"model.bstk": DATA, "small.bstk": SMALL})
    options = {}
    if how == "environment":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    elif how == "file":
        Path(constants.HF_TOKEN_PATH).write_text(f"{TOKEN}\n")
    else:
        options = {"token": TOKEN}
    source = opened(**options)
    source.start(10)
    hub.good += 1
    assert source.get(10, 10) == DATA[10:20]
    assert opened("hf://someone/tiny/small.bstk", **options).get(1, 9) == SMALL[1:10]
    assert {r.headers.get("authorization") for r in hub.asked("hub")} == {f"Bearer {TOKEN}"}
    assert len(hub.asked("store")) == 3
    assert not any("authorization" in r.headers or "cookie" in r.headers for r in hub.asked("store"))


def test_no_token_where_none_is_wanted(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repository().commit({"model.bstk": DATA})
    opened(token=False).start(10)
    assert not any("authorization" in r.headers for r in hub.requests)


def test_a_token_that_cannot_be_had_or_sent(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(AccessDeniedError, lambda: opened(token=True), "HF_TOKEN", "hf auth login")
    refused(AccessDeniedError, lambda: opened(token=f"{TOKEN}\r\nX: y"), "HF_TOKEN", "hf auth login")
    assert hub.requests == []
    from huggingface_hub import constants

    hub.repository(private=True).commit({"model.bstk": DATA})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    refused(AccessDeniedError, opened, "private")
    opened(token=True)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_private_repository_without_a_token(hub: Hub) -> None:
    hub.repository(private=True).commit({"model.bstk": DATA})
    refused(AccessDeniedError, opened, "no such repository", "private", "HF_TOKEN", "401")
    refused(AccessDeniedError, lambda: opened("hf://no/body/a.bstk"), "no such repository")
    refused(AccessDeniedError, lambda: opened("hf://no/body"), "no such repository")
    refused(AccessDeniedError, lambda: opened(token="hf_wrong"), "not accepted", "again")
    refused(NotFoundError, lambda: opened("hf://no/body/a.bstk", token=TOKEN), "no such repository", "token")


def test_a_gated_repository(hub: Hub) -> None:
    hub.repository(gated=True).commit({"model.bstk": DATA})
    page = f"{hub.endpoint}/someone/tiny"
    refused(AccessDeniedError, opened, "gated", page, "hf auth login")
    refused(AccessDeniedError, lambda: opened(token=TOKEN), "gated", page, "account of your token")


def test_files_and_revisions_that_are_not_there(hub: Hub) -> None:
    hub.repository().commit({"model.bstk": DATA})
    refused(NotFoundError, lambda: opened("hf://someone/tiny/other.bstk"), "no such file", "'main'")
    refused(NotFoundError, lambda: opened("hf://someone/tiny@v2/model.bstk"), "no revision 'v2'")
    refused(NotFoundError, lambda: opened("hf://someone/tiny@v2"), "no revision 'v2'")


def test_a_repository_that_is_closed_while_it_is_read(hub: Hub) -> None:
    repository = hub.repository()
    repository.commit({"model.bstk": DATA})
    source = opened()
    source.start(10)
    repository.private = True
    hub.good += 1
    refused(AccessDeniedError, lambda: source.get(10, 10), "gave it before")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"X-Repo-Commit": "f" * 40}, "commit"),
        ({"X-Linked-ETag": '"another"'}, "ETag"),
        ({"Location": "ftp://somewhere/x"}, "no http(s) URL"),
        ({"Location": ""}, "no http(s) URL"),
    ],
)
def test_a_hub_that_says_another_thing_later(hub: Hub, wrong: dict[str, str], said: str) -> None:
    hub.repository().commit({"model.bstk": DATA})
    source = opened()
    source.start(10)
    hub.good += 1
    hub.wrong = wrong
    refused(SourceError, lambda: source.get(10, 10), said)


def test_a_store_with_another_size_than_the_hub_says(hub: Hub) -> None:
    hub.repository().commit({"model.bstk": DATA})
    hub.wrong = {"X-Linked-Size": "7"}
    refused(SourceChangedError, lambda: opened().start(10), "7 bytes", "50000")


def test_a_store_that_has_something_else_now(hub: Hub) -> None:
    hub.repository().commit({"model.bstk": DATA})
    source = opened()
    source.start(10)
    hub.blobs = {name: bytes(len(DATA)) for name in hub.blobs}
    refused(SourceChangedError, lambda: source.get(10, 10), "replaced")


def test_redirects_in_a_circle(hub: Hub) -> None:
    hub.repository().commit({"model.bstk": DATA})
    hub.wrong = {"Location": "/someone/tiny/resolve/main/model.bstk"}
    refused(SourceError, opened, "redirects")
    assert len(hub.requests) == 11


# --- a repository without the name of a file --------------------------------------------------------------------------


def test_the_only_file_of_a_repository(hub: Hub) -> None:
    repository = hub.repository(private=True)
    commit = repository.commit({"README.md": b"#", "model.bstk": DATA, "more/other.bstk": DATA})
    hub.page = 1  # the list comes in pages
    source = opened("hf://someone/tiny", token=TOKEN)
    assert source.name == f"hf://someone/tiny@{commit}/model.bstk"
    assert len(hub.asked("hub")) == 3 + 1
    assert {r.headers.get("authorization") for r in hub.asked("hub")} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("pages", ["/api/models/someone/tiny/tree/main", "main", ""])
def test_the_next_page_may_be_named_as_seen_from_this_one(hub: Hub, pages: str) -> None:
    hub.repository().commit({"README.md": b"#", "model.bstk": DATA})
    hub.page, hub.pages = 1, pages
    assert opened("hf://someone/tiny").name.endswith("/model.bstk")


@pytest.mark.parametrize("pages", ["http://[::1", "http://localhost:1/", "mailto:a", "http://h:99999/"])
def test_a_next_page_that_is_none(hub: Hub, pages: str) -> None:
    hub.repository().commit({"README.md": b"#", "model.bstk": DATA})
    hub.page, hub.pages = 1, pages
    refused(SourceError, lambda: opened("hf://someone/tiny"), "answers with a next page")


def test_none_or_several_files(hub: Hub) -> None:
    hub.repository().commit({"README.md": b"#"})
    refused(NotFoundError, lambda: opened("hf://someone/tiny"), "a repository without a .bstk")
    hub.repository().commit(dict.fromkeys(("b.bstk", "a.bstk"), SMALL))
    refused(NotFoundError, lambda: opened("hf://someone/tiny"), "2 .bstk files", "name one of a.bstk, b.bstk")


def test_the_only_file_of_a_directory(tmp_path: Path) -> None:
    root = write_small(tmp_path / "a.bstk")
    (tmp_path / "sub.bstk").mkdir()
    with bsformat.open(tmp_path) as container:
        assert (container.root, container.uri) == (root, str(tmp_path / "a.bstk"))
    with bsformat.open(f"file://{tmp_path}") as container:
        assert container.root == root
    write_small(tmp_path / "b.bstk")
    with pytest.raises(NotFoundError, match=r"a directory with 2 \.bstk files: name one of a\.bstk, b\.bstk"):
        bsformat.open(tmp_path)


# --- volumes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [0, 1 << 20], ids=["in the store", "at the hub"])
def test_volumes_of_one_commit(hub: Hub, tmp_path: Path, large: int) -> None:
    """They count as one file, each is found when it is wanted, and a branch that moves on changes none of them."""
    first = write_volumes(tmp_path / "m")
    files = {path.name: path.read_bytes() for path in first.parent.iterdir()}
    assert len(files) > 2
    hub.large = large
    repository = hub.repository()
    commit = repository.commit(files)
    with bsformat.open("hf://someone/tiny", cache=False) as container, bsformat.open(first) as local:
        assert container.uri == f"hf://someone/tiny@{commit}/model.bstk"
        before = len(hub.asked("hub"))
        repository.commit(dict.fromkeys(files, b"of another commit"))
        assert [container.read_block(i) for i in range(len(container))] == [
            local.read_block(i) for i in range(len(local))
        ]
        if not large:  # one question for each volume but the first
            assert len(hub.asked("hub")) == before + len(files) - 1
    assert not any("another" in request.path for request in hub.requests)


# --- offline, and what was downloaded ---------------------------------------------------------------------------------


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(SourceError, opened, "offline (HF_HUB_OFFLINE)")
    refused(SourceError, lambda: opened("hf://someone/tiny"), "offline (HF_HUB_OFFLINE)")
    refused(SourceError, lambda: opened("hf://so--me/tiny/a.bstk"), "names no repository")
    downloaded(Path(constants.HF_HUB_CACHE), "someone/tiny", "0" * 40, {"model.bstk": DATA})
    assert opened().get(5, 5) == DATA[5:10]
    assert opened(f"hf://someone/tiny@{'0' * 40}/model.bstk").get(5, 5) == DATA[5:10]
    refused(SourceError, lambda: opened("hf://someone/tiny/other.bstk"), "offline")
    assert hub.requests == []


def test_a_downloaded_file_of_the_same_commit_is_read_where_it_is(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    write_small(tmp_path / "a.bstk")
    data = (tmp_path / "a.bstk").read_bytes()
    repository = hub.repository()
    commit = repository.commit({"model.bstk": data})
    folder = downloaded(Path(constants.HF_HUB_CACHE), "someone/tiny", commit, {"model.bstk": data})
    monkeypatch.setenv("BSTK_CACHE", str(tmp_path / "cache"))
    with bsformat.open("hf://someone/tiny/model.bstk") as container:
        assert container.uri == str(folder / "model.bstk")
        container.read_block(0)
    assert len(hub.requests) == 1
    assert not (tmp_path / "cache").exists()  # no second copy
    repository.commit({"model.bstk": data + b"\0"})
    assert not isinstance(opened(), FileSource)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_volumes_that_were_not_downloaded_come_from_the_hub(hub: Hub, tmp_path: Path, count: int) -> None:
    from huggingface_hub import constants

    first = write_volumes(tmp_path / "m")
    files = {name: (first.parent / name).read_bytes() for name in names_of(first)}
    hub.large = 0
    commit = hub.repository().commit({f"sub/{name}": data for name, data in files.items()})
    there = {f"sub/{name}": files[name] for name in list(files)[:count]}
    downloaded(Path(constants.HF_HUB_CACHE), "someone/tiny", commit, there)
    with bsformat.open("hf://someone/tiny/sub/model.bstk") as container, bsformat.open(first) as local:
        assert isinstance(open_source("hf://someone/tiny/sub/model.bstk"), FileSource)
        before = len(hub.asked("hub"))
        for volume in local.volumes:
            assert container.read_block(volume.first_block) == local.read_block(volume.first_block)
        assert len(hub.asked("hub")) == before + max(0, len(files) - count)


# --- whole files ------------------------------------------------------------------------------------------------------


def test_a_file_is_opened_read_fetched_and_verified(hub: Hub, tmp_path: Path) -> None:
    hub.large, hub.uses = 0, 3
    root = write_small(tmp_path / "a.bstk")
    hub.repository().commit({"model.bstk": (tmp_path / "a.bstk").read_bytes()})
    uri = "hf://someone/tiny"
    with bsformat.open(uri, cache=BlockCache(tmp_path / "cache"), network=Network()) as container:
        assert container.root == root
        blocks = [container.read_block(i) for i in range(len(container))]
    with bsformat.open(tmp_path / "a.bstk") as local:
        assert blocks == [local.read_block(i) for i in range(len(local))]
    fetched = bsformat.fetch(uri, tmp_path / "b.bstk", cache=False)
    assert fetched.root == root
    assert (tmp_path / "b.bstk").read_bytes() == (tmp_path / "a.bstk").read_bytes()
    assert bsformat.verify(uri, root=root).ok
    # What is in the cache is found again by any name of the file: only its first bytes are asked for.
    before = len(hub.asked("store"))
    with bsformat.open(f"{uri}@main/model.bstk", cache=BlockCache(tmp_path / "cache")) as container:
        assert [container.read_block(i) for i in range(len(container))] == blocks
        assert container.source.bytes_read == 128
    assert len(hub.asked("store")) - before <= 2


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    error = refused(SourceError, opened, "pip install huggingface_hub")
    assert isinstance(error, BstkError)
