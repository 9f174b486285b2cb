"""The docs as a site: it builds strictly, fetches nothing, has a page for each stage; the commands in it parse."""

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from tools.pages import DOCS, clusters, decisions, hardware, pages

import metier
from metier import api
from metier.cli import app
from metier.stages import STAGES

ROOT = DOCS.parent
COMMANDS = typer.main.get_command(app)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
LEAST_COMMANDS = 60
"""Fewer found means that the search for them broke."""


class Fetched(HTMLParser):
    """What a browser would fetch of itself to show a page: not what a link leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "link" and found.get("rel") != "canonical":
            self.addresses.append(found.get("href") or "")
        elif tag in ("script", "img", "iframe", "source", "video", "audio", "object", "embed"):
            self.addresses.append(found.get("src") or found.get("data") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_no_page_of_the_site_fetches_from_outside(site: Path):
    built = sorted(site.rglob("*.html"))
    assert len(built) >= len(list(DOCS.rglob("*.md")))
    fetched = 0
    for path in built:
        parser = Fetched()
        parser.feed(path.read_text(encoding="utf-8"))
        fetched += len(parser.addresses)
        outside = [address for address in parser.addresses if re.match(r"(?:[a-z]+:)?//", address)]
        assert outside == [], path.name
    assert fetched > len(built)
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", path.read_text(encoding="utf-8")), path.name


def test_the_pages_that_are_made_are_as_the_program_is():
    made = {**pages(), "hardware.md": hardware(), "scale.md": clusters(), "design.md": decisions()}
    assert {f"stages/{kind}.md" for kind in STAGES} <= made.keys()
    stale = [name for name, text in made.items() if (DOCS / name).read_text(encoding="utf-8") != text]
    assert stale == [], "run `python -m tools.pages`"
    assert {path.name for path in (DOCS / "stages").iterdir()} == {Path(name).name for name in pages() if "/" in name}


def test_the_navigation_has_every_stage():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"stages/(\w+)\.md", text)) == {*STAGES, "index"}


def _without_fences(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def blocks(text: str) -> Iterator[str]:
    """Whole command lines: those in fences, and those that are indented."""
    bare = _without_fences(text)
    yield from re.findall(r"^    (metier .*)$", bare, re.MULTILINE)
    for fence in re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        for line in fence.replace("\\\n", " ").splitlines():
            found = re.match(r"(?:\$ )?((?:[A-Z_]+=\S+ )*)(metier .*)", line.strip())
            if found:
                yield found.group(2)


def spans(text: str) -> Iterator[str]:
    """Commands as a sentence names them, often without their arguments."""
    bare = _without_fences(text)
    yield from (" ".join(span.split()) for span in re.findall(r"`(metier(?:\s[^`]+)?)`", bare) if " " in span)


def find(words: list[str]) -> tuple[typer.core.TyperCommand, list[str]]:
    """The command that words name, and its arguments."""
    command, rest = COMMANDS, words
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"no command {rest[0]!r}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def options(command: typer.core.TyperCommand) -> set[str]:
    return {"--help", *(name for one in command.params for name in (*one.opts, *one.secondary_opts))}


def wrong(line: str, *, whole: bool) -> str:
    """What is wrong with a command, or nothing. whole: with all its arguments, as it would be typed."""
    try:
        command, rest = find(shlex.split(line, comments=True)[1:])
        unknown = {word.split("=")[0] for word in rest if word.startswith("-")} - options(command)
        assert not unknown, f"no option {unknown}"
        if whole and "--help" not in rest:
            command.make_context(command.name or "metier", list(rest)).close()
    except Exception as error:  # noqa: BLE001 - whatever it is, the page is wrong
        return f"{line}: {error or type(error).__name__} {getattr(error, 'message', '')}"
    return ""


def test_every_command_in_the_pages_parses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property):
    monkeypatch.chdir(tmp_path)
    checked, faults = 0, []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for whole, lines in ((True, blocks(text)), (False, spans(text))):
            for line in lines:
                checked += 1
                fault = wrong(line, whole=whole)
                faults += [f"{path.relative_to(ROOT)}: {fault}"] if fault else []
    record_property("commands", checked)
    assert faults == []
    assert checked >= LEAST_COMMANDS


@pytest.mark.parametrize(
    ("line", "whole"),
    [
        ("metier rum recipe.yaml", False),
        ("metier run recipe.yaml --quite", False),
        ("metier chat", True),
        ("metier chat m --temperature hot", True),
        ("metier store verfy", False),
    ],
)
def test_a_command_that_is_none_is_seen(line: str, whole: bool):
    assert wrong(line, whole=whole)


def test_the_page_on_python_names_what_there_is():
    text = (DOCS / "python.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(metier|Run|Model)\.(\w+)", text)) - {("metier", "core")}
    assert len(names) >= 11
    for owner, name in names:
        place = metier if owner == "metier" else getattr(api, owner)
        assert hasattr(place, name) or name in getattr(place, "__annotations__", {}), f"{owner}.{name}"
    for name in ("init", "run", "model"):
        (shown,) = re.findall(rf"^\| `metier\.{name}\((.*?)\)` \|", text, re.MULTILINE)
        told = [part.split("=")[0].strip() for part in re.sub(r"\(\)", "", shown).split(",")]
        assert told == list(inspect.signature(getattr(metier, name)).parameters)
