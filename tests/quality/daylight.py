#!/usr/bin/env python3
"""Incidents of synthetic hosts of Europe/Berlin in the week after the clocks change, beside the same weeks without a change.

    tests/quality/daylight.py [--promforest BINARY] [--seeds N] [--load LOAD...] [--budget BUDGET]

A host has four metrics, a row a minute, three weeks of history and four weeks that are replayed; the clocks change on the
second Sunday of these. The load of `office` rises and falls within half an hour at 8 and 18 o'clock of working days, that of
`wave` is a sine over the day, and that of `backup` is five times as high from 4 to 4:30 every night. Needs numpy. The default
BINARY is target/release/promforest, N is 8, and BUDGET is 1/day.
"""

import argparse
import collections
import datetime
import re
import subprocess
import tempfile
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np

DAY = datetime.timedelta(days=1)
UTC = datetime.timezone.utc
HISTORY, DAYS, CHANGE = 21, 49, 34
SEASONS = {"spring": (2026, 2, 23), "autumn": (2026, 9, 21), "no change": (2026, 2, 23)}
INCIDENT = re.compile(r"^  (\d{4}-\d\d-\d\d) \d\d:\d\d UTC, ", re.MULTILINE)


def load(shape, local):
    """The load of local times, from 0 to 1."""
    hour = np.array([then.hour + then.minute / 60 for then in local])
    if shape == "backup":
        return np.where((hour >= 4) & (hour < 4.5), 1.0, 0.2)
    if shape == "wave":
        return 0.6 - 0.4 * np.cos((hour - 4) / 24 * 2 * np.pi)
    work = 1 / (1 + np.exp(-(hour - 8) * 12)) - 1 / (1 + np.exp(-(hour - 18) * 12))
    is_weekend = np.array([then.weekday() >= 5 for then in local])
    return 0.2 + np.where(is_weekend, 0.1, 0.8) * work


def write_host(folder, shape, season, seed):
    random = np.random.default_rng(seed)
    start = datetime.datetime(*SEASONS[season], tzinfo=UTC)
    zone = ZoneInfo("Etc/GMT-1" if season == "no change" else "Europe/Berlin")
    times = [start + datetime.timedelta(minutes=minute) for minute in range(DAYS * 1440)]
    level = load(shape, [then.astimezone(zone) for then in times])
    drift = np.zeros((4, len(times)))
    steps = random.normal(0, 0.03, drift.shape)
    for row in range(1, len(times)):
        drift[:, row] = 0.95 * drift[:, row - 1] + steps[:, row]
    noise = np.exp(random.normal(0, 0.08, drift.shape))
    values = 1000 * np.arange(1, 5)[:, None] * level * (1 + 0.5 * drift) * noise
    lines = [
        f"{int(then.timestamp() * 1000)}," + ",".join(f"{value:.3f}" for value in values[:, row])
        for row, then in enumerate(times)
    ]
    for name, part in (("history", lines[: HISTORY * 1440]), ("input", lines[HISTORY * 1440 :])):
        (folder / f"{name}.csv").write_text("\n".join(["timestamp,a,b,c,d", *part, ""]))
    return start.date() + CHANGE * DAY


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "target/release/promforest"
    parser.add_argument("--promforest", type=Path, default=default)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--load", nargs="+", choices=["office", "wave", "backup"], default=["office", "wave", "backup"])
    parser.add_argument("--budget", default="1/day")
    args = parser.parse_args()
    print("| load | clocks | incidents a host and day before | on the Sunday | on the Monday | on the five days after |")
    print("|---|---|---|---|---|---|")
    for shape in args.load:
        for season in SEASONS:
            days = collections.Counter()
            for seed in range(args.seeds):
                with tempfile.TemporaryDirectory() as name:
                    folder = Path(name)
                    change = write_host(folder, shape, season, seed)
                    tables = ["--history", folder / "history.csv", "--input", folder / "input.csv", "--budget", args.budget]
                    run = subprocess.run(
                        [args.promforest, "backtest", *tables], check=True, capture_output=True, text=True
                    )
                days.update((datetime.date.fromisoformat(day) - change).days for day in INCIDENT.findall(run.stdout))
            mean = lambda first, last: sum(days[day] for day in range(first, last)) / args.seeds / (last - first)
            print(f"| {shape} | {season} | {mean(-13, 0):.2f} | {mean(0, 1):.2f} | {mean(1, 2):.2f} | {mean(2, 7):.2f} |", flush=True)


if __name__ == "__main__":
    main()
