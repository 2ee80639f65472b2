"""Tables that the library wrote: another format, or another file."""

import pytest

from multiexit.files import schema
from multiexit.files.json_files import read_table

CHECK = schema.table({"format": schema.anything, "rows": schema.listed(schema.whole(0, 9))})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": 1, "rows"', "is damaged or cut short"),
        ("[1]", r"holds no list of rows: it is \[1\]; it must be a table with format, rows"),
        ("{}", "holds no list of rows: it lacks format, rows"),
        ('{"format": 1, "rows": [10]}', r"holds no list of rows: rows\[0\] is 10; it must be a wh"),
        ('{"format": 2, "lines": []}', "has format 2; this version of multiexit reads 1: install"),
        ('{"format": true, "rows": []}', "has format True; this version of multiexit reads 1"),
        ('{"format": null, "rows": []}', "has format None; this version of multiexit reads 1"),
    ],
)
def test_another_file_is_refused(text, words, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"rows\.json {words}"):
        read_table(path, "list of rows", CHECK, format=1)


def test_a_table_is_read(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"format": 1, "rows": [1, 2]}')
    assert read_table(path, "list of rows", CHECK, format=1)["rows"] == [1, 2]
