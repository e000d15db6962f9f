"""Downloads: resumed, checked, unpacked within their folder, from a server that misbehaves; and the check of a copy."""

from __future__ import annotations

import hashlib
import io
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mtlbench.data import download
from mtlbench.data.download import Download, fetch, obtain, unpack
from mtlbench.data_modules.miniatures import write_nyud, write_pascal
from mtlbench.data_modules.taskonomy import Taskonomy
from mtlbench.errors import DataError
from tests.support.command_line import mtlbench

CONTENT = bytes(range(256)) * 4000
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``files``; breaks off the first ``breaks`` answers after ``part`` bytes; notes the ranges asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/set.tgz": CONTENT}
        self.breaks, self.part, self.tag, self.ranges, self.errors = (
            0,
            300_000,
            '"one"',
            list[str | None](),
            list[int](),
        )

    def url(self, name: str = "set.tgz") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, content = self.server, self.server.files.get(self.path)
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        if server.errors:
            return self.send_error(server.errors.pop(0))
        if content is None:
            return self.send_error(404)
        start = 0
        if wanted and self.headers.get("If-Range") == server.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", server.tag)
        self.end_headers()
        rest = content[start:]
        if server.breaks:
            server.breaks -= 1
            rest = rest[: server.part]
        self.wfile.write(rest)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    running = Server()
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def test_what_breaks_off_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.breaks = 2
    assert fetch(server.url(), tmp_path / "a", size=len(CONTENT), checksum=MD5).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=600000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    fetch(server.url(), tmp_path / "a")
    assert len(server.ranges) == 3, "what is there is not fetched again"


def test_a_later_command_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.breaks = 1
    with pytest.raises(DataError, match=r"broke off 1 times.*300000 bytes are kept.*same command"):
        fetch(server.url(), tmp_path / "a", attempts=1)
    assert fetch(server.url(), tmp_path / "a", checksum=MD5).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=300000-"


def test_another_version_on_the_server_is_fetched_from_the_start(server: Server, tmp_path: Path) -> None:
    server.breaks = 1
    with pytest.raises(DataError):
        fetch(server.url(), tmp_path / "a", attempts=1)
    server.tag, server.files["/set.tgz"] = '"two"', CONTENT[::-1]
    assert fetch(server.url(), tmp_path / "a", size=len(CONTENT)).read_bytes() == CONTENT[::-1]


def test_a_complete_part_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(CONTENT)
    (tmp_path / "a.tag").write_text(server.tag)
    assert fetch(server.url(), tmp_path / "a", checksum=MD5).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


def test_a_refusal_is_named_and_a_passing_one_tried_again(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.tgz must be there.*404.*by hand"):
        fetch(server.url("nowhere.tgz"), tmp_path / "a")
    assert len(server.ranges) == 1
    server.errors = [503, 429]
    assert fetch(server.url(), tmp_path / "a").exists()
    with pytest.raises(DataError, match="http or https"):
        fetch("file:///etc/passwd", tmp_path / "b")


def test_wrong_bytes_are_removed(server: Server, tmp_path: Path) -> None:
    server.files["/set.tgz"] = CONTENT[:-1] + b"x"
    with pytest.raises(DataError, match="md5 sum.*expected.*removed"):
        fetch(server.url(), tmp_path / "a", size=len(CONTENT), checksum=MD5)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match=f"must have 7 bytes. The server has {len(CONTENT)}"):
        fetch(server.url(), tmp_path / "a", size=7)


