#!/usr/bin/env python3
"""Measures detection quality on labelled servers: trains, backtests, evaluates, and prints a table.

    tests/quality/run.py LABELLED EVALUATOR [--promforest BINARY] [--scores FOLDER]

LABELLED   folder with <entity>_train.parquet, <entity>_test.parquet (column label: 1 = anomalous) and
           <entity>_causes.csv (start, end: rows of the test file; metrics: the causes)
EVALUATOR  program that is called as `EVALUATOR --aggregate SCORES LABELLED` and prints JSON

Needs numpy, pandas and pyarrow. The default BINARY is target/release/promforest.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

# Means over both datasets. The isolation forest on raw values is scikit-learn's, with 2000 samples per tree.
PUBLISHED = [
    ("forest on raw values", {"vus_pr": 0.223, "recall_1": 0.50, "recall_0.2": 0.21}),
    ("prototype", {"vus_pr": 0.531, "recall_1": 0.93, "recall_0.2": 0.72, "fixed": 0.845, "false": 0.725}),
]
MEASURES = {
    "vus_pr": "vus_pr",
    "recall_1": "budgets.1.event_recall",
    "recall_0.2": "budgets.0.2.event_recall",
    "fixed": "fixed.event_recall",
    "false": "fixed.false_episodes_per_day",
}
HEADS = {
    "vus_pr": "VUS-PR",
    "recall_1": "recall at 1/day",
    "recall_0.2": "at 0.2/day",
    "fixed": "as configured: recall",
    "false": "false/day",
    "causes": "cause first",
}


def backtest(promforest, folder, entity, scores):
    output = scores / f"{entity}.parquet"
    train, test = (folder / f"{entity}_{part}.parquet" for part in ("train", "test"))
    command = [promforest, "backtest", "--history", train, "--input", test, "--output", output]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return output


def causes(scores, table):
    """For each segment, True if the top metric at the highest score is one of the causes."""
    frame = pd.read_parquet(scores)
    hits = []
    with open(table, encoding="utf-8") as file:
        for segment in csv.DictReader(file):
            rows = frame.iloc[int(segment["start"]) : int(segment["end"]) + 1]
            hits.append(rows.loc[rows["score"].idxmax(), "top_metric"] in segment["metrics"].split())
    return hits


def line(name, values):
    cells = [f"{values[key]:.3f}" if key in values else "" for key in HEADS]
    return f"{name:26}" + "".join(f"{cell:>{len(head) + 3}}" for cell, head in zip(cells, HEADS.values()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labelled", type=Path)
    parser.add_argument("evaluator", type=Path)
    parser.add_argument("--promforest", type=Path, default=Path("target/release/promforest"))
    parser.add_argument("--scores", type=Path, help="folder for the score files")
    args = parser.parse_args()

    entities = sorted(path.name.removesuffix("_test.parquet") for path in args.labelled.glob("*_test.parquet"))
    if not entities:
        sys.exit(f"error: no *_test.parquet in {args.labelled}")
    with tempfile.TemporaryDirectory() as temporary:
        scores = args.scores or Path(temporary)
        scores.mkdir(parents=True, exist_ok=True)
        hits = {}
        for entity in entities:
            print(f"\r{entity:20}", end="", file=sys.stderr, flush=True)
            output = backtest(args.promforest, args.labelled, entity, scores)
            table = args.labelled / f"{entity}_causes.csv"
            hits.setdefault(entity.split("-")[0], []).extend(causes(output, table) if table.exists() else [])
        print("\r" + " " * 20 + "\r", end="", file=sys.stderr)
        command = [sys.executable, args.evaluator, "--aggregate", scores, args.labelled]
        command += ["--budget", "1", "0.2", "--threshold", "1"]
        found = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)

    datasets = json.loads(found.stdout)["datasets"]
    rows = {
        name: {key: measures[path] for key, path in MEASURES.items()}
        | {"causes": sum(hits[name]) / max(len(hits[name]), 1)}
        for name, measures in datasets.items()
    }
    mean = {key: sum(row[key] for row in rows.values()) / len(rows) for key in HEADS}
    print(f"{'':26}" + "".join(f"   {head}" for head in HEADS.values()))
    for name, values in PUBLISHED + [("promforest", mean)] + [(f"  {name}", row) for name, row in rows.items()]:
        print(line(name, values))


if __name__ == "__main__":
    main()
