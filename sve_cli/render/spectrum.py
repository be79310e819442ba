"""Where training moved the singular values: heat maps, tables and sentences from `Report.spectrum`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sve_cli.render.curves import Heat
from sve_cli.render.tables import MISSING, Table
from sve_cli.report import Spectrum, SpectrumLayer

MOST_LAYERS = 10


def place(name: str) -> tuple[str, str]:
    """A layer's block and its kind inside the block: `encoder.layer.0.output.dense` -> (`encoder.layer.0`, `output.dense`).

    The last number that a word follows ends the block; without one, all layers stand in one block.
    """
    parts = name.split(".")
    last = next((i for i in range(len(parts) - 1, -1, -1) if not parts[i].isdigit()), 0)
    cut = next((i + 1 for i in range(last - 1, -1, -1) if parts[i].isdigit()), 0)
    return ".".join(parts[:cut]), ".".join(parts[cut:])


def sentences(found: Spectrum) -> list[str]:
    """How far, where, at which ranks, and how far the members agree."""
    moved = _mean(layer.moved for layer in found.layers)
    noise = "" if not found.start else f"; the noise at the start alone would be {_percent(found.start)}"
    lines = [f"On average a singular value moved by {_percent(moved)} of itself{noise}."]
    most = max(found.layers, key=lambda layer: layer.moved)
    least = min(found.layers, key=lambda layer: layer.moved)
    if len(found.layers) > 1:
        lines.append(f"Most in {most.name} ({_percent(most.moved)}), least in {least.name} ({_percent(least.moved)}).")
    ranks = by_rank(found)
    if len(ranks) > 1:
        lines.append(f"The largest {_share(ranks)} of a layer's singular values moved by {_percent(ranks[0])}, the smallest by "
                     f"{_percent(ranks[-1])}.")  # fmt: skip
    cosines = [layer.cosine for layer in found.layers if layer.cosine is not None]
    if cosines:
        lines.append(f"Mean cosine between two members' changes: {_mean(cosines):.2f} (1: the same changes, 0: unrelated ones).")
    return lines


def by_rank(found: Spectrum) -> list[float]:
    """The mean change of each part of the spectrum over the layers that have the usual number of parts."""
    usual = max((len(layer.by_rank) for layer in found.layers), default=0)
    layers = [layer.by_rank for layer in found.layers if len(layer.by_rank) == usual]
    return [_mean(parts) for parts in zip(*layers, strict=True)]


def heat_maps(found: Spectrum) -> list[tuple[str, str, Heat]]:
    """(caption, detail, map): change by layer, change by rank, agreement of the members."""
    if not found.layers:
        return []
    moved = [layer.moved for layer in found.layers]
    by_layer = _by_kind(found, lambda layer: layer.moved, min(moved), max(moved), _percent)
    maps = [("Change by layer", "Mean |Δσ / σ| over members and singular values", by_layer)]
    ranks = _ranks_map(found)
    if ranks is not None:
        maps.append(("Change by rank", "Mean |Δσ / σ| over members and the layers of a block", ranks))
    if any(layer.cosine is not None for layer in found.layers):
        agreement = _by_kind(found, lambda layer: layer.cosine, 0.0, 1.0, lambda value: f"{value:.2f}")
        maps.append(("Agreement of the members", "Mean cosine between two members' Δσ / σ", agreement))
    return maps


def kind_table(found: Spectrum) -> Table:
    """One line a kind of layer."""
    kinds: dict[str, list[SpectrumLayer]] = {}
    for layer in found.layers:
        kinds.setdefault(place(layer.name)[1], []).append(layer)
    rows = []
    for kind, layers in kinds.items():
        cosines = [layer.cosine for layer in layers if layer.cosine is not None]
        agree = f"{_mean(cosines):.2f}" if cosines else MISSING
        rows.append([kind, str(len(layers)), _number(_mean(layer.moved for layer in layers)), agree])
    return Table(["Kind of layer", "Layers", "Mean |Δσ / σ| %", "Cosine of members"], rows, frozenset({1, 2, 3}))


def rank_table(found: Spectrum) -> Table | None:
    """One line a part of the spectrum."""
    ranks = by_rank(found)
    if len(ranks) < 2:
        return None
    rows = [[_rank_name(i, len(ranks)), _number(value)] for i, value in enumerate(ranks)]
    return Table([f"Singular values, in {len(ranks)} parts", "Mean |Δσ / σ| %"], rows, frozenset({1}))


def layer_table(found: Spectrum, most: int | None = None) -> Table:
    """One line a layer, the one that moved most first."""
    rows = [
        [layer.name, f"{layer.values:,}", _number(layer.moved), MISSING if layer.cosine is None else f"{layer.cosine:.2f}"]
        for layer in sorted(found.layers, key=lambda layer: -layer.moved)[:most]
    ]
    return Table(["Layer", "Singular values", "Mean |Δσ / σ| %", "Cosine of members"], rows, frozenset({1, 2, 3}))


def _by_kind(
    found: Spectrum, value: Callable[[SpectrumLayer], float | None], pale: float, full: float, said: Callable[[float], str]
) -> Heat:
    blocks, kinds = _blocks(found), list(dict.fromkeys(place(layer.name)[1] for layer in found.layers))
    cells = {place(layer.name): value(layer) for layer in found.layers}
    values = [[cells.get((block, kind)) for block in blocks] for kind in kinds]
    return _heat(_short(kinds), kinds, blocks, values, pale, full, said)


def _ranks_map(found: Spectrum) -> Heat | None:
    usual = len(by_rank(found))
    if usual < 2:
        return None
    blocks = _blocks(found)
    members: dict[str, list[list[float]]] = {block: [] for block in blocks}
    for layer in found.layers:
        if len(layer.by_rank) == usual:
            members[place(layer.name)[0]].append(layer.by_rank)
    values: list[list[float | None]] = [
        [_mean(parts[i] for parts in members[block]) if members[block] else None for block in blocks] for i in range(usual)
    ]
    known = [value for row in values for value in row if value is not None]
    names = [_rank_name(i, usual) for i in range(usual)]
    return _heat(names, [f"part {name}" for name in names], blocks, values, min(known), max(known), _percent)


def _heat(
    shown: list[str],
    rows: list[str],
    blocks: list[str],
    values: list[list[float | None]],
    pale: float,
    full: float,
    said: Callable[[float], str],
) -> Heat:
    columns, axis = _columns(blocks)
    texts = [
        [
            f"{row}{f', {block}' if block else ''}: {MISSING if v is None else said(v)}"
            for block, v in zip(blocks, line, strict=True)
        ]
        for row, line in zip(rows, values, strict=True)
    ]
    return Heat(shown, columns, values, texts, axis, pale, full, (said(pale), said(full)))


def _blocks(found: Spectrum) -> list[str]:
    return list(dict.fromkeys(place(layer.name)[0] for layer in found.layers))


def _columns(blocks: Sequence[str]) -> tuple[list[str], str]:
    """Short names of the blocks and what to call them: their numbers where only those differ, else 1, 2, …"""
    stems = {block.rpartition(".")[0] for block in blocks}
    if len(stems) == 1 and "" not in stems:
        return [block.rpartition(".")[2] for block in blocks], f"Block, numbered as in {stems.pop()}"
    if list(blocks) == [""]:
        return [""], ""
    return [str(i + 1) for i in range(len(blocks))], "Block, in the order of the network"


def _short(kinds: Sequence[str]) -> list[str]:
    """The shortest dotted ends that tell the kinds apart."""

    def end(kind: str, parts: int) -> str:
        return ".".join(kind.split(".")[-parts:])

    shown = []
    for kind in kinds:
        longest = kind.count(".") + 1
        sizes = (n for n in range(1, longest) if sum(end(other, n) == end(kind, n) for other in kinds) == 1)
        shown.append(end(kind, next(sizes, longest)))
    return shown


def _rank_name(i: int, parts: int) -> str:
    return f"{i + 1}{' (largest)' if i == 0 else ' (smallest)' if i == parts - 1 else ''}"


def _share(ranks: Sequence[float]) -> str:
    return "tenth" if len(ranks) == 10 else f"1/{len(ranks)}"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _number(value: float) -> str:
    return f"{100 * value:.2f}"


def _percent(value: float) -> str:
    return f"{_number(value)} %"
