#!/usr/bin/env python3
"""Measures detection as people see it, on servers and services with labels, and on synthetic hosts.

    tests/quality/run.py FOLDER... [--evaluator PROGRAM] [--promforest BINARY] [--part PART...] [--output FILE]
    tests/quality/run.py --part netlab [--netlab FOLDER] [--promforest BINARY]
    tests/quality/run.py --part small [--promforest BINARY]

FOLDER     folder with <entity>_train.parquet and <entity>_test.parquet (column label: 1 = anomalous), and, for causes,
           <entity>_causes.csv (start, end: rows of the test file; metrics: the causes)
PROGRAM    called as `PROGRAM --aggregate SCORES FOLDER`, prints JSON with vus_pr of each dataset

Parts: budgets (0.5, 1 and 2 a day, with and without renewal), stresses, first-day, weeks, width, netlab. The part small needs
no folder, takes a minute or two with a debug build, and fails if a number is out of its bounds. The part netlab judges a
recording of netlab/lab.py, by default that of tests/data/netlab, by kind of fault, beside scikit-learn and three sigma. Every
number is a mean over the entities of a dataset:

incidents    incidents a day, and those without a labelled row
recall       share of the labelled events that overlap with an incident
calm         share of the time without label that is inside of an incident
longest      longest incident without a labelled row, in hours; the greatest of the dataset
cause        share of the causes' segments whose highest score names a cause first

Needs numpy, pandas and pyarrow. The default BINARY is target/release/promforest.
"""

import argparse
import csv
import datetime
import itertools
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import scenarios
from netlab import judge as netlab

PARTS = ["budgets", "stresses", "first-day", "weeks", "width", "netlab"]
HEADS = ["incidents", "false", "recall", "calm", "longest", "cause", "VUS-PR"]
FRESH = ["--no-renewal"]
NETLAB = Path(__file__).resolve().parents[1] / "data" / "netlab"
# Scenario of the part small: least recall, and the most that incidents a day and calm may be.
SMALL = {
    "weekend 0.2": (1.0, 1.0, 0.02),
    "office hours": (np.nan, 1.0, 0.02),
    "100 columns": (np.nan, 0.0, 0.0),
    "400 columns": (np.nan, 0.0, 0.0),
}


