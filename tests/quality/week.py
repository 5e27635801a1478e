"""Measures alerts on a synthetic fortnight of a host at 15 s, with one planted incident.

    python week.py [SEED ...]

The data are twenty counters with a daily rhythm, noise that grows with the load, a backup at 2 a.m. and counter resets. The
first week is training data, the second is replayed. On the second day of the replay the interface wg0 disappears, on the sixth
it returns. At 3 a.m. of the fourth day eth1 sends at its noon rate for twenty minutes: an exfiltration. For each seed the
program prints the detection of the exfiltration (delay, score, top metric), every other incident, and the share of scored rows.
Needs numpy and pyarrow, and promforest on PATH or in PROMFOREST_BIN.
"""

import datetime
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

STEP, DAY = 15, 86_400
START = int(datetime.datetime(2026, 3, 2, tzinfo=datetime.timezone.utc).timestamp())
DEVICES = ["eth0", "eth1", "eth2", "wg0", "lo"]
LOADS = [4e6, 1.5e6, 3e5, 6e4, 8e5]
METRICS = ["receive_bytes", "transmit_bytes", "receive_packets", "transmit_packets"]
SHARES = [1.0, 0.4, 1 / 900, 1 / 1100]
TRAINING_DAYS, DAYS = 7, 14
EXFILTRATION = (START + 10 * DAY + 3 * 3600, 20 * 60)
ABSENCE = ("wg0", START + 8 * DAY + 10 * 3600, START + 12 * DAY + 16 * 3600)


def rates(rng, times):
    """Bytes and packets per second of every interface."""
    hour = times % DAY / 3600
    rhythm = 0.25 + 0.75 * np.clip(np.sin((hour - 6) / 24 * 2 * np.pi), 0, None) ** 1.5
    weekend = np.where((times // DAY + 3) % 7 >= 5, 0.8, 1.0)
    smooth = np.convolve(rng.normal(size=len(times) + 39), np.ones(40) / np.sqrt(40), "valid")
    common = rhythm * weekend * np.exp(0.12 * smooth)
    out = {}
    for device, load in zip(DEVICES, LOADS):
        # Noise is proportional to the load.
        own = common * np.exp(0.15 * rng.normal(size=len(times)))
        for metric, share in zip(METRICS, SHARES):
            out[device, metric] = load * share * own * np.exp(0.05 * rng.normal(size=len(times)))
    backup = (hour >= 2) & (hour < 2.5)
    for metric, share in (("transmit_bytes", 1.0), ("transmit_packets", 1 / 1100)):
        out["eth0", metric] = out["eth0", metric] + backup * 6e6 * share * np.exp(0.1 * rng.normal(size=len(times)))
    begin, length = EXFILTRATION
    noon = LOADS[1] * 0.4
    is_exfiltrating = (times >= begin) & (times < begin + length)
    out["eth1", "transmit_bytes"] = out["eth1", "transmit_bytes"] + is_exfiltrating * noon
    out["eth1", "transmit_packets"] = out["eth1", "transmit_packets"] + is_exfiltrating * LOADS[1] / 1100
    return out


def counters(rng, times):
    columns = {}
    resets = sorted(rng.choice(len(times), 5, replace=False))
    for (device, metric), rate in rates(rng, times).items():
        total = np.cumsum(np.floor(rate * STEP))
        for reset in resets:
            total[reset:] -= total[reset - 1]
        if device == ABSENCE[0]:
            total[(times >= ABSENCE[1]) & (times < ABSENCE[2])] = np.nan
        columns[f'node_network_{metric}_total{{device="{device}"}}'] = total
    return columns


def run(seed, folder):
    rng = np.random.default_rng(seed)
    times = START + np.arange(0, DAYS * DAY, STEP)
    columns = counters(rng, times)
    is_training = times < START + TRAINING_DAYS * DAY
    for name, rows in (("history", is_training), ("input", ~is_training)):
        table = {"timestamp": times[rows] * 1000} | {column: values[rows] for column, values in columns.items()}
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
    promforest = os.environ.get("PROMFOREST_BIN", "promforest")
    paths = [str(folder / name) for name in ("history.parquet", "input.parquet", "scores.parquet")]
    command = [promforest, "backtest", "--history", paths[0], "--input", paths[1], "--output", paths[2]]
    subprocess.run(command, check=True, stdout=subprocess.PIPE)
    scores = pq.read_table(paths[2])
    time = scores["timestamp"].to_numpy() / 1000
    is_open = np.nan_to_num(scores["incident"].to_numpy(zero_copy_only=False).astype(float)) > 0
    score = np.nan_to_num(scores["score"].to_numpy(zero_copy_only=False).astype(float))
    top, reason = scores["top_metric"].to_pylist(), scores["top_reason"].to_pylist()
    edges = np.flatnonzero(np.diff(np.concatenate(([0], is_open.astype(int), [0]))))
    begin, length = EXFILTRATION
    found = None
    for first, last in zip(edges[::2], edges[1::2]):
        peak = first + int(np.argmax(score[first:last]))
        at = datetime.datetime.fromtimestamp(time[first], datetime.timezone.utc)
        text = f"{at:%a %H:%M:%S}, {(last - first) * STEP // 60} min, score {score[peak]:.2f}: {top[peak]} {reason[peak]}"
        if found is None and begin <= time[first] < begin + length:
            found = f"after {time[first] - begin:.0f} s, {text}"
        else:
            print(f"  seed {seed}: {text}")
    around = (time >= begin) & (time < begin + length)
    print(f"  seed {seed}: exfiltration {found or 'MISSED'} (highest score {score[around].max():.2f})")
    print(f"  seed {seed}: {np.isfinite(scores['score'].to_numpy()).mean():.2%} of the rows scored")


def main():
    for seed in map(int, sys.argv[1:] or ["1", "2", "3"]):
        with tempfile.TemporaryDirectory() as folder:
            run(seed, pathlib.Path(folder))


if __name__ == "__main__":
    main()
