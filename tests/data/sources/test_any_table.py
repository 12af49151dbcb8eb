"""Tables as people have them: separators, encodings, workbooks."""

import gzip
import logging

import pandas as pd
import pytest

from mammoclip_jax.data.sources import any_table, tables
from mammoclip_jax.errors import UserError

FORMS = {"comma": (",", "utf-8"), "semicolon": (";", "cp1252"), "tab": ("\t", "utf-16"), "bar": ("|", "utf-8-sig")}


@pytest.mark.parametrize("form", FORMS)
def test_the_separator_and_the_encoding_are_found(tmp_path, form, caplog):
    separator, encoding = FORMS[form]
    lines = [["image", "befund"], ["0.png", '"a, b; c"'], ["1.png", "Verkalkung für sich"]]
    text = "\n".join(separator.join(line) for line in lines)
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    with caplog.at_level(logging.INFO):
        data = any_table.read(tmp_path / "t.csv")
    assert data["befund"].tolist() == ["a, b; c", "Verkalkung für sich"]
    assert data[tables.ROW].tolist() == ["t.csv:2", "t.csv:3"]
    told = [record.getMessage() for record in caplog.records]
    assert told == ([] if form == "comma" else [f"t.csv: separator {form}, encoding {encoding.removesuffix('-sig')}"])


def test_compressed_tables_and_workbooks_are_read(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a;b\n1;2\n"))
    assert any_table.read(tmp_path / "t.csv.gz")[["a", "b"]].values.tolist() == [["1", "2"]]
    pytest.importorskip("openpyxl")
    pd.DataFrame({"a": ["x"], "b": ["ü"]}).to_excel(tmp_path / "t.xlsx", index=False)
    assert any_table.read(tmp_path / "t.xlsx")[["a", "b"]].values.tolist() == [["x", "ü"]]


def test_what_is_no_table_is_refused_with_what_was_found(tmp_path):
    (tmp_path / "t.csv").write_bytes("a;b\n1;2;3\n4;5;6\n".encode("cp1252"))
    with pytest.raises(UserError, match="more cells than columns.*Found: separator semicolon, encoding utf-8."):
        any_table.read(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b"a,b\n")
    with pytest.raises(UserError, match="no rows"):
        any_table.read(tmp_path / "t.csv")
    with pytest.raises(UserError, match="cannot be read"):
        any_table.read(tmp_path / "absent.csv")
