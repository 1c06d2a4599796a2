"""EPUB files for tests, put together by hand: the smallest that readers open."""

import io
import zipfile

CONTAINER = """<?xml version="1.0"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<rootfiles><rootfile full-path="OEBPS/content.opf"
 media-type="application/oebps-package+xml"/></rootfiles></container>"""
XHTML = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN" "http://www.w3.org/TR/xhtml11/DTD/xhtml11.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops">
<head><title>Not spoken</title><style>p { color: red }</style></head><body>{body}</body></html>"""
METADATA = """<dc:title>Tales of <i>Old</i></dc:title><dc:language>en-GB</dc:language>
<dc:creator id="a">Anna Abel</dc:creator><dc:creator id="b">Bob Bell</dc:creator>
<dc:creator id="c">Cy the Painter</dc:creator>
<meta refines="#c" property="role">ill</meta>"""

Files = dict[str, str | bytes]


def page(body: str) -> str:
    return XHTML.replace("{body}", body)


def opf(
    items: str, spine: str, metadata: str = METADATA, rest: str = "", version: str = "3.0"
) -> str:
    return f"""<?xml version="1.0" encoding="utf-8"?>
<package xmlns="http://www.idpf.org/2007/opf" xmlns:opf="http://www.idpf.org/2007/opf"
 version="{version}" unique-identifier="id">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">{metadata}</metadata>
<manifest>{items}</manifest>{spine}{rest}</package>"""


def item(name: str, href: str, more: str = "", kind: str = "application/xhtml+xml") -> str:
    return f'<item id="{name}" href="{href}" media-type="{kind}" {more}/>'


def spine(*names: str, more: str = "") -> str:
    order = "".join(f'<itemref idref="{name}"/>' for name in names)
    return f"<spine {more}>{order}</spine>"


def packed(files: Files, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A ZIP archive of these files, the first of them as EPUB wants it."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as archive:
        archive.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def epub3() -> Files:
    """With a navigation document; two chapters in one file, a cover, notes, a table, ruby."""
    items = (
        item("nav", "nav.xhtml", 'properties="nav"')
        + item("cover", "text/cover.xhtml")
        + item("one", "text/one%20and%20two.xhtml")
        + item("three", "text/three.xhtml")
        + item("ads", "text/ads.xhtml")
        + item("pic", "pic.png", 'properties="cover-image"', "image/png")
    )
    order = spine("cover", "nav", "one", "three").replace(
        "</spine>", '<itemref idref="ads" linear="no"/></spine>'
    )
    nav = """<nav epub:type="toc"><h1>Contents</h1><ol>
<li><a href="text/cover.xhtml">Cover</a></li>
<li><a href="text/one%20and%20two.xhtml">1. The <b>Fox</b></a><ol>
<li><a href="text/one%20and%20two.xhtml#two">2. The Crow</a></li></ol></li>
<li><a href="text/three.xhtml">The End &amp; After</a></li></ol></nav>
<nav epub:type="landmarks"><ol><li>
<a epub:type="cover" href="text/cover.xhtml">Cover</a></li></ol></nav>
<nav epub:type="page-list"><ol><li><a href="text/three.xhtml#p9">9</a></li></ol></nav>"""
    one = """<section><h2>1.</h2><h2>The Fox</h2>
<p>A fox&nbsp;lived <em>he</em>re<a epub:type="noteref" href="#n1">1</a>.<br/>It was red&hellip;</p>
<aside epub:type="footnote" id="n1"><p>A note nobody hears.</p></aside>
<p hidden="hidden">Hidden one.</p><p style="color: red; DISPLAY : none">Hidden two.</p>
<span epub:type="pagebreak" id="p2">2</span><script>var spoken = 1 &lt; 2;</script>
<p># This is no title.</p></section>
<h2 id="two">The Crow</h2><p>So did a <ruby>crow<rp>(</rp><rt>bird</rt><rp>)</rp></ruby>.</p>
<table><tr><th>Name</th><th>Age</th></tr><tr><td><p>Fox</p></td><td>3</td></tr></table>
<ol><li>First thing</li><li>Second thing</li></ol>"""
    return {
        "META-INF/container.xml": CONTAINER,
        "OEBPS/content.opf": opf(items, order),
        "OEBPS/nav.xhtml": page(nav),
        "OEBPS/text/cover.xhtml": page('<section><img src="../pic.png" alt="A cover"/></section>'),
        "OEBPS/text/one and two.xhtml": page(one),
        "OEBPS/text/three.xhtml": page("<p>They left.</p><div>Some text<p>and more</p>tail</div>"),
        "OEBPS/text/ads.xhtml": page("<p>Buy more books.</p>"),
        "OEBPS/pic.png": b"\x89PNG",
    }


TEXT_OF_3 = [
    "# 1. The Fox",
    "A fox lived here. It was red…",
    " # This is no title.",
    "# 2. The Crow",
    "So did a crow.",
    "Name, Age",
    "Fox, 3",
    "First thing",
    "Second thing",
    "# The End & After",
    "They left.",
    "Some text",
    "and more",
    "tail",
]


def epub2() -> Files:
    """With an NCX, a guide, and pages that the table of contents does not list."""
    items = (
        item("ncx", "toc.ncx", kind="application/x-dtbncx+xml")
        + item("front", "front.html")
        + item("list", "list.html")
        + item("a", "a.html")
        + item("b", "b.html")
        + item("c", "c.html")
    )
    guide = """<guide><reference type="cover" href="front.html"/>
<reference type="toc" href="list.html"/></guide>"""
    ncx = """<?xml version="1.0"?><!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN"
 "http://www.daisy.org/z3986/2005/ncx-2005-1.dtd">
<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/" version="2005-1"><navMap>
<navPoint id="n1" playOrder="1"><navLabel><text>The
 Mill</text></navLabel><content src="a.html"/></navPoint></navMap></ncx>"""
    metadata = """<dc:title>The Mill</dc:title><dc:language>en</dc:language>
<dc:creator opf:role="aut">Ada Mill</dc:creator><dc:creator opf:role="trl">Tom</dc:creator>"""
    links = '<h1>Contents</h1><p><a href="a.html">The Mill</a></p><p><a href="b.html">More</a></p>'
    return {
        "META-INF/container.xml": CONTAINER,
        "OEBPS/content.opf": opf(
            items, spine("front", "list", "a", "b", "c", more='toc="ncx"'), metadata, guide, "2.0"
        ),
        "OEBPS/toc.ncx": ncx,
        "OEBPS/front.html": page('<div>The Mill<img src="x.png" alt=""/></div>'),
        "OEBPS/list.html": page(links),
        "OEBPS/a.html": page("<h1>The Mill</h1><p>It stood by the water.</p>"),
        "OEBPS/b.html": page("<p>It turned all day.</p>"),
        "OEBPS/c.html": page("<div><h3>The Miller</h3></div><p>He slept.</p>"),
    }


TEXT_OF_2 = [
    "# The Mill",
    "It stood by the water.",
    "It turned all day.",
    "# The Miller",
    "He slept.",
]