def tar(path: Path, *members: tuple[str, bytes | str], mode: str = "w:gz") -> Path:
    """Writes an archive; a member with text instead of bytes is of that kind."""
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o4777
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = getattr(tarfile, content), "/etc/passwd"
                archive.addfile(info)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [("../out.txt", b"x"), ("a/../../out.txt", b"x"), ("/tmp/out.txt", b"x"), ("C:\\out.txt", b"x"), ("..\\out", b"x"),
     ("link", "SYMTYPE"), ("hard", "LNKTYPE"), ("device", "CHRTYPE"), ("pipe", "FIFOTYPE")],
)  # fmt: skip
def test_an_archive_that_leads_out_is_refused_whole(tmp_path: Path, name: str, content: bytes | str) -> None:
    archive = tar(tmp_path / "bad.tgz", ("good.txt", b"fine"), (name, content))
    inside = tmp_path / "within" / "folder"
    with pytest.raises(DataError, match="bad.tgz.*nothing was unpacked.*Do not trust"):
        unpack(archive, inside)
    assert list(inside.iterdir()) == [] and sorted(p.name for p in tmp_path.rglob("*")) == [
        "bad.tgz",
        "folder",
        "within",
    ]


def test_zip_archives_obey_the_same_rules(tmp_path: Path) -> None:
    def written(name: str, kind: int = 0) -> Path:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("x/good.txt", "fine")
            info = zipfile.ZipInfo(name)
            info.external_attr = kind << 16
            archive.writestr(info, "/etc/passwd")
        return tmp_path / "a.zip"

    for bad in (written("../out"), written("/out"), written("link", stat.S_IFLNK | 0o777)):
        with pytest.raises(DataError, match="Do not trust"):
            unpack(bad, tmp_path / "inside")
    unpack(written("x/y/more.txt"), tmp_path / "inside")
    assert sorted(p.name for p in (tmp_path / "inside").rglob("*.txt")) == ["good.txt", "more.txt"]


def test_files_get_ordinary_rights_and_join_what_is_there(tmp_path: Path) -> None:
    place = tmp_path / "data"
    (place / "set").mkdir(parents=True)
    (place / "set/old.txt").write_text("old")
    unpack(tar(tmp_path / "a.tar", ("set/new.txt", b"new"), ("set/deep/x.txt", b"x"), mode="w"), place)
    assert {p.name: p.read_text() for p in place.rglob("*.txt")} == {"old.txt": "old", "new.txt": "new", "x.txt": "x"}
    assert not (place / "set/new.txt").stat().st_mode & 0o4111
    unpack(tar(tmp_path / "b.tgz", ("a/b/c.txt", b"flat")), place, flat=True)
    assert (place / "c.txt").read_text() == "flat"


