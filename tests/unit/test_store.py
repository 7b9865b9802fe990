"""The store: the same behaviour over a directory and over S3."""

from __future__ import annotations

import datetime as dt
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError
from faults.proxy import FaultProxy
from hypothesis import given
from hypothesis import strategies as st

import loaders.store
from loaders.settings import S3Settings
from loaders.store import LocalStore, S3Store, Store, StoreError, open_store

OpenS3 = Callable[..., S3Store]
DAY = dt.timedelta(days=1)


@pytest.fixture
def open_s3(request: pytest.FixtureRequest) -> OpenS3:
    """`open_s3(endpoint)`: a store under a prefix of its own, through a proxy if its endpoint is given."""
    server = request.getfixturevalue("s3_server")
    prefix = f"{server.bucket}/tests/{uuid4().hex}"

    def opened(endpoint: str | None = None) -> S3Store:
        access = S3Settings(server.access_key, server.secret_key, endpoint=endpoint or server.endpoint)
        store = open_store(f"s3://{prefix}", access)
        assert isinstance(store, S3Store)
        return store

    return opened


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.services)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    opened: OpenS3 = request.getfixturevalue("open_s3")
    return opened()


def test_an_object_is_put_once(store: Store) -> None:
    assert store.put_if_absent("a/b.json", b"first")
    assert not store.put_if_absent("a/b.json", b"second")
    assert store.get("a/b.json") == b"first"


def test_of_several_writers_one_wins(store: Store) -> None:
    for turn in range(10):
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda n, turn=turn: store.put_if_absent(f"race/{turn}", b"%d" % n), range(8)))
        assert sum(won) == 1
        assert store.get(f"race/{turn}") == b"%d" % won.index(True)


def test_what_is_missing_is_missing(store: Store) -> None:
    assert not store.exists("a")
    assert list(store.list("")) == []
    with pytest.raises(KeyError):
        store.get("a")
    store.delete("a")


def test_an_object_is_written_read_and_deleted(store: Store, tmp_path: Path) -> None:
    with store.open_write("x/data") as sink:
        sink.write(b"one ")
        sink.write(b"two")
        assert not store.exists("x/data")
    assert store.get("x/data") == b"one two"
    file = tmp_path / "file"
    file.write_bytes(b"three")
    store.put_file("x/data", file)
    assert store.get("x/data") == b"three"
    assert store.exists("x/data")
    store.delete("x/data")
    assert not store.exists("x/data")


def test_a_large_object_is_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders.store, "PART_BYTES", 5 << 20)
    data = os.urandom(1 << 20) * 11 + b"end"
    with store.open_write("large") as sink:
        for start in range(0, len(data), 3_000_000):
            sink.write(data[start : start + 3_000_000])
    assert store.get("large") == data


def test_a_failed_write_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders.store, "PART_BYTES", 5 << 20)
    with pytest.raises(RuntimeError), store.open_write("x/half") as sink:
        sink.write(bytes(6 << 20))
        raise RuntimeError("the reader failed")
    assert list(store.list("")) == []
    assert not store.exists("x/half")


def test_keys_are_listed_in_the_order_of_their_bytes(store: Store) -> None:
    keys = ["a.json", "a/1.json", "a/2/x.json", "a/2.json", "a0.json", "b/1.json", "ä/1.json"]
    for key in keys:
        store.put_if_absent(key, b"")
    expected = sorted(keys, key=str.encode)
    assert list(store.list("")) == expected
    assert list(store.list("a/")) == ["a/1.json", "a/2.json", "a/2/x.json"]
    assert list(store.list("a/2")) == ["a/2.json", "a/2/x.json"]
    assert list(store.list("nothing/")) == []
    for after in [*keys, "a", "a/", "a/2", "zz"]:
        assert list(store.list("", start_after=after)) == [k for k in expected if k.encode() > after.encode()]


