"""Tables that lose no cell: what a row has beyond the columns of its head stays in its last cell, as it was written."""

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_block.table import escapedSplit, getLine
from markdown_it.token import Token


def add_tables(parser: MarkdownIt) -> None:
    """Have a parser keep the cells that its own rule leaves out."""
    parser.block.ruler.at("table", _table, {"alt": ["paragraph", "reference"]})


def _table(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    before = len(state.tokens)
    if not table(state, first, end, silent):
        return False
    columns, row, last = 0, 0, None
    for token in state.tokens[before:]:
        if token.type == "tr_open" and token.map:
            row, last = token.map[0], None
        elif token.type == "inline":
            last = token
            columns += row == first
        elif token.type == "tr_close" and last and row > first:
            _keep(state, row, columns, last)
    return True


def _keep(state: StateBlock, row: int, columns: int, last: Token) -> None:
    cells = escapedSplit(getLine(state, row).strip().removeprefix("|"))
    while len(cells) > columns and not cells[-1].strip():
        cells.pop()
    if len(cells) > columns:
        last.content = "|".join(cells[columns - 1 :]).strip()
