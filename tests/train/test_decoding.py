"""Bytes are read as the text that they are, or refused with what to do."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rill.train.errors import CorpusError
from rill.train.text.decoding import decode

ENGLISH = "Naïve cafés, one line\nand another — with a dash\n" * 5
CHINESE = "三国演义第一回\n滚滚长江东逝水 浪花淘尽英雄\n" * 20
RUSSIAN = "Все счастливые семьи похожи друг на друга.\n" * 20


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r\ufeff")))
def test_every_utf_with_a_byte_order_mark_is_read(text: str) -> None:
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert decode(text.encode(encoding), "x", ("cp1252",)) == text
    assert decode(b"\xfe\xff" + text.encode("utf-16-be"), "x") == text
    assert decode(gzip.compress(text.encode()), "x") == text


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, RUSSIAN])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_an_utf_without_a_mark_is_guessed_and_read_where_it_is_given(text: str, encoding: str) -> None:
    with pytest.raises(CorpusError, match=f"looks like {encoding.upper()} without a .* give --encoding {encoding}$"):
        decode(text.encode(encoding), "x")
    assert decode(text.encode(encoding), "x", (encoding,)) == text


@pytest.mark.parametrize(
    ("data", "cure"),
    [
        (ENGLISH.replace("ï", "i").replace("—", "-").encode("latin-1"), "give --encoding cp1252, or utf-8,cp1252 if"),
        ("ünï".encode("cp1252"), "if it is Windows-1252 (Western European), give --encoding cp1252"),
        (CHINESE.encode("gb18030"), "give --encoding NAME, such as gb18030, big5"),
        (RUSSIAN.encode("cp1251"), "shift_jis, euc_kr, cp1251 or koi8-r"),
        (RUSSIAN.encode("koi8-r"), "cp1251 or koi8-r"),
        ("Gr\u00fc\u00dfe f\u00fcr alle".encode("cp850"), "give --encoding NAME, such as cp850"),
        (ENGLISH.encode() + b"\xe9 \n" + ENGLISH.encode(), "most of it is UTF-8, so it is damaged or mixed: `iconv -c"),
        (CHINESE.encode()[:-2], "it ends within a character: the file is cut off"),
    ],
)
def test_text_that_is_not_utf_8_names_the_cure(data: bytes, cure: str) -> None:
    with pytest.raises(CorpusError, match=r"^x is not UTF-8: byte 0x[0-9a-f]{2} at offset \d+ \(") as error:
        decode(data, "x")
    assert cure in str(error.value)


def test_other_encodings_are_read_where_they_are_given() -> None:
    for text, encoding in ((CHINESE, "gb18030"), (RUSSIAN, "cp1251"), (ENGLISH, "cp1252")):
        assert decode(text.encode(encoding), "x", (encoding,)) == text
        assert decode(text.encode(encoding), "x", ("utf-8", encoding)) == text
        assert decode(text.encode(), "x", ("utf-8", encoding)) == text
    with pytest.raises(
        CorpusError, match=r"x is not UTF-8: byte 0x81 at .* and not cp1252: byte 0x81 at offset 0 \(ch"
    ):
        decode(b"\x81", "x", ("utf-8", "cp1252"))
    with pytest.raises(CorpusError, match="x is not UTF-16-LE: byte 0x63 at offset 2"):
        decode(b"abc", "x", ("utf-16-le",))
    with pytest.raises(CorpusError, match=r"x is not unicode_escape: .*surrogates not allowed"):
        decode(rb"\ud800", "x", ("unicode_escape",))
    with pytest.raises(CorpusError, match=r"is not UTF-16-LE: .* although its byte order mark says so; it is damaged"):
        decode(b"\xff\xfe\x00\xd8", "x")


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("a.txt", "text")
    else:
        with tarfile.open(fileobj=file, mode=kind) as packed:  # type: ignore[call-overload]
            packed.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (archive("zip"), r"x is a ZIP archive, as \.docx.* are, too; .*: unzip -p FILE \| rill train --corpus -"),
        (archive("w"), r"x is a tar archive; unpack it, or pipe the text: tar -xOf FILE \|"),
        (archive("w:gz"), r"x is a tar archive"),
        (bz2.compress(b"text"), r"x is compressed by bzip2; .*: bzcat FILE"),
        (lzma.compress(b"text"), r"x is compressed by xz; .*: xzcat FILE"),
        (b"\x28\xb5\x2f\xfd...", r"x is compressed by Zstandard"),
        (b"7z\xbc\xaf\x27\x1c\0\4", r"x is a 7-Zip archive"),
        (b"%PDF-1.7\n%\xb5", r"x is a PDF document; save it as plain text"),
        (b"\x89PNG\r\n\x1a\n\0", r"x is a PNG image"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            r"a pointer of Git LFS, not the text itself; run",
        ),
        (gzip.compress(gzip.compress(b"text")), r"x is compressed twice"),
        (gzip.compress(b"text" * 99)[:-9], r"x is a damaged gzip file: Compressed file ended"),
        (gzip.compress(b"te\0xt" * 5), r"x is not text: it has a NUL byte at offset 2"),
        (b"\0a", r"x looks like UTF-16-BE"),
        (ENGLISH.encode() + b"a stray \0 among text", r"x is not text: it has a NUL byte at offset"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",  # packed data have the time in them
)
def test_what_is_packed_is_refused_with_the_way(data: bytes, complaint: str) -> None:
    with pytest.raises(CorpusError, match=complaint):
        decode(data, "x")


def test_what_unpacks_to_more_than_the_limit_is_refused() -> None:
    assert len(decode(gzip.compress(b"x" * 1000), "x", limit=1000)) == 1000
    with pytest.raises(CorpusError, match="x, unpacked, has more than 999 bytes"):
        decode(gzip.compress(b"x" * 1000), "x", limit=999)