@given(
    st.sets(st.lists(st.sampled_from(["a", "a-", "b", "a.b", "é"]), min_size=1, max_size=3).map(tuple)),
    st.data(),
)
def test_a_directory_lists_as_s3_does(tmp_path_factory: Any, paths: set[tuple[str, ...]], data: st.DataObject) -> None:
    store = open_store(str(tmp_path_factory.mktemp("listing")))
    keys = sorted("/".join(path) + "=" for path in paths)
    for key in keys:
        store.put_if_absent(key, b"")
    prefix = data.draw(st.sampled_from(["", "a", "a/", "a/a", "b"]))
    after = data.draw(st.sampled_from([*keys, "a/", "a/a", "b"]))
    assert list(store.list(prefix, after)) == [key for key in keys if key.startswith(prefix) and key > after]


@pytest.mark.parametrize("key", ["../x", "/etc/x", "a//b", "a/../../x", "", ".tmp/x", "a\0b", "a\\b", "a/"])
def test_a_key_cannot_leave_the_store(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="is not a key"):
        store.put_if_absent(key, b"")
    with pytest.raises(ValueError, match="is not a key"):
        store.uri(key)


def test_uris_are_what_duckdb_reads(tmp_path: Path) -> None:
    assert open_store(str(tmp_path)).uri("a/b") == str(tmp_path / "a/b")
    assert open_store("s3://bucket/some/prefix").uri("a/b") == "s3://bucket/some/prefix/a/b"
    assert open_store("s3://bucket").uri("a/b") == "s3://bucket/a/b"


