"""What `sve bench` measures: one value per (method, sweep point, seed), and the table over them.

Shapes do not occur here: everything is a named number. A cell is one trained and evaluated run.
"""

from sve_cli.benchmark.documents import without_folders
from sve_cli.benchmark.table import (
    PRECISION,
    build_table,
    by_size,
    different_task,
    different_task_keys,
    differing_keys,
    precision_of,
    searched,
)
from sve_cli.benchmark.values import (
    DIVERGED,
    EARLIER,
    REFERENCE,
    SEARCHED_AS,
    TRAINED,
    BenchRow,
    BenchTable,
    Cell,
    CellResult,
    Diverged,
    Grid,
    GridPoint,
    Spread,
    higher_is_better,
    load_cells,
    load_diverged,
    load_grids,
    row_name,
)

__all__ = [
    "DIVERGED",
    "EARLIER",
    "PRECISION",
    "REFERENCE",
    "SEARCHED_AS",
    "TRAINED",
    "BenchRow",
    "BenchTable",
    "Cell",
    "CellResult",
    "Diverged",
    "Grid",
    "GridPoint",
    "Spread",
    "build_table",
    "by_size",
    "different_task",
    "different_task_keys",
    "differing_keys",
    "higher_is_better",
    "load_cells",
    "load_diverged",
    "load_grids",
    "precision_of",
    "row_name",
    "searched",
    "without_folders",
]
