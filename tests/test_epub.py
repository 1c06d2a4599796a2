"""An EPUB becomes a text with chapters; one that cannot says what is wrong with it."""

import io
import random
import time
import zipfile

import pytest

from app import archive
from app.archive import UnreadableBook
from app.charsets import Undecodable, decode
from app.epub import read_epub
from app.xhtml import Allowance, read_page
from tests.ebooks import (
    CONTAINER,
    TEXT_OF_2,
    TEXT_OF_3,
    Files,
    epub2,
    epub3,
    item,
    opf,
    packed,
    page,
    spine,
)

MOST = 100_000


def lines(files: Files) -> list[str]:
    return read_epub(packed(files), MOST).text.split("\n\n")


def one(body: str, **more: str | bytes) -> Files:
    """A book of one document."""
    package = opf(item("a", "a.xhtml"), spine("a"))
    return {
        "META-INF/container.xml": CONTAINER,
        "OEBPS/content.opf": package,
        "OEBPS/a.xhtml": page(body),
        **more,
    }


def test_an_epub_3_is_read_with_the_titles_of_its_navigation() -> None:
    book = read_epub(packed(epub3()), MOST)
    assert book.text.split("\n\n") == TEXT_OF_3
    assert (book.title, book.author) == ("Tales of Old", "Anna Abel, Bob Bell")
    assert book.language == "en-GB"


def test_an_epub_2_is_read_with_the_titles_of_its_ncx_and_headings() -> None:
    book = read_epub(packed(epub2()), MOST)
    assert book.text.split("\n\n") == TEXT_OF_2
    assert (book.title, book.author, book.language) == ("The Mill", "Ada Mill", "en")


def test_without_a_table_of_contents_headings_are_titles_or_there_are_none() -> None:
    assert lines(one("<p>Before.</p><h2>A <br/>Title</h2><p>After.</p><h3>Part</h3>")) == [
        "Before.",
        "# A Title",
        "After.",
        "Part",
    ]
    assert lines(one("<p>Only this.</p>")) == ["Only this."]
    assert lines(one("<h1>***</h1><p>Only this.</p>")) == ["***", "Only this."]


def test_a_table_of_contents_that_points_nowhere_is_forgiven() -> None:
    files = epub3()
    nav = str(files["OEBPS/nav.xhtml"]).replace("#two", "#gone")
    assert "# 2. The Crow" in lines(files | {"OEBPS/nav.xhtml": nav})
    assert "# The Fox" not in lines(files | {"OEBPS/nav.xhtml": page("<nav/>")})
    assert "# The Crow" not in lines(files | {"OEBPS/nav.xhtml": page("<nav/>")})


def test_a_guide_that_calls_the_first_chapter_a_table_loses_no_text() -> None:
    """As books of Project Gutenberg do, whose first file holds both."""
    files = epub2()
    files["OEBPS/list.html"] = page('<p><a href="a.html">The Mill</a></p>' + "<p>A text.</p>" * 9)
    assert lines(files)[:3] == ["The Mill", "A text.", "A text."]


@pytest.mark.parametrize(
    ("body", "spoken"),
    [
        ("<p>caf&eacute; &lt;b&gt; &amp; &bogus; &#8364;&#x41;</p>", ["café <b> & &bogus; €A"]),
        ("<p>one<wbr/>two <b>th</b>ree</p>", ["onetwo three"]),
        ("<p>a</p>b<hr/>c<div>d<div>e</div></div>", ["a", "b", "c", "d", "e"]),
        ("<dl><dt>Term</dt><dd>What it is</dd></dl>", ["Term", "What it is"]),
        ("<pre>one\n  two</pre>", ["one two"]),
        ("<p>x <svg><text>no</text></svg><math alttext='x squared'><mi>x</mi></math></p>",
         ["x x squared"]),
        ("<p><span role='doc-noteref'>3</span>Yes<i aria-hidden='true'>no</i></p>", ["Yes"]),
        ("<p>a<![CDATA[ & <b>]]></p><!-- <p>no</p> -->", ["a & <b>"]),
        ("<table><caption>Cap</caption><tr><td>A:</td><td/><td>b</td></tr></table>",
         ["Cap", "A: b"]),
    ],
)  # fmt: skip
def test_xhtml_becomes_what_is_read_aloud(body: str, spoken: list[str]) -> None:
    found = read_page(page(body).encode(), "a.xhtml", Allowance())
    assert [block.text for block in found.blocks] == spoken


def test_documents_may_be_in_other_encodings() -> None:
    text = page("<p>Übergröße</p>").replace("utf-8", "iso-8859-1")
    found = read_page(text.encode("latin-1"), "a.xhtml", Allowance())
    assert found.blocks[0].text == "Übergröße"
    found = read_page(page("<p>Übergröße</p>").encode("utf-16"), "a.xhtml", Allowance())
    assert found.blocks[0].text == "Übergröße"


