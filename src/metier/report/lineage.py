"""The picture of a run: a box for each step, an arrow for each input, drawn from top to bottom.

Layers by longest path; arrows of one box that pass a layer share a place there, so that they do not run through boxes;
three sweeps by the mean position of the neighbours undo most crossings (Sugiyama's method, small). Deterministic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from metier.report.plots import text
from metier.report.wording import cut

WIDTH, HEIGHT, GAP_X, GAP_Y, LANE, GAP_LANES = 168, 46, 18, 40, 14, 4
EDGE = 2
"""Margin of the picture in px."""
FITS = 1280
"""Up to that width a picture is made smaller to fit the page; wider ones can be scrolled."""


@dataclass(frozen=True)
class Box:
    """A step, or a model from outside.

    parents: the boxes that it reads. role: its colour, or empty. shown: a shorter name for it.
    """

    name: str
    caption: str
    parents: tuple[str, ...]
    role: str = ""
    outside: bool = False
    shown: str = ""


def picture(boxes: Sequence[Box]) -> Markup:
    """The SVG. Empty where there are no boxes."""
    if not boxes:
        return Markup("")
    known = {box.name for box in boxes}
    parents = {box.name: [p for p in box.parents if p in known] for box in boxes}
    layers, chains = _layers(parents)
    _untangle(layers, chains)
    places, width = _places(layers, chains)
    height = len(layers) * HEIGHT + (len(layers) - 1) * GAP_Y
    parts = ["<title>Steps and what they read</title>"]
    parts += [_arrow([places[node] for node in chain]) for chain in chains]
    parts += [_box(box, *places[box.name]) for box in boxes]
    view = f"{-EDGE} {-EDGE} {width + 2 * EDGE} {height + 2 * EDGE}"
    return Markup(  # noqa: S704
        f'<svg class="lineage{" fits" if width < FITS else ""}" role="img" viewBox="{view}" '
        f'width="{width + 2 * EDGE}" height="{height + 2 * EDGE}">'
        f"{''.join(parts)}</svg>"
    )


def _layers(parents: Mapping[str, list[str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Names by layer, and each arrow as the chain of places that it passes. A passing place has a name with a NUL."""
    depth: dict[str, int] = {}

    def measure(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((measure(p) for p in parents[name]), default=-1)
        return depth[name]

    for name in parents:
        measure(name)
    # A box that reads nothing stands just above what first reads it, not at the top of the page.
    for name, own in parents.items():
        readers = [depth[child] for child, ps in parents.items() if name in ps]
        if not own and readers:
            depth[name] = min(readers) - 1
    layers: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in parents:
        layers[depth[name]].append(name)
    chains = []
    for child, own in parents.items():
        for parent in own:
            passing = [f"{parent}\0{layer}" for layer in range(depth[parent] + 1, depth[child])]
            for layer, name in enumerate(passing, depth[parent] + 1):
                if name not in layers[layer]:
                    layers[layer].append(name)
            chains.append([parent, *passing, child])
    return layers, chains


def _untangle(layers: list[list[str]], chains: list[list[str]]) -> None:
    links = [pair for chain in chains for pair in pairwise(chain)]
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for upper, lower in links:
        above.setdefault(lower, []).append(upper)
        below.setdefault(upper, []).append(lower)
    for sweep in range(6):
        down = sweep % 2 == 0
        neighbours = above if down else below
        for layer, reference in zip(
            layers[1:] if down else layers[-2::-1], layers if down else layers[:0:-1], strict=False
        ):
            at = {name: i / max(1, len(reference) - 1) for i, name in enumerate(reference)}
            own = {name: i / max(1, len(layer) - 1) for i, name in enumerate(layer)}
            means = {
                n: sum(near) / len(near) if (near := [at[m] for m in neighbours.get(n, ()) if m in at]) else own[n]
                for n in layer
            }
            layer.sort(key=means.__getitem__)


def _places(layers: list[list[str]], chains: list[list[str]]) -> tuple[dict[str, tuple[float, float, float]], float]:
    """Name -> (left, top, width) in px; and the width of all.

    Everything is drawn towards the mean place of its neighbours above and below, in order, without overlap.
    """
    near: dict[str, list[str]] = {}
    for chain in chains:
        for upper, lower in pairwise(chain):
            near.setdefault(upper, []).append(lower)
            near.setdefault(lower, []).append(upper)
    middle = {name: 0.0 for layer in layers for name in layer}
    for layer in layers:
        _pack(layer, middle)
    for _ in range(12):
        for layer in (*layers, *layers[::-1]):
            wanted = {n: sum(middle[m] for m in near[n]) / len(near[n]) if n in near else middle[n] for n in layer}
            middle.update(wanted)
            _pack(layer, middle)
    left = min(x - _size(name) / 2 for name, x in middle.items())
    right = max(x + _size(name) / 2 for name, x in middle.items())
    places = {
        name: (round(middle[name] - _size(name) / 2 - left, 1), float(row * (HEIGHT + GAP_Y)), float(_size(name)))
        for row, layer in enumerate(layers)
        for name in layer
    }
    return places, round(right - left, 1)


def _size(name: str) -> int:
    return LANE if "\0" in name else WIDTH


def _pack(layer: Sequence[str], middle: dict[str, float]) -> None:
    """Push the boxes of a layer apart to the right, then move all back by what that shifted them on average."""
    wanted = [middle[name] for name in layer]
    for before, name in pairwise(layer):
        gap = GAP_X if WIDTH in (_size(before), _size(name)) else GAP_LANES
        middle[name] = max(middle[name], middle[before] + (_size(before) + _size(name)) / 2 + gap)
    shift = sum(middle[name] - want for name, want in zip(layer, wanted, strict=True)) / len(layer)
    for name in layer:
        middle[name] -= shift


def _arrow(stops: Sequence[tuple[float, float, float]]) -> str:
    left, top, width = stops[0]
    path = f"M{left + width / 2:g} {top + HEIGHT:g}"
    for i, (left, top, width) in enumerate(stops[1:], 1):
        x, last = left + width / 2, i == len(stops) - 1
        before = stops[i - 1]
        start_x, start_y = before[0] + before[2] / 2, before[1] + HEIGHT
        end_y = top - (7 if last else 0)
        middle = (start_y + end_y) / 2
        path += f"C{start_x:g} {middle:g} {x:g} {middle:g} {x:g} {end_y:g}"
        if not last:
            path += f"V{top + HEIGHT:g}"
    x, y = left + width / 2, top
    return f'<path class="arrow" d="{path}"/><path class="head" d="M{x:g} {y - 1:g}l-4-7h8z"/>'


def _box(box: Box, left: float, top: float, width: float) -> str:
    kind = "box outside" if box.outside else "box"
    middle = left + width / 2
    return (
        f'<g class="{kind} c-{box.role or "none"}"><title>{text(box.name)}: {text(box.caption)}</title>'
        f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{HEIGHT}" rx="{23 if box.outside else 6}"/>'
        f'<text x="{middle:g}" y="{top + 19:g}" class="name">{text(_fit(box.shown or box.name, 20))}</text>'
        f'<text x="{middle:g}" y="{top + 35:g}">{text(_fit(box.caption, 27))}</text></g>'
    )


def _fit(value: str, limit: int) -> str:
    return value if len(value) <= limit else cut(value, limit - 1).split(" … (")[0] + "…"