def test_a_truncated_archive_is_named_and_nothing_unpacked(tmp_path: Path) -> None:
    whole = tar(tmp_path / "a.tgz", ("x.txt", hashlib.sha512(b"").digest() * 5000)).read_bytes()
    (tmp_path / "a.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="a.tgz.*complete and readable.*fetch it again"):
        unpack(tmp_path / "a.tgz", tmp_path / "inside")
    assert list((tmp_path / "inside").iterdir()) == []


def test_an_archive_is_obtained_once_and_checked_against_the_list(server: Server, tmp_path: Path) -> None:
    archive = tar(tmp_path / "b_rgb.tar", ("rgb/point_0.png", b"picture"), mode="w").read_bytes()
    server.files |= {"/b_rgb.tar": archive, "/md5sum.txt": f"{hashlib.md5(archive).hexdigest()}  b_rgb.tar\n".encode()}
    wanted = Download(server.url("b_rgb.tar"), "terms", "rgb/taskonomy/b", flat=True, sums=server.url("md5sum.txt"))
    assert obtain(wanted, tmp_path / "data") and not obtain(wanted, tmp_path / "data")
    assert (tmp_path / "data/rgb/taskonomy/b/point_0.png").read_bytes() == b"picture"
    server.files["/b_rgb.tar"] = archive[:-1] + b"x"
    with pytest.raises(DataError, match="md5 sum"):
        obtain(wanted, tmp_path / "other")


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_downloads_after_agreement(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtlbench.data_modules.pascal import Pascal

    small = write_pascal(tmp_path / "made", train=2, val=1)
    with tarfile.open(tmp_path / "p.tgz", "w:gz") as archive:
        archive.add(small / "PASCAL_MT", "PASCAL_MT")
    server.files["/p.tgz"] = (tmp_path / "p.tgz").read_bytes()
    monkeypatch.setattr(Pascal, "downloads", lambda self: [Download(server.url("p.tgz"), "Mind the terms.")])
    answer = mtlbench(tmp_path, "data", "pascal", "--data", "here", "--download")
    assert answer.code == 2 and "Mind the terms." in answer.text and "--agree" in answer.text and not server.ranges
    server.breaks = 1
    answer = mtlbench(tmp_path, "data", "pascal", "--data", "here", "--download", "--agree")
    assert answer.code == 0 and "unpacked" in answer.text and "2 samples" in answer.text
    assert (tmp_path / "here/PASCAL_MT/JPEGImages/2008_000000.jpg").is_file()


def test_without_a_public_address_the_command_says_so(tmp_path: Path) -> None:
    answer = mtlbench(tmp_path, "data", "nyuv2", "--download", "--agree")
    assert answer.code == 2 and "no public address" in answer.text and "lorenmt/mtan" in answer.text


def test_verify_reads_every_file_and_counts_missing_labels(tmp_path: Path) -> None:
    root = write_pascal(tmp_path, train=6, val=3, normals=False)
    answer = mtlbench(tmp_path, "data", "pascal", "--data", str(root), "--verify")
    assert answer.code == 0 and "normals              absent (optional)" in answer.text
    assert "6 samples, 0 faulty" in answer.text and "1 without a label of parts" in answer.text
    broken = root / "PASCAL_MT/sal_distill/2008_000001.png"
    broken.write_bytes(broken.read_bytes()[:50])
    (root / "PASCAL_MT/JPEGImages/2008_000003.jpg").write_bytes(b"")
    answer = mtlbench(tmp_path, "data", "pascal", "--data", str(root), "--verify")
    assert answer.code == 2 and "6 samples, 2 faulty" in answer.text
    assert "2008_000001.png: files must be complete" in answer.text and "2008_000003.jpg" in answer.text


def test_an_all_void_label_counts_as_missing(tmp_path: Path) -> None:
    root = write_nyud(tmp_path, train=6, val=1)
    answer = mtlbench(tmp_path, "data", "nyud", "--data", str(root), "--set", "data.options.size=[60,80]", "--verify")
    assert answer.code == 0 and "1 without a label of semseg" in answer.text, answer.text


def test_taskonomy_asks_for_every_listed_building_and_domain(tmp_path: Path) -> None:
    (tmp_path / "splits_taskonomy").mkdir()
    text = "id,train,val,test\rhiteman,1,0,0\rwoodbine,1,0,0\rihlen,0,0,1\r"
    (tmp_path / "splits_taskonomy/train_val_test_tiny.csv").write_bytes(text.encode())
    wanted = Taskonomy(str(tmp_path), tasks={"normal": Taskonomy.TASKS["normal"]}).downloads()
    names = [f"{b}_{d}.tar" for b in ("hiteman", "ihlen") for d in ("rgb", "mask_valid", "normal")]
    assert [item.name for item in wanted] == names and wanted[2].folder == "normal/taskonomy/hiteman"
    assert all(item.flat and item.sums.endswith("md5sum.txt") and "no redistribution" in item.terms for item in wanted)


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_a_bomb_is_refused_and_leaves_nothing(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 MB of zeros in 100 kB, in one member or in many; what compresses well and is small is data."""
    monkeypatch.setattr(download, "SMALL", 1 << 20)
    for members in (1, 20):
        archive = tmp_path / f"{members}.{kind}"
        write_zeros(archive, members, 100_000_000 // members)
        assert archive.stat().st_size < 500_000
        with pytest.raises(DataError, match="at most 200 times its size.*nothing was unpacked"):
            unpack(archive, tmp_path / "data")
        assert list((tmp_path / "data").iterdir()) == []
    write_zeros(tmp_path / f"labels.{kind}", 4, 200_000)
    unpack(tmp_path / f"labels.{kind}", tmp_path / "data")
    assert len(list((tmp_path / "data").iterdir())) == 4


def write_zeros(archive: Path, members: int, size: int) -> None:
    """Writes an archive of files of zeros."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            for number in range(members):
                zipped.writestr(f"{number}.bin", bytes(size))
        return
    with tarfile.open(archive, "w:gz") as tar:
        for number in range(members):
            info = tarfile.TarInfo(f"{number}.bin")
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path, server: Server) -> None:
    """Neither where the archive has a folder, nor where the data set wants its content; a linked file is replaced."""
    outside, data = tmp_path / "outside", tmp_path / "data"
    outside.mkdir()
    data.mkdir()
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("images/a.txt", "new")
        zipped.writestr("list.txt", "new")
    (data / "images").symlink_to(outside)
    with pytest.raises(DataError, match="images is a link to .*outside; nothing was unpacked"):
        unpack(archive, data)
    assert list(outside.iterdir()) == [] and not (data / "list.txt").exists()
    (data / "images").unlink()
    (outside / "list.txt").write_text("old")
    (data / "list.txt").symlink_to(outside / "list.txt")
    unpack(archive, data)
    assert (outside / "list.txt").read_text() == "old" and (data / "list.txt").read_text() == "new"
    server.files["/set.tgz"] = archive.read_bytes()
    (data / "inner").symlink_to(outside)
    with pytest.raises(DataError, match="inner is a link"):
        obtain(Download(server.url(), "", folder="inner"), data)
    assert [path.name for path in outside.iterdir()] == ["list.txt"]


@pytest.mark.parametrize("name", [".downloads", ".downloads/set.tgz", ".downloads/set.tgz.part"])
def test_a_download_is_not_written_through_a_link(tmp_path: Path, server: Server, name: str) -> None:
    outside, data = tmp_path / "outside", tmp_path / "data"
    (data / ".downloads").mkdir(parents=True)
    target = outside if name == ".downloads" else outside / "victim"
    outside.mkdir()
    if name == ".downloads":
        (data / name).rmdir()
    else:
        target.write_text("old")
    (data / name).symlink_to(target)
    with pytest.raises(DataError, match="never through a link"):
        obtain(Download(server.url(), ""), data)
    assert [path.name for path in outside.iterdir()] == ([] if name == ".downloads" else ["victim"])
    assert not server.ranges and (target.is_dir() or target.read_text() == "old")


@pytest.mark.parametrize("there", ["images", "images/a.txt"])
def test_a_file_in_the_place_of_a_folder_is_named_and_nothing_unpacked(tmp_path: Path, there: str) -> None:
    data = tmp_path / "data"
    if there == "images":
        data.mkdir()
        (data / there).write_text("a file")
    else:
        (data / there).mkdir(parents=True)
    with pytest.raises(DataError, match=f"{there} is in the way; nothing was unpacked"):
        unpack(tar(tmp_path / "a.tgz", ("0.txt", b"first"), ("images/a.txt", b"x")), data)
    assert {path.relative_to(data).as_posix() for path in data.rglob("*")} == {"images", there}


def test_archives_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A flipped byte in compressed data, a password, and a name that no file can have."""
    noise = hashlib.sha512(b"").digest() * 5000
    write = zipfile.ZipFile(tmp_path / "flipped.zip", "w", zipfile.ZIP_DEFLATED)
    with write as archive:
        archive.writestr("a.bin", bytes(range(256)) * 400)
    content = bytearray((tmp_path / "flipped.zip").read_bytes())
    content[60:70] = b"\xff" * 10
    (tmp_path / "flipped.zip").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "locked.zip", "w") as archive:
        archive.writestr("a.bin", noise)
    locked = bytearray((tmp_path / "locked.zip").read_bytes())
    for header in (b"PK\x03\x04", b"PK\x01\x02"):
        locked[locked.index(header) + (6 if header[2] == 3 else 8)] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    tar(tmp_path / "long.tgz", ("x" * 300, b"x"))
    for name in ("flipped.zip", "locked.zip", "long.tgz"):
        with pytest.raises(DataError, match=f"{name}: an archive must be complete and readable"):
            unpack(tmp_path / name, tmp_path / "inside")
        assert list((tmp_path / "inside").iterdir()) == []