@pytest.mark.parametrize(
    ("data", "charset", "text"),
    [
        ("é".encode("utf-8-sig"), "", "é"),
        ("é".encode("utf-16"), "", "é"),
        ("é".encode("cp1252"), "windows-1252", "é"),
        ("é".encode("utf-8-sig"), "latin-1", "é"),
        ("한".encode("cp949"), "ks_c_5601-1987", "한"),
    ],
)
def test_texts_are_decoded(data: bytes, charset: str, text: str) -> None:
    assert decode(data, charset) == text


@pytest.mark.parametrize(
    ("data", "charset", "says"),
    [
        (b"ab\xff", "", "byte 2 is not UTF-8"),
        (b"a", "klingon", "'klingon' is not known"),
        (b"a", "idna", "'idna' is not known"),
        (b"a", "rot13", "'rot13' is not known"),
        (b"a", "a\0b", "is not known"),
    ],
)
def test_texts_in_no_known_character_set_are_refused(data: bytes, charset: str, says: str) -> None:
    with pytest.raises(Undecodable, match=says):
        decode(data, charset)


ENCRYPTED = """<encryption xmlns:enc="http://www.w3.org/2001/04/xmlenc#"><enc:EncryptedData>
<enc:EncryptionMethod Algorithm="{way}"/><enc:CipherData>
<enc:CipherReference URI="{uri}"/></enc:CipherData></enc:EncryptedData></encryption>"""
AES = "http://www.w3.org/2001/04/xmlenc#aes128-cbc"
BOMB = '<!DOCTYPE html [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
LEAK = '<!DOCTYPE html [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
DOCTYPE = page("").split("\n")[1]
PLAIN = "<p>Some words.</p>"


def encrypted(way: str, uri: str) -> Files:
    return {"META-INF/encryption.xml": ENCRYPTED.format(way=way, uri=uri)}


def with_doctype(doctype: str, body: str) -> Files:
    files = one(PLAIN)
    files["OEBPS/a.xhtml"] = page(body).replace(DOCTYPE, doctype)
    return files


def renamed(before: str, after: str) -> Files:
    files = one(PLAIN)
    files["OEBPS/content.opf"] = str(files["OEBPS/content.opf"]).replace(before, after)
    return files


def without(name: str) -> Files:
    files = one(PLAIN)
    del files[name]
    return files


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (without("META-INF/container.xml"), "no EPUB: there is no META-INF/container.xml"),
        (without("OEBPS/content.opf"), "names OEBPS/content.opf, which is not in it"),
        (without("OEBPS/a.xhtml"), "names OEBPS/a.xhtml, which is not in it"),
        (one(PLAIN) | {"META-INF/container.xml": "<container/>"}, "names no package document"),
        (one(PLAIN) | {"META-INF/container.xml": "<container"}, "container.xml: it is not well-f"),
        (one(PLAIN) | {"OEBPS/content.opf": opf("", "<spine/>")}, "the spine in OEBPS/content.opf"),
        (renamed('idref="a"', 'idref="z"'), "names z in its spine and nowhere else"),
        (renamed("a.xhtml", "../../etc/passwd"), "etc/passwd, which would be outside"),
        (renamed("a.xhtml", "%2e%2e/%2e%2e/x"), "which would be outside"),
        (renamed("a.xhtml", "/etc/passwd"), "/etc/passwd, which would be outside"),
        (renamed("a.xhtml", "http://example.com/a"), "no text that could be spoken"),
        (one(""), "no text that could be spoken"),
        (one("<p>***</p><img src='x'/>"), "no text that could be spoken"),
        (one("<p>Open"), "OEBPS/a.xhtml: it is not well-formed XML .mismatched tag: line 4"),
        (one("<b>" * 300 + "deep" + "</b>" * 300), "more than 200 deep"),
        (one("<p>ab\x01c</p>"), "not well-formed XML"),
        (one(PLAIN) | {"OEBPS/a.xhtml": b"<p>\xff</p>"}, "byte 3 is not UTF-8"),
        (with_doctype(BOMB, "<p>&b;&b;</p>"), "defines entities"),
        (with_doctype(LEAK, "<p>&a;</p>"), "defines entities"),
        (one(PLAIN, **{"META-INF/rights.xml": "<r/>"}), r"protected by DRM \(META-INF/rights.xml"),
        (one(PLAIN, **encrypted(AES, "OEBPS/a.xhtml")), "protected by DRM: its text is encrypted"),
        (one("<p>" + "word " * 30_000 + "</p>"), "more than 100000 characters of text"),
    ],
)  # fmt: skip
def test_a_book_that_cannot_be_read_says_why(files: Files, says: str) -> None:
    with pytest.raises(UnreadableBook, match=says):
        read_epub(packed(files), MOST)


