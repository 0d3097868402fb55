"""A score as files a person can open: HTML, JSON, tables, QuPath objects, a marked picture."""

from wsiscore.report.cohort import Entry, write_index
from wsiscore.report.html import write_report
from wsiscore.report.overlay import write_overlay
from wsiscore.report.qupath import write_cells
from wsiscore.report.tables import (
    HEADER,
    error_row,
    row,
    score_json,
    write_cells_table,
    write_score,
    write_scores_csv,
)

__all__ = [
    "HEADER",
    "Entry",
    "error_row",
    "row",
    "score_json",
    "write_cells",
    "write_cells_table",
    "write_index",
    "write_overlay",
    "write_report",
    "write_score",
    "write_scores_csv",
]
