"""What people see of a recording of the lab: which faults are found, how soon, and what is named.

Three detectors watch the rates of each host's 20 counters. promforest replays the days of faults at an alert budget, a new
model every day. An isolation forest of scikit-learn on the rates alone, and three sigma of each rate, have no budget: their
threshold is the one at which they open as many incidents as promforest.
"""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd

DAY_MS = 86_400_000
SLACK = 15  # minutes after a fault in which an incident is still its own
CONFIG = """\
detectors:
  - name: node_network
    match: ['{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total"}']
    transform: rate(2m)
"""


@dataclass
class Recording:
    """Labels, and of each host the ordinary days and the days with faults."""

    labels: pd.DataFrame
    hosts: dict

    @classmethod
    def read(cls, folder):
        with open(folder / "labels.jsonl", encoding="utf-8") as file:
            labels = pd.DataFrame(map(json.loads, file))
        first_day = labels["start"].min() // DAY_MS * DAY_MS
        hosts = {}
        for path in sorted(folder.glob("*.parquet")):
            table = pd.read_parquet(path)
            is_ordinary = table["timestamp"] < first_day
            hosts[path.stem] = (table[is_ordinary], table[~is_ordinary].reset_index(drop=True))
        return cls(labels, hosts)


def rates(table):
    """Rates per second over two rows, a reset counted from zero; rows with a gap are left out."""
    counters = table.drop(columns="timestamp").to_numpy(float)
    seconds = table["timestamp"].to_numpy(float)[:, None] / 1000
    steps = np.diff(counters, axis=0)
    steps = np.where(steps < 0, counters[1:], steps)
    values = np.full_like(counters, np.nan)
    values[2:] = (steps[1:] + steps[:-1]) / (seconds[2:] - seconds[:-2])
    return pd.DataFrame(values, columns=table.columns[1:])


def forest_scores(history, test):
    """scikit-learn's decision on the rates, negated: greater is more anomalous."""
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(random_state=0).fit(rates(history).dropna().to_numpy())
    values = rates(test)
    scores = np.full(len(values), -np.inf)
    complete = values.notna().all(axis=1)
    scores[complete] = -forest.decision_function(values[complete].to_numpy())
    return scores, None


def sigma_scores(history, test):
    """Greatest distance of a rate from its mean, in standard deviations."""
    usual, values = rates(history), rates(test)
    z = ((values - usual.mean()) / (usual.std() + 1e-9)).abs().fillna(-np.inf)
    return z.max(axis=1).to_numpy(), z.idxmax(axis=1).tolist()


def runs(mask, gap=5):
    """First and last row of each run of true values; runs closer than a gap are one."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], np.asarray(mask, dtype=np.int8), [0]))))
    joined = []
    for first, last in zip(edges[::2], edges[1::2] - 1):
        if joined and first - joined[-1][1] <= gap:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined


def incidents_at(scores, n_incidents):
    """The incidents of the least threshold that opens no more than so many."""
    levels = np.unique(scores[np.isfinite(scores)])
    low, high = 0, len(levels) - 1
    while low < high:  # about monotone: few thresholds from the top open few incidents
        middle = (low + high) // 2
        if len(runs(scores >= levels[middle])) > n_incidents:
            low = middle + 1
        else:
            high = middle
    return runs(scores >= levels[low])


def outcome(labels, times, incidents, named):
    """Of each label: whether an incident overlaps with it, its delay in rows, and whether its first row names it."""
    found = []
    for label in labels.itertuples():
        first, last = np.searchsorted(times, [label.start, label.end + SLACK * 60_000])
        hit = next((run for run in incidents if run[0] < last and run[1] >= first), None)
        row = {"found": hit is not None, "delay": np.nan, "device": np.nan, "metric": np.nan}
        if hit:
            at = max(hit[0], first)
            row["delay"] = at - first
            if named:
                row["device"] = any(f'device="{device}"' in named[at] for device in label.devices)
                row["metric"] = row["device"] and any(metric in named[at] for metric in label.metrics)
        found.append(row)
    return pd.concat([labels.reset_index(drop=True), pd.DataFrame(found)], axis=1)


def false_incidents(labels, times, incidents):
    """Incidents that overlap with no label of the host."""
    spans = [(label.start, label.end + SLACK * 60_000) for label in labels.itertuples()]
    return sum(not any(times[a] < end and times[b] >= start for start, end in spans) for a, b in incidents)


def events(outcomes):
    """A row an event: found on any of its hosts, the least delay, the name on the host that was first."""
    rows = []
    for (kind, start), group in outcomes.groupby(["kind", "start"]):
        best = group.sort_values(["found", "delay"], ascending=[False, True]).iloc[0]
        rows.append({"kind": kind, "start": start, "size": best["size"]} | {k: best[k] for k in ("found", "delay", "device", "metric")})
    return pd.DataFrame(rows)


def detect(recording, replay):
    """Events and incidents a day (all, false) of the three detectors; `replay(history, test)` is promforest's."""
    outcomes = {"promforest": [], "forest": [], "sigma": []}
    counts = {name: np.zeros(2) for name in outcomes}
    days = 0.0
    for host, (history, test) in recording.hosts.items():
        labels = recording.labels[recording.labels["host"] == host]
        times = test["timestamp"].to_numpy()
        days += (times[-1] - times[0]) / DAY_MS
        frame = replay(history, test)
        found = {"promforest": (runs(frame["incident"]), frame["top_metric"].fillna("").tolist())}
        for name, score in (("forest", forest_scores), ("sigma", sigma_scores)):
            scores, named = score(history, test)
            found[name] = (incidents_at(scores, len(found["promforest"][0])), named)
        for name, (incidents, named) in found.items():
            outcomes[name].append(outcome(labels, times, incidents, named))
            counts[name] += [len(incidents), false_incidents(labels, times, incidents)]
    return {name: (events(pd.concat(outcomes[name])), counts[name] / days) for name in outcomes}


def table(title, detected):
    """A line a kind: found of large and of small, delay, and what is named, beside the others' found."""
    lines = [f"\n{title}"]
    for name, (found, (all_a_day, false_a_day)) in detected.items():
        large, small = (found[found["size"] == size]["found"].mean() for size in ("large", "small"))
        hit = found[found["found"]]
        line = f"{name:12} {all_a_day:.2f} incidents ({false_a_day:.2f} false) a day and host, found {large:.2f} large, {small:.2f} small"
        line += f", median delay {hit['delay'].median():.0f} rows"
        if hit["device"].notna().any():
            line += f", device right {hit['device'].mean():.2f}, metric too {hit['metric'].mean():.2f}"
        lines.append(line)
    lines.append(f"{'':26}{'promforest':>32}{'forest':>14}{'3 sigma':>14}")
    lines.append(f"{'':26}{'large':>7}{'small':>7}{'delay':>7}{'device':>11}" + f"{'large':>7}{'small':>7}" * 2)
    kinds = detected["promforest"][0]["kind"].unique()
    for kind in kinds:
        line = f"{kind:26}"
        for name, (found, _) in detected.items():
            mine = found[found["kind"] == kind]
            for size in ("large", "small"):
                part = mine[mine["size"] == size]["found"]
                line += f"{f'{part.sum()}/{len(part)}':>7}"
            if name == "promforest":
                hit = mine[mine["found"]]
                line += f"{hit['delay'].median():>7.0f}{hit['device'].mean():>11.2f}" if len(hit) else f"{'':18}"
        lines.append(line)
    return "\n".join(lines)
