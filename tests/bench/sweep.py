#!/usr/bin/env python3
"""The sweep of `promforest train` beside scikit-learn's, on the same table: CPU seconds, divergences, choice.

    cargo build --release && OMP_NUM_THREADS=1 "$PROMFOREST_PYTHON" tests/bench/sweep.py target/release/promforest

The table has 28,800 rows of 20 columns: five days of a host's interfaces at 15 s, counter rates with a daily
rhythm, bursts and heavy tails. Both programs do 13 sizes of sample by 5 folds in the order of time, 100 trees,
decisions of the training and the test rows, histograms and KL divergence.
"""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import entropy
from sklearn.ensemble import IsolationForest
from sklearn.model_selection import KFold

SIZES = [5, 10, 50, 100, 1000, 1500, 2000, 2500, 3000, 3500, 4000, 4500, 5000]
DEVICES = ["eth0", "lo", "docker0", "br-0c6e79cd156e", "br-8fbdbc8e9f6a"]
COLUMNS = ["Rx in", "Tx out", "Pck in", "Pck out"]


def table(n_rows=28_800, seed=0):
    rng = np.random.default_rng(seed)
    day = np.arange(n_rows) * 15 / 86_400 * 2 * np.pi
    columns = {}
    for number, device in enumerate(DEVICES):
        load = (1.2 + np.sin(day - number / 3)) * rng.lognormal(10 - number, 0.6, n_rows)
        load *= 1 + 20 * (rng.random(n_rows) < 0.003)
        for name in COLUMNS:
            scale = 1.0 if name.startswith(("Rx", "Tx")) else 1 / 700
            columns[f"{device} - {name}"] = load * scale * rng.lognormal(0, 0.3, n_rows)
    return columns


def divergence(train, test):
    train, test = (np.histogram(decisions, bins=200, range=(-1, 1))[0] for decisions in (train, test))
    return entropy(train, np.where(test == 0, 1e-6, test))


def scikit_learn(rows):
    started, sweep = time.process_time(), []
    for size in SIZES:
        kl = []
        for train, test in KFold(n_splits=5, shuffle=False).split(rows):
            forest = IsolationForest(max_samples=size, random_state=0).fit(rows[train])
            kl.append(divergence(*(forest.decision_function(rows[part]) for part in (train, test))))
        sweep.append((size, float(np.mean(kl))))
    return time.process_time() - started, sweep


def promforest(program, columns, folder):
    path = folder / "table.parquet"
    timestamps = 1_700_000_000_000 + 15_000 * np.arange(len(next(iter(columns.values()))))
    pq.write_table(pa.table({"timestamp": timestamps, **columns}), path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [program, "train", "--kind", "isolation_forest", "--input", path, "--model", folder / "model"]
    command += ["--output", "json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, json.loads(done.stdout)[0]["sweep"]


def main():
    columns = table()
    with tempfile.TemporaryDirectory() as folder:
        ours, our_sweep = promforest(sys.argv[1], columns, pathlib.Path(folder))
    theirs, their_sweep = scikit_learn(np.column_stack(list(columns.values())))
    print("max_samples  KL promforest  KL scikit-learn")
    for ours_of_size, (size, their_kl) in zip(our_sweep, their_sweep):
        print(f"{size:>11}  {ours_of_size['kl_mean']:>13.4f}  {their_kl:>15.4f}")
    chosen = [trial["max_samples"] for trial in our_sweep if trial["chosen"]]
    least = min(their_sweep, key=lambda trial: trial[1])[0]
    print(f"\nchosen: promforest {chosen[0]}; the least of scikit-learn {least}")
    print(f"CPU seconds: promforest {ours:.2f} (with reading, the fit on all rows and the page), scikit-learn {theirs:.2f}")
    print(f"scikit-learn / promforest: {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
