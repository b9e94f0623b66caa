"""CSV whose texts no spreadsheet computes, and which reads back as it was."""

import csv
import io

from saelab.formats.csv_file import FORMULA, csv_text, unmarked

TEXTS = ["=1+1", "+1", "-a", "@x", "\tx", "plain", "", "'quoted'", "'=1", "''=1", 'a,"b"', "a=1"]


def test_no_text_begins_as_a_formula_and_all_come_back():
    found = [row[0] for row in csv.reader(io.StringIO(csv_text([t, 1] for t in TEXTS), newline=""))]
    assert not any(cell.startswith(FORMULA) for cell in found)
    assert [unmarked(cell) for cell in found] == TEXTS
    assert "'quoted'" in found


def test_negative_numbers_stay_numbers():
    assert csv_text([["a", -1.5, None]]) == "a,-1.5,\n"
