"""Scores a table with a model folder as MLflow does it.

    pyfunc_scores.py FOLDER INPUT.csv OUTPUT.csv

INPUT has a line of column names and one line for each row. Needs mlflow, numpy, pandas and pyarrow.
"""

import sys

import mlflow.pyfunc
import pandas


def main(folder, rows, scores):
    frame = pandas.read_csv(rows, dtype="float64")
    if "timestamp" in frame:
        frame = frame.astype({"timestamp": "int64"})
    found = mlflow.pyfunc.load_model(folder).predict(frame)
    found.to_csv(scores, index=False)


main(*sys.argv[1:])