def test_scrambled_fonts_do_no_harm() -> None:
    fonts = encrypted("http://www.idpf.org/2008/embedding", "OEBPS/font.otf")
    assert lines(one(PLAIN, **fonts)) == ["Some words."]


def test_what_unpacks_to_too_much_is_refused_before_it_is_unpacked() -> None:
    bomb = one("x", **{"OEBPS/a.xhtml": bytes(archive.MAX_MEMBER_BYTES + 1)})
    data = packed(bomb)
    assert len(data) < 50_000
    with pytest.raises(UnreadableBook, match="bytes; at most 8000000 are read"):
        read_epub(data, MOST)
    # Each within its limit, all together not.
    names = [f"p{number}" for number in range(6)]
    files = one(PLAIN)
    files["OEBPS/content.opf"] = opf("".join(item(n, n) for n in names), spine(*names))
    files |= {f"OEBPS/{n}": page("<!--" + " " * 7_000_000 + "-->") for n in names}
    with pytest.raises(UnreadableBook, match="more than 32000000 bytes of text and markup"):
        read_epub(packed(files), MOST)


def test_a_member_that_lies_about_its_size_is_broken() -> None:
    data = packed(one("<p>" + "word " * 10_000 + "</p>"))
    size = zipfile.ZipFile(io.BytesIO(data)).getinfo("OEBPS/a.xhtml").file_size
    lie = data.replace(size.to_bytes(4, "little"), (100).to_bytes(4, "little"))
    with pytest.raises(UnreadableBook, match="is broken at OEBPS/a.xhtml"):
        read_epub(lie, MOST)


def test_too_many_members_are_refused_before_they_are_listed() -> None:
    files = one(PLAIN) | {f"x{number}": "" for number in range(archive.MAX_MEMBERS)}
    with pytest.raises(UnreadableBook, match="more than 5000 files"):
        read_epub(packed(files), MOST)


def test_a_password_is_named() -> None:
    data = bytearray(packed(one(PLAIN)))
    for at in (i for i in range(len(data)) if data[i : i + 4] == archive.ENTRY):
        data[at + 8] |= 1
    with pytest.raises(UnreadableBook, match="is encrypted with a password"):
        read_epub(bytes(data), MOST)


def test_other_ways_of_packing_are_named() -> None:
    with pytest.raises(UnreadableBook, match="in a way that EPUB does not know"):
        read_epub(packed(one(PLAIN), zipfile.ZIP_BZIP2), MOST)


@pytest.mark.parametrize(
    "body",
    [
        "<p>" + "&" * 500_000 + "</p>",
        "<p>" + "&amp" * 200_000 + "</p>",
        "<a " * 200_000,
        "<!--" * 200_000,
        "<p " + " ".join(f"a{n}='{n}'" for n in range(50_000)) + "/>",
        "<p/>" * 200_000,
        "\n" * 7_000_000,
        "&#10;" * 1_500_000,
        "<p id='a'/>" * 100_000,
        "<h1>a</h1>" * 50_000,
        "<td>" * 150 + "a " * 200_000 + "</td>" * 150,
        "<tr>" + "<td>a</td>" * 20_000 + "</tr>",
    ],
    ids=lambda body: body[:12],
)
def test_no_document_takes_long(body: str) -> None:
    began = time.process_time()
    try:
        read_epub(packed(one(body)), 10_000_000)
    except UnreadableBook:
        pass
    assert time.process_time() - began < 10


def test_elements_are_counted_over_all_documents_of_a_book() -> None:
    names = ["a", "b"]
    files = one(PLAIN)
    files["OEBPS/content.opf"] = opf("".join(item(n, n) for n in names), spine(*names))
    files |= {f"OEBPS/{n}": page(PLAIN + "<p/>" * 255_000) for n in names}
    with pytest.raises(UnreadableBook, match="more than 500000 elements"):
        read_epub(packed(files), MOST)


def test_a_broken_archive_is_a_book_or_says_why() -> None:
    """Whatever is flipped, cut out or cut off: never anything but these two ends."""
    chance, books = random.Random(7), [packed(epub3()), packed(epub2())]
    refused = 0
    for _ in range(1500):
        data = bytearray(chance.choice(books))
        for _ in range(chance.choice((0, 1, 1, 3, 20))):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        elif chance.random() < 0.2:
            start = chance.randrange(len(data))
            del data[start : start + chance.randrange(200)]
        try:
            assert read_epub(bytes(data), MOST).text
        except UnreadableBook:
            refused += 1
    assert 300 < refused < 1500
