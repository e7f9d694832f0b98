"""The results of a benchmark as tables for a terminal."""

from rich import box
from rich.table import Table
from rich.text import Text

from .results import Results
from .sheet import Sheet, sheets


def tables(results: Results) -> list[Table]:
    """One table a case: time, memory, ratios; what the design document claims is in columns that say so."""
    return [_table(sheet) for sheet in sheets(results)]


def _table(sheet: Sheet) -> Table:
    caption = Text("\n".join(sheet.notes))  # as text: brackets are no markup
    table = Table(title=sheet.title, caption=caption, box=box.SIMPLE_HEAD)
    table.title_justify = table.caption_justify = "left"
    for heading in sheet.headings:
        table.add_column(heading, justify="left" if heading == "contender" else "right", no_wrap=True)
    for rows in sheet.groups:
        for row in rows:
            table.add_row(*row)
        table.add_section()
    return table
