"""Synthetic hosts and stresses for run.py.

A host has twenty rates, by default one row a minute: bytes and packets, in and out, of five interfaces, with a daily rhythm, noise that
grows with the load, and a nightly backup. On some day of the replay an interface sends at its noon rate for twenty minutes at
3 a.m., an exfiltration, which is the only labelled event.
"""

import numpy as np
import pandas as pd

MINUTE, DAY = 60, 86_400
START = 1_772_409_600  # 2026-03-02, a Monday, in UTC
LOADS = {"eth0": 4e6, "eth1": 1.5e6, "eth2": 3e5, "wg0": 6e4, "lo": 8e5}
SHARES = {"receive_bytes": 1.0, "transmit_bytes": 0.4, "receive_packets": 1 / 900, "transmit_packets": 1 / 1100}
TRAINING_DAYS, REPLAY_DAYS = 14, 14

# Name: factor of weekends, office hours only, hours from UTC, days of the replay without wg0.
WEEKS = {
    "every day alike": dict(),
    "weekend 0.5": dict(weekend=0.5),
    "weekend 0.2": dict(weekend=0.2),
    "office hours": dict(weekend=0.05, is_office=True),
    "UTC-8, weekend 0.5": dict(weekend=0.5, zone=-8),
    "UTC-5, weekend 0.5": dict(weekend=0.5, zone=-5),
    "UTC+5:30, weekend 0.5": dict(weekend=0.5, zone=5.5),
    "UTC+9, weekend 0.5": dict(weekend=0.5, zone=9),
    "no backup": dict(has_backup=False),
    "wg0 goes and returns": dict(absence=(16, 20)),
}


def week(
    seed, weekend=1.0, is_office=False, zone=0.0, has_backup=True, absence=None, interval=MINUTE, replay_days=REPLAY_DAYS
):
    """History and input of a host, with the column label in the input."""
    rng = np.random.default_rng(seed)
    times = START + np.arange(0, (TRAINING_DAYS + replay_days) * DAY, interval)
    local = times + zone * 3600
    hour, weekday = local % DAY / 3600, local // DAY % 7
    is_weekend = (weekday == 2) | (weekday == 3)  # Day 0 of the epoch was a Thursday.
    rhythm = 0.25 + 0.75 * np.clip(np.sin((hour - 6) / 24 * 2 * np.pi), 0, None) ** 1.5
    if is_office:
        rhythm = np.where((hour >= 8) & (hour < 18), 1.0, 0.05)
    smooth = np.convolve(rng.normal(size=len(times) + 9), np.ones(10) / np.sqrt(10), "valid")
    common = rhythm * np.where(is_weekend, weekend, 1.0) * np.exp(0.12 * smooth)
    exfiltration = START + (TRAINING_DAYS + replay_days * 5 // 7) * DAY + 3 * 3600 - zone * 3600
    label = (times >= exfiltration) & (times < exfiltration + 20 * MINUTE)
    backup = has_backup * ((hour >= 2) & (hour < 2.5)) * 6e6
    columns = {}
    for device, load in LOADS.items():
        own = common * np.exp(0.1 * rng.normal(size=len(times)))
        for metric, share in SHARES.items():
            rate = load * share * own * np.exp(0.05 * rng.normal(size=len(times)))
            if device == "eth0" and metric.startswith("transmit"):
                rate += backup * (share / 0.4 if metric == "transmit_bytes" else share)
            if device == "eth1" and metric.startswith("transmit"):
                rate += label * load * share
            if device == "wg0" and absence:
                first, last = (START + day * DAY for day in absence)
                rate = np.where((times >= first) & (times < last), np.nan, rate)
            columns[f"{metric}:{device}"] = rate.astype(np.float32)
    frame = pd.DataFrame({"timestamp": times * 1000, **columns})
    is_training = times < START + TRAINING_DAYS * DAY
    return frame[is_training], frame[~is_training].assign(label=label[~is_training].astype(np.int8))


def wide(seed, n_columns, interval=15):
    """Normal data of two hours: independent columns of which each fourth follows the one before."""
    rng = np.random.default_rng(seed)
    times = START + np.arange(0, 2 * 3600, interval)
    values = rng.normal(100.0, 10.0, size=(len(times), n_columns))
    values[:, 3::4] = 0.8 * values[:, 2::4][:, : values[:, 3::4].shape[1]] + 20.0
    values[:, 3::4] += rng.normal(0.0, 3.0, size=values[:, 3::4].shape)
    columns = {f"m{number:03}": column.astype(np.float32) for number, column in enumerate(values.T)}
    frame = pd.DataFrame({"timestamp": times * 1000, **columns})
    is_history = times < START + 3600
    return frame[is_history], frame[~is_history].assign(label=np.int8(0))


def metrics(frame):
    return [name for name in frame.columns if name not in ("timestamp", "label")]


def stale(history, test):
    """A model that has not been renewed for the last third of its history."""
    return history.iloc[: 2 * len(history) // 3], test


def two_days(history, test):
    """A history of two days."""
    times = history["timestamp"].astype("int64")
    unit = 1 if times.iloc[-1] < 1e14 else 1_000_000
    return history[times > times.iloc[-1] - 2 * DAY * 1000 * unit], test


def times_1_5(history, test):
    """All values are 1.5 times as great from a third of the test on."""
    test = test.copy()
    test.loc[test.index[len(test) // 3 :], metrics(test)] *= np.float32(1.5)
    return history, test


def plus_3(history, test):
    """A quarter of the metrics rise by three standard deviations from a third of the test on."""
    test = test.copy()
    raised = metrics(test)[::4]
    test.loc[test.index[len(test) // 3 :], raised] += (3 * history[raised].std()).astype(np.float32)
    return history, test


def ramp(history, test):
    """All values grow to twice their size over the test."""
    test = test.copy()
    factor = np.linspace(1.0, 2.0, len(test), dtype=np.float32)
    test[metrics(test)] = test[metrics(test)].mul(factor, axis=0)
    return history, test


STRESSES = {"stale": stale, "two days": two_days, "x 1.5": times_1_5, "+ 3 sigma": plus_3, "ramp": ramp}
