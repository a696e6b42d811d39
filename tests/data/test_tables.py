"""Tables fit their terminal."""

import io

from rich.console import Console

from leveret.data.tables import NARROW, Table

TABLE = Table(
    "Hares",
    ["name", "count", "share", ""],
    [["short", "1,234", "10.0%", "████"], ["a name that is much longer than a column may be", "5", "0.1%", "█"]],
)


def printed(table: Table, width: int) -> list[str]:
    file = io.StringIO()
    Console(width=width, file=file).print(table)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_where_there_is_room_all_is_shown() -> None:
    lines = printed(TABLE, 100)
    assert lines[0] == "Hares"
    assert lines[1].split() == ["name", "count", "share"]
    assert lines[3].split() == ["short", "1,234", "10.0%", "████"]
    assert lines[4].split("longer than a column may be")[1].split() == ["5", "0.1%", "█"]


def test_the_first_column_is_folded_and_then_the_last_ones_left_out() -> None:
    for width, columns in ((NARROW + 26, 4), (NARROW + 18, 3), (NARROW + 17, 2), (5, 1)):
        lines = printed(TABLE, width)
        assert max(map(len, lines)) <= width
        assert "…" not in "".join(lines)
        assert len([word for word in ("1,234", "10.0%", "████") if any(word in line for line in lines)]) == columns - 1
        folded = "".join(line.strip().partition("  ")[0] for line in lines[4:])
        assert folded.replace(" ", "").removeprefix("short") == "anamethatismuchlongerthanacolumnmaybe"


def test_names_are_no_markup() -> None:
    assert "[/INST] [red]x" in "\n".join(printed(Table("[/b]", ["a"], [["[/INST] [red]x"]]), 60))


def test_a_table_without_rows() -> None:
    assert printed(Table("None", ["name", "count"], []), 40)[1].split() == ["name", "count"]
