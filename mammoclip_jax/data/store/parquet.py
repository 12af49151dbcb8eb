"""Reading Parquet tables without threads."""

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pyarrow.parquet import ParquetFile


def read_table(content: str | Path | bytes, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A Parquet file, given by its path or its bytes.

    pandas.read_parquet starts Arrow's threads, and a command that ends while one of them starts is aborted now and then
    (https://github.com/apache/arrow/issues/34314).

    Raises:
        OSError, ValueError: it cannot be read; pyarrow's errors are among them.
    """
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    with ParquetFile(source, pre_buffer=False) as file:
        return file.read(columns=columns, use_threads=False).to_pandas(use_threads=False)
