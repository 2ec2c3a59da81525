"""The mechanical rules of CONTRIBUTING's "English that a stranger reads once", in every file."""

from pathlib import Path

import pytest

from scripts import measure_style as style

SAMPLE = '''"""Say whether a plan fits."""

# A table is no list, and there is no room; it is no longer one, and 3 is no larger than 4.
def count(rows: list[int], kept: int = 0) -> int:
    """Return a number that is no
    sum."""
    found = [row for row in rows]
    for asked in found:  # of the plan
        given, total = asked, 0
        # A whole sentence that is longer than a line goes on
        # in the next one.
    return total
'''


def test_no_file_breaks_a_rule() -> None:
    places = [line for path in style.python_files() for line in style.broken(style.read(path))]
    assert not places, "\n".join(places)


def test_each_rule_sees_what_it_is_for_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(SAMPLE)
    lines = style.broken(style.read(file))
    assert sorted(line.removeprefix(f"{file}:") for line in lines) == [
        '1: docstring opens with "Say": Say whether a plan fits.',
        '3: " is no " in prose: # A table is no list, and there is n',
        "4: banned local name: kept",
        '5: " is no " in prose: Return a number that is no sum.',
        "7: banned local name: found",
        "8: banned local name: asked",
        "8: comment begins in mid-sentence: # of the plan",
        "9: banned local name: given",
    ]


def test_operations_count_where_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(
        "total = sum(abs(a - b) for a, b in pairs)\n"
        "dense = f(g(x[0] + 1), h(y[1] * 2), not z)[-1]\n"
        "spread = first(\n    second(third)\n)\n"
    )
    source = style.read(file)
    # A generator, its two calls and the difference; calls, sums, indices, signs; two calls apart.
    assert source.operations == {1: 4, 2: 10, 3: 1, 4: 1}
    dense = style.COUNTED["lines with nine operations or more"](source)
    assert [place.line for place in dense] == [2]


@pytest.mark.parametrize(
    ("text", "count"),
    [("one scale a row", 1), ("nats a token", 1), ("a file a tensor", 1), ("one scale per row", 0),
     ("where a row is", 0), ("1.0 where a column differs", 0)],
)  # fmt: skip
def test_a_for_per_is_counted_where_something_is_counted(text: str, count: int) -> None:
    assert len(style.matches(style.A_FOR_PER, [style.Place(1, text)])) == count
