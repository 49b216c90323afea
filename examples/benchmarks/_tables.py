"""Tables of results as reStructuredText."""

import itertools


def as_list_table(cells, title=""):
    """Return a frame of text as a list-table whose first row is its header."""
    rows = [_row(row) for row in [cells.columns, *cells.to_numpy()]]
    head = [f".. list-table:: {title}".rstrip(), "   :header-rows: 1", ""]
    return "\n".join([*head, *itertools.chain(*rows)]) + "\n"


def _row(cells):
    first, *others = cells
    return [f"   * - {first}".rstrip(), *(f"     - {c}".rstrip() for c in others)]
