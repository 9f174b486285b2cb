"""Pages as texts: HTML without its tags, Markdown without the settings at its head.

HTML: what a reader sees, in order, paragraphs parted by a blank line. Left out are scripts, styles, navigation, forms
and what the page hides; where it marks its main part (`<main>`, or one `<article>`), only that is taken. The text is
decoded as UTF-8, or as the page itself declares.
"""

import codecs
import re
from pathlib import Path
from typing import TYPE_CHECKING

from metier.core.errors import MissingExtra
from metier.data.files import LONGEST, Note, opened, read_text, refuse

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_DECLARED = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]{1,40})""", re.IGNORECASE)
_LOOKED_AT = 1024  # bytes in which a page has to declare its encoding
# fmt: off
_UNSEEN = {
    "script", "style", "noscript", "template", "svg", "math", "head", "nav", "footer", "aside", "form", "button",
    "select", "iframe", "object", "canvas", "audio", "video", "dialog",
}
_PARAGRAPHS = {
    "address", "article", "blockquote", "body", "details", "div", "dl", "fieldset", "figure", "h1", "h2", "h3", "h4",
    "h5", "h6", "header", "hr", "main", "ol", "p", "pre", "section", "summary", "table", "ul",
}
_LINES = {"caption", "dd", "dt", "figcaption", "li", "tr"}
# fmt: on
_SPACES = re.compile(r"[ \t\r\n\f\xa0]+")
_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?\n)?(---|\.\.\.)[ \t]*(\n|$)", re.DOTALL)


def html_text(path: Path, note: Note, *, keep_going: bool = False) -> tuple[str, str]:
    """A page's text and its title ("" where it has none). Raises DataError."""
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        raise MissingExtra("selectolax", "formats", needed_by="an HTML file") from None
    page = LexborHTMLParser(_decoded(path, note, keep_going))
    head = page.css_first("title")
    title = _SPACES.sub(" ", head.text()).strip() if head else ""
    root = _main_part(page.css("main"), page.css("article")) or page.body
    return (_written(root) if root else ""), title


def markdown_text(path: Path, note: Note, *, keep_going: bool = False) -> str:
    """A Markdown file as it is written, without the block of settings (YAML between `---`) that may open it."""
    text = read_text(path, note, keep_going=keep_going)
    settings = _FRONT_MATTER.match(text)
    return text[settings.end() :] if settings and ":" in (settings.group(1) or "") else text


def _decoded(path: Path, note: Note, keep_going: bool) -> str:
    with opened(path) as file:
        head = file.read(_LOOKED_AT)
    declared = _DECLARED.search(head)
    name = declared.group(1).decode() if declared else "utf-8"
    try:
        codec = codecs.lookup(name)
    except LookupError:
        refuse(
            path, "the page declares an unknown encoding", line=1, value=name, cure="correct charset=, or save as UTF-8"
        )
    # A page that declares UTF-16 in ASCII letters cannot be UTF-16.
    if codec.name in ("utf-8", "ascii") or codec.name.startswith("utf-16") or not codec._is_text_encoding:
        return read_text(path, note, keep_going=keep_going)
    with opened(path) as file:
        data = file.read(LONGEST + 1)
    if len(data) > LONGEST:
        refuse(path, f"one page of more than {LONGEST // 2**20} MiB", cure="split it into several files")
    try:
        text = codec.decode(data, "strict")[0]
    except UnicodeError as error:
        at = error.start if isinstance(error, UnicodeDecodeError) else 0
        what = f"not {name}, which the page declares: byte offset {at}"
        cure = "correct charset=, or save it as UTF-8"
        refuse(path, what, line=data.count(b"\n", 0, at) + 1, value=data[max(0, at - 20) : at + 20], cure=cure)
    if "\0" in text:
        at = text.index("\0")
        refuse(path, "a NUL character", line=text.count("\n", 0, at) + 1, cure="the file is binary or damaged")
    note(f"{path.name}: read as {codec.name}, which the page declares")
    return text


def _main_part(mains: "list[LexborNode]", articles: "list[LexborNode]") -> "LexborNode | None":
    if mains:
        return mains[0]
    return articles[0] if len(articles) == 1 else None


def _written(root: "LexborNode") -> str:
    """What a reader sees, in reading order. No recursion: pages nest without end."""
    out = _Writer()
    node, depth = root, 0
    while True:
        tag = str(node.tag)
        if tag == "-text":
            out.text(node.text_content or "")
        elif tag not in _UNSEEN and "hidden" not in node.attributes:
            out.enter(tag)
            if node.child is not None:
                node, depth = node.child, depth + 1
                continue
            out.leave(tag)
        while depth and node.next is None:
            assert node.parent is not None  # below the root there is one
            node, depth = node.parent, depth - 1
            out.leave(str(node.tag))
        if not depth or node.next is None:
            return "".join(out.parts).strip()
        node = node.next


class _Writer:
    """Puts texts together. What parts two of them is known only when the second comes, and the widest gap counts."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._gap = 0  # line breaks owed
        self._mark = ""  # what a list's item starts with, owed to its first text
        self._cells = 0  # ends of table cells owed
        self._verbatim = 0  # open <pre>

    def enter(self, tag: str) -> None:
        """An element opens."""
        if tag == "br":
            self._gap = min(2, self._gap + 1)
        self._part(tag)
        if tag == "li":
            self._mark = "- "
        if tag == "pre":
            self._verbatim += 1

    def leave(self, tag: str) -> None:
        """An element closes."""
        self._part(tag)
        if tag == "li":
            self._mark = ""
        if tag in ("td", "th"):
            self._cells += 1
        if tag == "pre":
            self._verbatim -= 1

    def text(self, text: str) -> None:
        """Text of an element, its white space as one space outside of <pre>."""
        if not self._verbatim:
            text = _SPACES.sub(" ", text)
            if self._gap or self._cells or not self.parts or self.parts[-1].endswith((" ", "\n")):
                text = text.lstrip(" ")
        if not text.strip() and (self._gap or not text):
            return
        if self._gap and self.parts:
            self.parts[-1] = self.parts[-1].rstrip()
            self.parts.append("\n" * self._gap)
        elif self._cells:
            self.parts[-1:] = [self.parts[-1].rstrip(), " | " * self._cells] if self.parts else []
        self.parts += [self._mark, text]
        self._gap, self._mark, self._cells = 0, "", 0

    def _part(self, tag: str) -> None:
        self._gap = max(self._gap, 2 if tag in _PARAGRAPHS else 1 if tag in _LINES else 0)