def runs(mask):
    """First and last index of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], np.asarray(mask, dtype=np.int8), [0]))))
    return list(zip(edges[::2], edges[1::2] - 1))


def milliseconds(frame):
    times = frame["timestamp"]
    return times.astype("datetime64[ms, UTC]").astype("int64") if times.dtype.kind == "M" else times


def judge(frame, label):
    """What people see of a backtest."""
    scored = frame["score"].notna().to_numpy()
    frame, label = frame[scored], np.asarray(label)[scored].astype(bool)
    incident, times = frame["incident"].to_numpy(bool), frame["timestamp"].to_numpy()
    days = (times[-1] - times[0]) / 86_400_000
    incidents = runs(incident)
    false = [(first, last) for first, last in incidents if not label[first : last + 1].any()]
    events = runs(label)
    return {
        "incidents": len(incidents) / days,
        "false": len(false) / days,
        "recall": np.mean([incident[first : last + 1].any() for first, last in events]) if events else np.nan,
        "calm": incident[~label].mean(),
        "longest": max([(times[last] - times[first]) / 3_600_000 for first, last in false], default=0.0),
    }


def causes(frame, table):
    """For each segment, True if the top metric at the highest score is one of the causes."""
    hits = []
    with open(table, encoding="utf-8") as file:
        for segment in csv.DictReader(file):
            rows = frame.iloc[int(segment["start"]) : int(segment["end"]) + 1]
            hits.append(rows.loc[rows["score"].idxmax(), "top_metric"] in segment["metrics"].split())
    return hits


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.numbers = itertools.count()

    def backtest(self, history, test, options, output=None):
        """The scores of a test table after a history; both are files or frames."""
        number = next(self.numbers)
        paths = []
        for name, table in (("history", history), ("test", test)):
            if isinstance(table, pd.DataFrame):
                path = self.folder / f"{number}-{name}.parquet"
                table.to_parquet(path, index=False)
                table = path
            paths.append(table)
        output = output or self.folder / f"{number}-scores.parquet"
        command = [self.args.promforest, "backtest", "--history", paths[0], "--input", paths[1], "--output", output]
        command += options
        done = subprocess.run([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"error: {' '.join(map(str, command))}\n{done.stderr}")
        return pd.read_parquet(output)

    def map(self, work, items):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(work, items))

    def entities(self):
        """Folder, entity, and dataset: the name up to its last hyphen."""
        for folder in self.args.folders:
            for path in sorted(folder.glob("*_test.parquet")):
                entity = path.name.removesuffix("_test.parquet")
                parts = entity.split("-")
                yield folder, entity, "-".join(parts[:2]) if parts[0] == "js" else parts[0]

    def tables(self, folder, entity):
        return [pd.read_parquet(folder / f"{entity}_{part}.parquet") for part in ("train", "test")]

    def vus_pr(self, scores, folder):
        command = [sys.executable, self.args.evaluator, "--aggregate", scores, folder]
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
        return {name: measures["vus_pr"] for name, measures in json.loads(done.stdout)["entities"].items()}

    def labelled(self, options, with_vus=True):
        """A row of measures for each dataset."""
        scores = {folder: self.folder / f"scores-{next(self.numbers)}" for folder in self.args.folders}
        [path.mkdir() for path in scores.values()]

        def work(item):
            folder, entity, dataset = item
            train, test = (folder / f"{entity}_{part}.parquet" for part in ("train", "test"))
            frame = self.backtest(train, test, options, scores[folder] / f"{entity}.parquet")
            found = judge(frame, pd.read_parquet(test)["label"])
            table = folder / f"{entity}_causes.csv"
            found["cause"] = np.mean(causes(frame, table)) if table.exists() else np.nan
            return entity, dataset, found

        rows = self.map(work, list(self.entities()))
        vus = {}
        if with_vus and self.args.evaluator:
            for folder in self.args.folders:
                vus |= self.vus_pr(scores[folder], folder)
        return summarize([(dataset, found | {"VUS-PR": vus.get(entity, np.nan)}) for entity, dataset, found in rows])

    def stressed(self, stress, options):
        def work(item):
            folder, entity, dataset = item
            history, test = stress(*self.tables(folder, entity))
            return dataset, judge(self.backtest(history, test, options), test["label"])

        return summarize(self.map(work, list(self.entities())))

    def first_day(self, options):
        """The day after a first model of one hour, at four times of the history."""

        def work(item):
            folder, entity, dataset = item
            history = self.tables(folder, entity)[0]
            times, found = milliseconds(history).to_numpy(), []
            for begin in times[0] + np.array([2, 4.4, 6.6, 8.8]) * 86_400_000:
                hour = history[(times >= begin) & (times <= begin + 3_600_000)]
                day = history[(times > begin + 3_600_000) & (times <= begin + 90_000_000)]
                found.append(judge(self.backtest(hour, day, options), np.zeros(len(day))))
            return dataset, {key: np.mean([row[key] for row in found]) for key in found[0]}

        return summarize(self.map(work, list(self.entities())))

    def weeks(self, options):
        def work(item):
            name, seed = item
            history, test = scenarios.week(seed, **scenarios.WEEKS[name])
            return name, judge(self.backtest(history, test, options), test["label"])

        return summarize(self.map(work, itertools.product(scenarios.WEEKS, [1, 2])))

    def width(self, options):
        def work(item):
            n_columns, seed = item
            history, test = scenarios.wide(seed, n_columns)
            return f"{n_columns} columns", judge(self.backtest(history, test, options), test["label"])

        return summarize(self.map(work, itertools.product([20, 60, 100, 200, 400], [1, 2])))


    def netlab(self, budget):
        """The recorded network, by kind of fault."""
        config = self.folder / "netlab.yml"
        config.write_text(netlab.CONFIG, encoding="utf-8")
        options = ["--config.file", config, "--budget", f"{budget}/day"]
        return netlab.detect(netlab.Recording.read(self.args.netlab), lambda history, test: self.backtest(history, test, options))

    def small(self, name):
        """What people see of a scenario."""
        if name in scenarios.WEEKS:
            history, test = scenarios.week(1, **scenarios.WEEKS[name], interval=300, replay_days=7)
            return judge(self.backtest(history, test, []), test["label"])
        history, test = scenarios.wide(1, int(name.split()[0]))
        return judge(self.backtest(history, test, FRESH), test["label"])


def out_of_bounds(found):
    """The lines that name the numbers of the part small that are out of their bounds."""
    for name, (recall, incidents, calm) in SMALL.items():
        for head, value, is_within in [
            ("recall", recall, found[name]["recall"] >= recall or np.isnan(recall)),
            ("incidents", incidents, found[name]["incidents"] <= incidents),
            ("calm", calm, found[name]["calm"] <= calm),
        ]:
            if not is_within:
                yield f"{name}: {head} {found[name][head]:.3f}, the bound is {value}"


def summarize(rows):
    """Means by name; the greatest of the longest."""
    by_name = {}
    for name, found in rows:
        by_name.setdefault(name, []).append(found)
    summary = {}
    for name, found in by_name.items():
        summary[name] = pd.DataFrame(found).mean().to_dict() | {"longest": max(row["longest"] for row in found)}
    return summary


def format_table(title, summary):
    cell = lambda row, head: "" if np.isnan(row.get(head, np.nan)) else f"{row[head]:.3f}"
    lines = [f"\n{title}", f"{'':24}" + "".join(f"{head:>11}" for head in HEADS)]
    lines += [f"{name:24}" + "".join(f"{cell(row, head):>11}" for head in HEADS) for name, row in summary.items()]
    return "\n".join(lines)


def tables(bench, parts):
    """The tables of the parts, one after another."""
    for title, summary in measures(bench, parts):
        yield format_table(title, summary)
    if "netlab" in parts:
        for budget in [1, 0.5, 2]:
            yield netlab.table(f"netlab, budget {budget} a day, renewed daily", bench.netlab(budget))


def measures(bench, parts):
    """Titles and summaries."""
    if "budgets" in parts:
        for budget, renewal in itertools.product([1, 0.5, 2], [FRESH, []]):
            title = f"budget {budget} a day, {'one model' if renewal else 'renewed daily'}"
            yield title, bench.labelled(["--budget", f"{budget}/day", *renewal])
    if "stresses" in parts:
        for name, stress in scenarios.STRESSES.items():
            yield f"budget 1 a day, one model, {name}", bench.stressed(stress, FRESH)
    if "first-day" in parts:
        yield "first day after an hour of history", bench.first_day([])
    if "weeks" in parts:
        yield "synthetic weeks, renewed daily", bench.weeks([])
    if "width" in parts:
        yield "the hour after an hour of history at 15 s", bench.width(FRESH)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--evaluator", type=Path)
    parser.add_argument("--promforest", type=Path, default=Path("target/release/promforest"))
    parser.add_argument("--part", choices=[*PARTS, "small"], nargs="+", default=PARTS)
    parser.add_argument("--netlab", type=Path, default=NETLAB, help="folder of a recording of netlab/lab.py")
    parser.add_argument("--output", type=Path, help="file for the tables too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        texts = [f"{datetime.date.today()}, {subprocess.check_output([args.promforest, '--version'], text=True).strip()}"]
        print(texts[0])
        for text in tables(Bench(args, Path(temporary)), args.part):
            texts.append(text)
            print(text, flush=True)
        if "small" in args.part:
            bench = Bench(args, Path(temporary))
            found = dict(zip(SMALL, bench.map(bench.small, SMALL)))
            print(format_table("small", found))
            sys.exit("\n".join(out_of_bounds(found)) or 0)
    if args.output:
        args.output.write_text("\n".join(texts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
