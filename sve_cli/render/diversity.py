"""What `sve diversity` found, as tables of plain text, Markdown and HTML."""

from __future__ import annotations

import math

from sve_cli.diversity import Diversity, PairMeasure, RankCorrelation
from sve_cli.render import figures, markdown, page
from sve_cli.render.tables import MISSING, Table

UNCERTAINTIES = {
    "mutual_information": "Mutual information (epistemic)",
    "expected_entropy": "Expected entropy (aleatoric)",
    "entropy": "Entropy (total)",
}
DISTANCE_NOTE = (
    "Rank correlation of each sample's uncertainty with its distance to the training features of the checkpoint. In parentheses: "
    "bootstrap interval. By chance: what 95 % of the absolute correlations stay below when the samples are shuffled, the largest "
    "of the three."
)
PAIR_NOTE = "Rows and columns are members; row a, column b is the pair (a, b). Orange squares are negative."


def format_pair(key: str, value: float) -> str:
    """A value of a pair measure: disagreement in percent, the divergence with four digits, the others with three."""
    if not math.isfinite(value):
        return MISSING
    if key == "disagreement":
        return f"{100 * value:.2f}"
    return f"{value:.4f}" if key == "kl" else f"{value:.3f}"


def _head(key: str, measure: PairMeasure) -> str:
    return f"{measure.title} %" if key == "disagreement" else measure.title


def measure_table(found: Diversity) -> Table:
    """One line a measure: mean, smallest and largest pair."""
    rows = []
    for key, measure in found.pairs.items():
        values = measure.of_pairs() or [math.nan]
        cells = [format_pair(key, value) for value in (measure.mean, min(values), max(values))]
        rows.append([_head(key, measure), *cells, measure.apart])
    return Table(["Of two members", "Mean", "Smallest", "Largest", "More unlike if"], rows, frozenset({1, 2, 3}))


def pair_table(found: Diversity) -> Table:
    """One line a pair of members; of the divergence the mean of both directions."""
    rows = []
    for b in range(found.members):
        for a in range(b):
            means = [(key, (m.matrix[a][b] + m.matrix[b][a]) / 2) for key, m in found.pairs.items()]
            rows.append([f"{a} and {b}", *(format_pair(key, value) for key, value in means)])
    heads = [_head(key, measure) for key, measure in found.pairs.items()]
    return Table(["Members", *heads], rows, frozenset(range(1, len(heads) + 1)))


def format_correlation(found: RankCorrelation) -> str:
    """`0.412 (0.380 to 0.443)`."""
    if not math.isfinite(found.value):
        return MISSING
    interval = "" if found.low is None or found.high is None else f" ({found.low:.3f} to {found.high:.3f})"
    return f"{found.value:.3f}{interval}"


def distance_table(found: Diversity) -> Table | None:
    """One line a set: rank correlation of every uncertainty with the distance, and what chance gives."""
    if not found.distance:
        return None
    keys = list(found.distance[0].correlations)
    rows = []
    for row in found.distance:
        chance = [c.by_chance for c in row.correlations.values() if math.isfinite(c.by_chance)]
        cells = [format_correlation(row.correlations[key]) for key in keys]
        bound = f"{max(chance):.3f}" if chance else MISSING
        rows.append([row.name, f"{row.n:,}", f"{row.mean_distance:.3f}", *cells, bound])
    heads = ["Samples", "Number", "Mean distance", *(UNCERTAINTIES[key] for key in keys), "By chance at most"]
    return Table(heads, rows, frozenset(range(1, len(heads))))


def definition_table(found: Diversity) -> Table:
    """What every pair measure is."""
    return Table(["Measure", "Definition"], [[measure.title, measure.definition] for measure in found.pairs.values()])


def provenance_table(found: Diversity) -> Table:
    """Where the numbers come from."""
    return Table(["What", "Value"], [[key.replace("_", " "), str(value)] for key, value in found.provenance.items()])


def subtitle(found: Diversity) -> str:
    """Data set, split and sizes in one line."""
    return f"{found.dataset}:{found.split} · {found.n:,} samples · {found.members} members"


def render_markdown(found: Diversity) -> str:
    """The result as GitHub-flavoured Markdown."""
    blocks = [f"# {markdown.escape(found.title)}", markdown.escape(subtitle(found))]
    blocks += [f"**{markdown.escape(found.headline[0])}**", markdown.bullets(found.headline[1:])]
    blocks += [markdown.section("## Pairs of members", measure_table(found)), markdown.table(pair_table(found))]
    distance = distance_table(found)
    if distance:
        blocks += ["## Uncertainty and distance to the training data", DISTANCE_NOTE, markdown.table(distance)]
    if found.notes:
        blocks += ["## Notes", markdown.bullets(found.notes)]
    blocks.append(markdown.section("## Definitions", definition_table(found)))
    blocks.append(markdown.section("## Provenance", provenance_table(found)))
    return "\n\n".join(block for block in blocks if block) + "\n"


def render_html(found: Diversity) -> str:
    """The result as one self-contained HTML document."""
    blocks = [
        page.head(found.title, subtitle(found), found.headline),
        page.section("Pairs of members", measure_table(found), "sticky"),
        f'<p class="soft">{PAIR_NOTE}</p>',
        page.figures([_drawing(key, measure) for key, measure in found.pairs.items()]),
        page.section("Every pair", pair_table(found), "sticky", level=3),
    ]
    distance = distance_table(found)
    if distance:
        blocks.append(page.section("Uncertainty and distance to the training data", distance, "sticky"))
        blocks.append(f'<p class="soft">{DISTANCE_NOTE}</p>')
    if found.notes:
        blocks.append("<h2>Notes</h2>\n" + page.bullets(found.notes))
    blocks.append(page.section("Definitions", definition_table(found), "words"))
    blocks.append(page.section("Provenance", provenance_table(found), "facts words"))
    return page.page(found.title, blocks)


def _drawing(key: str, measure: PairMeasure) -> str:
    values = measure.of_pairs()
    if not values:
        return ""
    # Bounded measures are coloured on their whole scale, so that figures of different runs compare.
    full = max(values) if key in ("disagreement", "kl") else 1.0
    texts = [[format_pair(key, value) for value in row] for row in measure.matrix]
    unit = " %" if key == "disagreement" else ""
    drawing = figures.pairs_svg(measure.matrix, texts, full, f"{measure.title} of every pair of members")
    return page.figure(measure.title, f"mean {format_pair(key, measure.mean)}{unit}", drawing)