def test_a_full_disk_fails_cleanly(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")

    class Full(LocalStore):
        def _temporary(self) -> Any:
            return FullDisk()

    class FullDisk:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def open(self, _: str) -> Any:
            return Path("/dev/full").open("wb")

    with pytest.raises(StoreError, match=r"cannot write or read a/b: No space left"):
        Full(tmp_path).put_if_absent("a/b", b"x")
    with pytest.raises(StoreError, match=r"a/b: No space left"), Full(tmp_path).open_write("a/b") as sink:
        sink.write(b"x")
    assert not (tmp_path / "a").exists()


def test_a_place_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    store.put_if_absent("a/b", b"x")
    for number in (errno.EIO, errno.EACCES):

        def fail(*_: object, number: int = number) -> Any:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as broken:
            broken.setattr(os, "scandir", fail)
            with pytest.raises(StoreError, match=f"{tmp_path}: {os.strerror(number)}") as caught:
                list(store.list(""))
            assert caught.value.errno == number
        with monkeypatch.context() as broken:
            broken.setattr(Path, "is_file", fail)
            broken.setattr(Path, "read_bytes", fail)
            for ask in (store.get, store.exists):
                with pytest.raises(StoreError, match=f"a/b: {os.strerror(number)}"):
                    ask("a/b")
    with pytest.raises(KeyError):
        store.get("a/c")
    assert list(store.list("c/")) == []


def test_what_vanishes_while_it_is_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when somebody clears `.tmp`, or the disk goes away: a loader tries again after a StoreError."""
    store = open_store(str(tmp_path))

    def vanish(_: object) -> None:
        shutil.rmtree(tmp_path / ".tmp")

    monkeypatch.setattr(loaders.store, "_to_disk", vanish)
    with pytest.raises(StoreError, match="a/b: No such file"):
        store.put_if_absent("a/b", b"x")
    with pytest.raises(StoreError, match="a/b: No such file"), store.open_write("a/b") as sink:
        sink.write(b"x")
    assert list(store.list("")) == []


def left_unfinished(root: Path, age: dt.timedelta, name: str | None = None) -> Path:
    """A file as a writer leaves it that is killed, untouched for so long."""
    path = root / ".tmp" / (name or uuid4().hex)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    then = time.time() - age.total_seconds()
    os.utime(path, (then, then))
    return path


def test_files_that_killed_writers_left_go_after_a_day(tmp_path: Path) -> None:
    store, minute = open_store(str(tmp_path)), dt.timedelta(minutes=1)
    assert store.remove_unfinished(DAY) == 0
    assert not (tmp_path / ".tmp").exists()
    old = [left_unfinished(tmp_path, age) for age in (DAY + minute, 100 * DAY)]
    young = [left_unfinished(tmp_path, age) for age in (DAY - minute, -DAY)]
    foreign = [left_unfinished(tmp_path, 9 * DAY, name) for name in ("notes.txt", "a" * 31, "a" * 33, "A" * 32)]
    folder, link = tmp_path / ".tmp" / ("d" * 32), tmp_path / ".tmp" / ("e" * 32)
    folder.mkdir()
    os.utime(folder, (0, 0))
    link.symlink_to(foreign[0])
    os.utime(link, (0, 0), follow_symlinks=False)
    assert store.remove_unfinished(DAY, dry_run=True) == 2
    assert all(path.exists() for path in old)
    assert store.remove_unfinished(DAY) == 2
    assert sorted((tmp_path / ".tmp").iterdir()) == sorted([*young, *foreign, folder, link])
    assert store.remove_unfinished(DAY) == 0


def test_a_writer_killed_between_link_and_removal_keeps_its_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object and the file that it was written to are one file of two names: one of them goes."""
    store = open_store(str(tmp_path))
    with monkeypatch.context() as killed:
        killed.setattr(Path, "unlink", lambda *_, **__: None)
        assert store.put_if_absent("a/b", b"whole")
    os.utime(tmp_path / "a/b", (0, 0))
    assert store.remove_unfinished(DAY) == 1
    assert store.get("a/b") == b"whole"
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_running_writers_keep_their_files_and_who_sleeps_for_a_day_is_told(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with store.open_write("a/b") as sink:
        sink.write(b"x")
        assert store.remove_unfinished(DAY) == 0
    assert store.get("a/b") == b"x"
    with pytest.raises(StoreError, match="a/c: No such file"), store.open_write("a/c") as sink:
        (asleep,) = (tmp_path / ".tmp").iterdir()
        os.utime(asleep, (0, 0))
        assert store.remove_unfinished(DAY) == 1
        sink.write(b"x")
    assert list(store.list("")) == ["a/b"]
    assert store.put_if_absent("a/c", b"again")


def test_what_ends_while_the_unfinished_are_removed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_unfinished(tmp_path, 2 * DAY)

    def ended(path: Path) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "unlink", ended)
    assert open_store(str(tmp_path)).remove_unfinished(DAY) == 0


def test_a_directory_of_unfinished_files_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(StoreError, match=r"\.tmp: Permission denied"):
        open_store(str(tmp_path)).remove_unfinished(DAY)


@pytest.mark.services
def test_uploads_that_killed_writers_left_are_aborted_after_a_day(open_s3: OpenS3) -> None:
    """The server says of each upload that it has just begun: another day is told by a negative age."""
    store = open_s3()
    other = S3Store(store.bucket, store._base.rstrip("/") + "-2", S3Settings("a", "b"))
    other._client = store._client
    where = [{"Bucket": each.bucket, "Key": each._name(f"a/é b?{n}")} for each in (store, other) for n in range(2)]
    for upload in where:
        begun = store._client.create_multipart_upload(**upload)["UploadId"]
        store._client.upload_part(**upload, UploadId=begun, PartNumber=1, Body=b"half")
    store.put_if_absent("whole", b"whole")
    assert store.remove_unfinished(DAY) == 0
    assert store.remove_unfinished(-DAY, dry_run=True) == 2
    assert store.remove_unfinished(-DAY) == 2
    assert store.remove_unfinished(-DAY) == 0
    assert list(store.list("")) == ["whole"]
    assert other.remove_unfinished(-DAY) == 2, "those of another prefix stayed"


class Uploads:
    """An S3 client that knows uploads, each by its key and its age in hours; it gives them in pages of two."""

    def __init__(self, *uploads: tuple[str, float]) -> None:
        now = dt.datetime.now(dt.UTC)
        self.there = [
            {"Key": key, "UploadId": f"u{number:02}", "Initiated": now - dt.timedelta(hours=age)}
            for number, (key, age) in enumerate(sorted(uploads))
        ]
        self.ended: set[str] = set()

    def list_multipart_uploads(
        self, *, Bucket: str, Prefix: str, KeyMarker: str = "", UploadIdMarker: str = ""
    ) -> dict[str, Any]:
        after = [each for each in self.there if (each["Key"], each["UploadId"]) > (KeyMarker, UploadIdMarker)]
        return {"Uploads": after[:2], "IsTruncated": len(after) > 2} if after else {"IsTruncated": False}

    def abort_multipart_upload(self, *, Bucket: str, Key: str, UploadId: str) -> None:
        if UploadId in self.ended:
            answer: Any = {"Error": {"Code": "NoSuchUpload"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
            raise ClientError(answer, "AbortMultipartUpload")
        self.there = [each for each in self.there if (each["Key"], each["UploadId"]) != (Key, UploadId)]


def test_uploads_go_by_their_age_page_by_page() -> None:
    store = S3Store("bucket", "raw", S3Settings("a", "b"))
    uploads = Uploads(*((f"raw/{n}", 24 + n - 3.5) for n in range(9)), ("raw/3", 30), ("rawhide/old", 99))
    store._client = uploads
    assert store.remove_unfinished(DAY, dry_run=True) == 6
    assert store.remove_unfinished(DAY) == 6
    assert [each["Key"] for each in uploads.there] == ["raw/0", "raw/1", "raw/2", "raw/3", "rawhide/old"]
    uploads = Uploads(("raw/a", 99), ("raw/b", 99))
    uploads.ended.add("u00")
    store._client = uploads
    assert store.remove_unfinished(DAY) == 1, "one has ended by itself"


class FakeClient:
    """Answers puts as told: "lost" takes effect and answers nothing, a number is an HTTP status."""

    def __init__(self, *answers: str | int) -> None:
        self.answers = list(answers)
        self.objects: dict[str, bytes] = {}

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, IfNoneMatch: str) -> None:
        assert IfNoneMatch == "*"
        answer = self.answers.pop(0) if self.answers else "ok"
        if isinstance(answer, int):
            raise self.error(answer)
        if Key in self.objects:
            raise self.error(412)
        self.objects[Key] = Body
        if answer == "lost":
            raise ConnectionClosedError(endpoint_url="http://s3")

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        class Body:
            read = staticmethod(lambda: self.objects[Key])

        return {"Body": Body}

    @staticmethod
    def error(status: int) -> ClientError:
        answer: Any = {"Error": {"Code": str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}
        return ClientError(answer, "PutObject")


def faked(monkeypatch: pytest.MonkeyPatch, *answers: str | int) -> tuple[S3Store, FakeClient]:
    monkeypatch.setattr(loaders.store.time, "sleep", lambda _: None)
    store = S3Store("bucket", "", S3Settings("a", "b"))
    client = FakeClient(*answers)
    store._client = client
    return store, client


def test_a_lost_answer_is_still_a_put(monkeypatch: pytest.MonkeyPatch) -> None:
    store, client = faked(monkeypatch, 500, "lost")
    assert store.put_if_absent("k", b"mine")
    assert client.objects == {"k": b"mine"}


def test_a_conflict_that_another_won_is_no_put(monkeypatch: pytest.MonkeyPatch) -> None:
    store, client = faked(monkeypatch, 409)
    client.objects["k"] = b"theirs"
    assert not store.put_if_absent("k", b"mine")


def test_the_same_bytes_of_another_are_no_put(monkeypatch: pytest.MonkeyPatch) -> None:
    store, client = faked(monkeypatch)
    client.objects["k"] = b"mine"
    assert not store.put_if_absent("k", b"mine")


def test_retries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    store, client = faked(monkeypatch, *[503] * 20)
    with pytest.raises(StoreError, match="s3://bucket/k"):
        store.put_if_absent("k", b"mine")
    assert len(client.answers) == 20 - loaders.store.ATTEMPTS


def test_what_cannot_be_helped_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    store, client = faked(monkeypatch, 403, 403)
    with pytest.raises(StoreError):
        store.put_if_absent("k", b"mine")
    assert client.answers == [403]


@pytest.fixture
def proxy(request: pytest.FixtureRequest) -> Iterator[FaultProxy]:
    proxy = FaultProxy(request.getfixturevalue("s3_server").endpoint)
    yield proxy
    proxy.close()


@pytest.mark.services
def test_answers_lost_on_the_wire_change_nothing(open_s3: OpenS3, proxy: FaultProxy) -> None:
    store = open_s3(proxy.endpoint)
    proxy.fail("lost answer", "put new file", times=2)
    assert store.put_if_absent("k", b"mine")
    assert (proxy.met["put new file"], store.retries) == (2, 2)
    assert store.get("k") == b"mine"
    proxy.fail("lost answer", "put new file")
    assert not store.put_if_absent("k", b"theirs")
    assert store.get("k") == b"mine"


@pytest.mark.services
def test_an_upload_whose_last_answer_is_lost_is_complete(
    open_s3: OpenS3, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders.store, "PART_BYTES", 5 << 20)
    store = open_s3(proxy.endpoint)
    proxy.fail("lost answer", "complete upload")
    with store.open_write("large") as sink:
        sink.write(b"x" * (6 << 20))
    assert proxy.met["complete upload"] == 1
    assert store.size("large") == 6 << 20


def test_a_server_that_is_away_is_asked_again_and_then_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders.store, "FIRST_WAIT", 0.01)
    store = open_store("s3://bucket/x", S3Settings("a", "b", endpoint="http://127.0.0.1:9"))
    with pytest.raises(StoreError, match="s3://bucket/x/k"):
        store.put_if_absent("k", b"mine")
    assert store.retries == loaders.store.ATTEMPTS - 1


@pytest.mark.services
def test_a_wrong_secret_is_an_error_without_it(request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue("s3_server")
    store = open_store(f"s3://{server.bucket}/x", S3Settings(server.access_key, "canary", endpoint=server.endpoint))
    with pytest.raises(StoreError) as caught:
        store.get("a")
    assert "canary" not in str(caught.value)


def forget_aws(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Let boto3 find nothing of this machine."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize(
    ("url", "s3", "env", "told"),
    [
        (
            "s3://bucket/x",
            S3Settings(),
            {},
            "cannot be asked for s3://bucket/x/k: Unable to locate credentials; set",
        ),
        ("s3://bucket", S3Settings("me"), {}, "cannot be asked for s3://bucket: Partial credentials found in"),
        ("s3://a b/x", S3Settings("me", "canary"), {}, "asked for s3://a b/x/k: Parameter validation failed: Invalid"),
        ("s3://bucket", S3Settings("me", "canary", endpoint="nowhere"), {}, "Invalid endpoint: nowhere; set"),
        ("s3://bucket", S3Settings("me", "canary", region="a b"), {}, "Provided region_name 'a b' doesn't match"),
        ("s3://bucket", S3Settings(), {"AWS_PROFILE": "gone"}, "The config profile (gone) could not be found; set"),
    ],
)
def test_what_cannot_even_be_asked_is_told_in_one_line(
    url: str, s3: S3Settings, env: dict[str, str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_aws(monkeypatch, tmp_path)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    for ask in (
        lambda store: store.get("k"),
        lambda store: list(store.list("k")),
        lambda store: store.put_if_absent("k", b"x"),
        lambda store: store.put_file("k", Path(__file__)),
    ):
        with pytest.raises(StoreError) as caught:
            ask(open_store(url, s3))
        said = str(caught.value)
        assert told in said and "AWS_ACCESS_KEY_ID" in said
        assert "canary" not in said and "\n" not in said
