"""PDF as text, by pypdf, in reading order as far as the file tells it.

Text is what the file stores as such: nothing is recognised in pictures. Refuses files that are locked, damaged or hold
no text at all, naming the page; single pages without text are noted. Costs about 20 ms a page.
"""

import logging
from pathlib import Path

from metier.core.errors import MissingExtra
from metier.data.files import Note, Problem, Problems, first_line, opened, refuse, unified

_SCANNED = "it is probably scanned: recognise its text first, such as with ocrmypdf"


def pdf_text(path: Path, problems: Problems, note: Note) -> str:
    """The text of all pages, parted by blank lines. Raises DataError."""
    pages = _pages(path, problems)
    problems.stop()
    if not pages:
        refuse(path, "the PDF has no page", cure="remove it from the source's path")
    empty = [number for number, text in enumerate(pages, 1) if not text]
    if len(empty) == len(pages):
        last = f" to {len(pages)}" if len(pages) > 1 else ""
        refuse(path, "the PDF holds no text", line=f"page 1{last}", cure=_SCANNED)
    if empty:
        note(f"{path.name}: no text on {len(empty)} of {len(pages)} pages ({_listed(empty)}); {_SCANNED}")
    return "\n\n".join(text for text in pages if text)


def _pages(path: Path, problems: Problems) -> list[str]:
    """The text of each page, up to the first that is damaged, which goes to `problems`."""
    try:
        import pypdf
    except ImportError:
        raise MissingExtra("pypdf", "pdf", needed_by="a PDF file") from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells at length what we tell once
    pages: list[str] = []
    with opened(path) as file:
        if not file.read(1):
            refuse(path, "the file is empty", cure="remove it from the source's path, or fill it")
        try:
            book = pypdf.PdfReader(file)
            if book.is_encrypted and not book.decrypt(""):
                cure = "save a copy without one, such as with qpdf --decrypt"
                refuse(path, "the PDF is locked by a password", cure=cure)
            pages.extend(_clean(page.extract_text()) for page in book.pages)
        except (pypdf.errors.PyPdfError, *_PARSING) as error:
            cure = "open and save it again with another program; it is cut off or damaged"
            what = f"the file cannot be read as PDF: {first_line(error)}"
            problems.add(Problem(what, len(pages) + 1, cure=cure, unit="page"))
    return pages


# pypdf follows the file's own structure and lets through whatever goes wrong on the way there.
_PARSING = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    MemoryError,
)


def _clean(text: str) -> str:
    """Without NULs and halves of surrogate pairs, which fonts without a proper table give."""
    return unified(text).replace("\0", "").encode("utf-8", "ignore").decode().strip()


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return f"{shown}, ..." if len(numbers) > 10 else shown
