"""Do pandas, polars and DuckDB read the same tables from a sidecar, as an Arrow stream and as Parquet?

    notebooks_agree.py URL

URL is that of a table, with its query. Needs duckdb, pandas, polars and pyarrow. Prints the types of the columns in the
stream, then each row as a line of JSON: timestamps in milliseconds, floating point numbers as their bits. Fails if the
libraries or the formats disagree.
"""

import io
import json
import sys
import tempfile
import urllib.request

import duckdb
import numpy
import pandas
import polars
import pyarrow
import pyarrow.ipc

ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
# A float of the table cannot be null, unless it is the threshold; pandas and numpy have NaN there.
NULLABLE = {"threshold"}


def fetch(url, accept):
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request) as response:
        assert response.headers["Content-Type"] == (accept or ARROW), response.headers
        return response.read()


def floats(name, values):
    array = numpy.ascontiguousarray(values, dtype=numpy.float64)
    bits = [f"{number:016x}" for number in array.view(numpy.uint64).tolist()]
    if name in NULLABLE:
        bits = [None if empty else text for text, empty in zip(bits, numpy.isnan(array))]
    return bits


def milliseconds(values):
    return numpy.asarray(values).astype("datetime64[ms]").astype(numpy.int64).tolist()


def rows(columns):
    return [list(row) for row in zip(*columns, strict=True)]


def of_pandas(frame):
    def column(name):
        values = frame[name]
        if name == "timestamp":
            assert str(values.dt.tz) == "UTC", values.dtype
            return milliseconds(values.dt.tz_localize(None).to_numpy())
        if values.dtype == numpy.float64:
            return floats(name, values.to_numpy())
        if name != "incident":
            assert values.dtype == "category", values.dtype
        return [None if pandas.isna(value) else value for value in values]

    return rows([column(name) for name in frame.columns])


def of_polars(frame):
    def column(name):
        values = frame[name]
        if name == "timestamp":
            assert values.dtype == polars.Datetime("ms", "UTC"), values.dtype
            return values.dt.epoch("ms").to_list()
        if values.dtype == polars.Float64:
            return floats(name, values.to_numpy())
        if name != "incident":
            assert values.dtype == polars.Categorical, values.dtype
        return values.to_list()

    return rows([column(name) for name in frame.columns])


def of_duckdb(relation):
    types = dict(zip(relation.columns, relation.types))
    assert str(types["timestamp"]) == "TIMESTAMP WITH TIME ZONE", types
    table = relation.to_arrow_table()

    def column(name):
        values = table[name]
        if name == "timestamp":
            return values.cast(pyarrow.timestamp("ms", "UTC")).cast(pyarrow.int64()).to_pylist()
        if values.type == pyarrow.float64():
            return floats(name, values.to_numpy())
        return values.to_pylist()

    return rows([column(name) for name in table.column_names])


def main(url):
    stream, parquet = fetch(url, None), fetch(url, PARQUET)
    assert fetch(url, ARROW) == stream
    table = pyarrow.ipc.open_stream(stream).read_all()
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        file.write(parquet)
        file.flush()
        read = {
            "pandas, Arrow": of_pandas(table.to_pandas()),
            "pandas, Parquet": of_pandas(pandas.read_parquet(io.BytesIO(parquet))),
            "polars, Arrow": of_polars(polars.read_ipc_stream(stream)),
            "polars, Parquet": of_polars(polars.read_parquet(file.name)),
            "DuckDB, Arrow": of_duckdb(duckdb.from_arrow(pyarrow.ipc.open_stream(stream))),
            "DuckDB, Parquet": of_duckdb(duckdb.read_parquet(file.name)),
        }
    first = read["pandas, Arrow"]
    for name, result in read.items():
        for row, expected in zip(result, first):
            assert row == expected, f"{name}: {row} instead of {expected}"
        assert len(result) == len(first), f"{name}: {len(result)} rows instead of {len(first)}"
    print(json.dumps({field.name: str(field.type) for field in table.schema}))
    for row in first:
        print(json.dumps(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
