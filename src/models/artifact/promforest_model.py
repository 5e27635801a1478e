"""Scores rows with a promforest model, in numpy and pyarrow alone.

    import mlflow
    mlflow.pyfunc.load_model(folder).predict(frame)

`frame` has the model's columns in any order; an array without column names needs the model's order. The score of an
extended_isolation_forest depends on the rows before: its rows ascend in time, follow those of training, and the frame
has a column timestamp in milliseconds too. The result has, for every row:

score_samples, decision_function, predict
    as scikit-learn's IsolationForest names them; decision_function < 0 and predict -1 are anomalous
decision, score
    as promforest publishes them for a group without incidents; score 1 is the threshold. Outside the range of training,
    the score of an isolation forest increases with the distance from the range
"""

import json
import pathlib

import numpy as np
import pyarrow as pa

EULER_GAMMA = 0.5772156649015329
MIN_WIDTH = 0.1


def _load_pyfunc(path):
    """Entry point of MLflow: loads the model in this folder."""
    return Model(pathlib.Path(path))


def average_path_length(n):
    n = np.asarray(n, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        length = 2.0 * (np.log(n - 1.0) + EULER_GAMMA) - 2.0 * (n - 1.0) / n
    return np.where(n <= 1, 0.0, np.where(n == 2, 1.0, length))


class Model:
    def __init__(self, folder):
        self.meta = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if self.meta["format"] != 1:
            raise ValueError(f"the model has format {self.meta['format']}, this loader reads format 1")
        self.columns = [feature["column"] for feature in self.meta["schema"]["features"]]
        with pa.memory_map(str(folder / "forest.arrow")) as source:
            nodes = pa.ipc.open_file(source).read_all()
        self.is_ordered = self.meta["kind"] == "extended_isolation_forest"
        if self.is_ordered:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            self.forest = ExtendedIsolationForest(self.meta["forest"], nodes, state, len(self.columns))
        else:
            self.forest = IsolationForest(self.meta["forest"], nodes)

    def predict(self, rows, params=None):
        import pandas as pd

        index = getattr(rows, "index", None)
        times = None
        if self.is_ordered:
            if "timestamp" not in getattr(rows, "columns", ()):
                raise ValueError("the rows have no column 'timestamp': this model scores a row by the rows before it")
            times = rows["timestamp"].to_numpy().astype(np.int64)
        if hasattr(rows, "columns"):
            missing = [name for name in self.columns if name not in rows.columns]
            if missing:
                raise ValueError(f"the rows have no column {missing[0]!r}")
            rows = rows[self.columns].to_numpy()
        rows = np.asarray(rows, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != len(self.columns):
            raise ValueError(f"rows have shape {rows.shape}, must be [n, {len(self.columns)}]")
        offset = self.meta["forest"]["offset"]
        if self.is_ordered:
            score_samples, score = self.forest.continue_scoring(times, rows)
            decision = published = score_samples - offset
        else:
            score_samples, extrapolated = self.forest.score(rows)
            decision, published = score_samples - offset, extrapolated - offset
            score = extrapolated / offset
        return pd.DataFrame(
            {
                "score_samples": score_samples,
                "decision_function": decision,
                "predict": np.where(decision < 0, -1, 1),
                "decision": published,
                "score": score,
            },
            index=index,
        )


def from_path(path, unit):
    """score_samples of a sum of path lengths over all trees."""
    return -np.exp2(-(path / unit if unit > 0 else np.ones_like(path)))


def split_by_tree(nodes, columns):
    """The columns of each tree, by name."""
    starts = np.flatnonzero(np.diff(nodes["tree"].to_numpy(), prepend=-1))
    arrays = (np.split(column, starts[1:]) for column in columns.values())
    return [dict(zip(columns, tree)) for tree in zip(*arrays)]


class IsolationForest:
    """Axis-parallel splits: Liu, Ting and Zhou 2008, with scikit-learn's semantics."""

    def __init__(self, meta, nodes):
        names = ["left_child", "right_child", "feature", "threshold", "n_node_samples", "missing_go_to_left"]
        self.trees = split_by_tree(nodes, {name: nodes[name].to_numpy() for name in names})
        self.unit = len(self.trees) * float(average_path_length(meta["max_samples"]))
        # The file has the shortest decimals of 32-bit floats.
        ranges = None if meta["ranges"] is None else np.array(meta["ranges"], dtype=np.float32)
        self.ranges = None if ranges is None else ranges.astype(np.float64)

    def score(self, rows):
        ends = self.share_beyond(rows)
        path, expected = np.zeros(len(rows)), np.zeros(len(rows))
        all_rows = np.arange(len(rows))
        for tree in self.trees:
            at = np.zeros(len(rows), dtype=np.int64)
            depth = np.zeros(len(rows))
            alive, sum_beyond = np.ones(len(rows)), np.zeros(len(rows))
            while True:
                going = all_rows[tree["left_child"][at] >= 0]
                if not len(going):
                    break
                node = at[going]
                feature = tree["feature"][node]
                value = rows[going, feature]
                left = np.where(
                    np.isnan(value), tree["missing_go_to_left"][node], value <= tree["threshold"][node]
                )
                depth[going] += 1
                end = ends[going, feature]
                sum_beyond[going] += alive[going] * end * depth[going]
                alive[going] *= 1.0 - end
                at[going] = np.where(left, tree["left_child"][node], tree["right_child"][node])
            leaf = depth + average_path_length(tree["n_node_samples"][at])
            path += leaf
            expected += sum_beyond + alive * leaf
        return from_path(path, self.unit), from_path(expected, self.unit)

    def share_beyond(self, rows):
        """The probability that a random split isolates each value beyond the range of training."""
        rows = rows.astype(np.float64)
        if self.ranges is None:
            return np.zeros_like(rows)
        least, greatest = self.ranges[:, 0], self.ranges[:, 1]
        width = np.maximum(greatest - least, MIN_WIDTH * np.maximum(np.abs(least), np.abs(greatest)))
        beyond = np.maximum(least - rows, rows - greatest)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = beyond / (width + beyond)
        return np.where(np.isposinf(beyond), 1.0, np.where(beyond > 0, share, 0.0))


class ExtendedIsolationForest:
    """Oblique splits (Hariri, Carrasco Kind and Brunner 2019) of derived features, combined with a tail score, smoothed, and
    the threshold for one alert per day.

    Values are rounded to 32 bits where promforest rounds them, and sums are in its order: a value on the other side of
    a split would reach another leaf.
    """

    RECURRING_SIGMAS, RECURRING_MARGIN = 5.0, 1.5

    def __init__(self, meta, nodes, state, n_features):
        names = ["left_child", "right_child", "cut", "low", "high", "n_node_samples"]
        columns = {name: nodes[name].to_numpy() for name in names}
        for name in ["columns", "coefficients"]:
            values = nodes[name].combine_chunks().flatten().to_numpy()
            columns[name] = values.reshape(-1, meta["width"])
        self.trees = split_by_tree(nodes, columns) if len(nodes) else []
        self.unit = len(self.trees) * float(average_path_length(meta["max_samples"]))
        known = [scale is not None for scale in meta["scales"]]
        self.known = np.array(known)
        self.scales = np.array([scale or [0.0, 1.0] for scale in meta["scales"]], dtype=np.float64)
        self.varying = meta["varying"]
        n_derived = len(known) // n_features
        derived = (c for feature in self.varying for c in range(n_derived * feature, n_derived * (feature + 1)))
        self.columns = [c for c in derived if known[c]]
        self.n_features, self.n_derived = n_features, n_derived
        self.residuals = None
        if meta["residuals"] is not None:
            self.residuals = {name: np.array(values) for name, values in meta["residuals"].items()}
            n_varying = len(self.varying)
            self.residuals["inverse"] = self.residuals["inverse"].reshape(n_varying, n_varying)
        self.score_scales = [(meta[name]["median"], meta[name]["unit"]) for name in ["forest_scale", "tail_scale"]]
        self.state = state

    def continue_scoring(self, times, rows):
        """score_samples and score of rows after those of training."""
        newest = self.state["rows"][-1][0] if self.state["rows"] else None
        if np.any(np.diff(times) <= 0) or newest is not None and len(times) and times[0] <= newest:
            raise ValueError(f"timestamps must ascend, and follow {newest}, where training ended")
        with np.errstate(over="ignore", invalid="ignore"):
            derived, threshold = DerivedFeatures(self.state), PotThreshold(self.state)
            derived_rows = [derived.derive(int(time), row) for time, row in zip(times, rows)]
            parts = zip(*derived_rows) if derived_rows else ([], [])
            columns, baselines = (np.array(part).reshape(len(rows), len(self.scales)) for part in parts)
            standardized = standardize(columns, self.scales)
            standardized[~np.isfinite(columns) | ~self.known] = 0.0
            score_samples = self.score_samples(rows, standardized)
            sigmas = np.abs(standardized.astype(np.float64))
            # A deviation that recurs daily is limited.
            limits = self.RECURRING_MARGIN * standardize(baselines, self.scales).astype(np.float64)
            limits = np.where(baselines > 0, limits, 0.0)
            sigmas = np.where(self.known & (sigmas <= limits), np.minimum(sigmas, self.RECURRING_SIGMAS), sigmas)
            sigmas = sigmas.reshape(len(rows), self.n_features, self.n_derived).max(axis=2)
            top = -np.sort(-np.log1p(sigmas), axis=1)[:, :2]
            parts = [-score_samples, top.sum(axis=1) / max(top.shape[1], 1)]
        raw = 0.5 * sum((part - median) / unit for part, (median, unit) in zip(parts, self.score_scales))
        score = np.empty(len(rows))
        interval, mean = float(self.state["interval_ms"]), self.state["mean_score"]
        weight = 1.0 - 0.65 ** (interval / max(interval, 60_000.0))
        for number, time in enumerate(times):
            missing = 0 if newest is None else (int(time) - newest + int(interval) // 2) // int(interval) - 1
            newest = int(time)
            mean *= (1.0 - weight) ** max(missing, 0)
            mean += weight * (max(raw[number], 0.0) - mean)
            smoothed = max(raw[number], 1.2 * mean)
            score[number] = smoothed / threshold.value_at(int(time))
            threshold.add(int(time), smoothed)
        return score_samples, score

    def score_samples(self, rows, standardized):
        if not self.trees:
            return np.full(len(rows), -0.5)
        values = [standardized[:, self.columns]]
        if self.residuals is not None:
            values.append(standardize(self.correlation_residuals(rows[:, self.varying]), self.residuals["scales"]))
        greatest = np.finfo(np.float32).max
        values = np.nan_to_num(np.hstack(values), nan=0.0, posinf=greatest, neginf=-greatest).astype(np.float64)
        path = np.zeros(len(rows))
        all_rows = np.arange(len(rows))
        for tree in self.trees:
            at = np.zeros(len(rows), dtype=np.int64)
            depth = np.zeros(len(rows))
            alive, ended = np.ones(len(rows)), np.zeros(len(rows))
            while True:
                going = all_rows[tree["left_child"][at] >= 0]
                if not len(going):
                    break
                node = at[going]
                terms = tree["coefficients"][node] * values[going[:, np.newaxis], tree["columns"][node]]
                mixture = np.cumsum(terms, axis=1)[:, -1]
                low, high = tree["low"][node], tree["high"][node]
                # The probability that a split between the range and the row would have isolated it in training.
                beyond = np.maximum(np.maximum(low - mixture, mixture - high), 0.0)
                end = beyond / (high - low + beyond)
                depth[going] += 1
                ended[going] += alive[going] * end * depth[going]
                alive[going] *= 1.0 - end
                left = mixture <= tree["cut"][node]
                at[going] = np.where(left, tree["left_child"][node], tree["right_child"][node])
            path += ended + alive * (depth + average_path_length(tree["n_node_samples"][at]))
        return from_path(path, self.unit)

    def correlation_residuals(self, rows):
        deviations, inverse = self.residuals["deviations"], self.residuals["inverse"]
        w = (rows.astype(np.float64) - self.residuals["means"]) / deviations
        w[~np.isfinite(rows)] = 0.0
        mixed = np.zeros_like(w)
        for feature in range(len(inverse)):
            mixed += inverse[:, feature] * w[:, [feature]]
        return saturate(mixed / np.diag(inverse) * deviations)


def saturate(values):
    """The nearest finite 32-bit floats; NaN stays NaN."""
    greatest = np.finfo(np.float32).max
    return np.clip(values, -float(greatest), float(greatest)).astype(np.float32)


def standardize(rows, scales):
    return saturate((rows.astype(np.float64) - scales[:, 0]) / scales[:, 1])


class DerivedFeatures:
    """Seasonal profiles, recurring peaks, and the rows of the last minutes."""

    DAY, BUCKETS, ALPHA, MAX_DISTANCE = 86_400_000, 96, 0.3, 9.0
    ERROR_FADE, WEEKLY_ADVANTAGE = 0.95, 0.9
    QUARTER, KEPT_BUCKETS = DAY // BUCKETS, 4 * 96 + 2

    def __init__(self, state):
        self.interval = state["interval_ms"]
        self.lag = max(self.interval, 60_000)
        profiles = state["profiles"]
        self.means, self.weekday_means, self.weekend_offsets, self.sums, self.errors, self.distance = (
            np.array([profile[name] for profile in profiles], dtype=np.float64)
            for name in ["means", "weekday_means", "weekend_offsets", "sums", "errors", "distance"]
        )
        self.counts, self.n_weekend_days = (
            np.array([profile[name] for profile in profiles], dtype=np.int64) for name in ["counts", "n_weekend_days"]
        )
        self.is_weekly = np.array([profile["is_weekly"] for profile in profiles], dtype=bool)
        self.today = max((profile["today"] for profile in profiles), default=0)
        self.rows = [(time, np.array(row, dtype=np.float32)) for time, row in state["rows"]]
        # Peaks of quarters of an hour are the upper halves of 32-bit floats.
        self.peaks = np.array(state["peaks"], dtype=np.uint32).reshape(-1, 2, self.KEPT_BUCKETS)
        self.quarter = self.rows[-1][0] // self.QUARTER if self.rows else None
        self.update_baselines()

    def derive(self, time, row):
        """Residual, difference and deviation of each feature, and the baselines of their recurring peaks."""
        before = self.rows[-1][1] if self.rows else np.zeros_like(row)
        row = np.where(np.isfinite(row), row, before)
        span = 12 * self.lag
        self.rows = [(then, old) for then, old in self.rows if then > time - span] + [(time, row)]
        residual = row.astype(np.float64) - self.expected(time)
        self.add(time, row)
        near = [old for then, old in self.rows if then <= time - self.lag + self.interval // 2]
        near_times = [then for then, _ in self.rows if then <= time - self.lag + self.interval // 2]
        unknown = np.full(len(row), np.nan)
        row64 = row.astype(np.float64)
        difference = row64 - near[-1] if near and near_times[-1] >= time - 3 * self.lag else unknown
        deviation = unknown
        if len(self.rows) >= max(span // self.interval // 2, 2):
            recent = np.array([old for _, old in self.rows], dtype=np.float64)
            total = np.cumsum(recent, axis=0)[-1]
            square = (recent - total / len(recent)) ** 2
            deviation = np.sqrt(np.cumsum(square, axis=0)[-1] / len(recent))
        columns = saturate(np.stack([residual, difference, deviation], axis=1))
        difference, deviation, columns = columns[:, 1], columns[:, 2], columns.ravel()
        quarter = time // self.QUARTER
        if self.quarter is None or quarter > self.quarter:
            if self.quarter is not None:
                # Whole days without rows are skipped; other quarters without rows take the peaks of the day before.
                skipped = (quarter - self.quarter - 1) // self.BUCKETS * self.BUCKETS
                self.peaks = np.roll(self.peaks, skipped % self.KEPT_BUCKETS, axis=2)
                for passed in range(self.quarter + skipped + 1, quarter):
                    day_before = (passed - self.BUCKETS) % self.KEPT_BUCKETS
                    self.peaks[:, :, passed % self.KEPT_BUCKETS] = self.peaks[:, :, day_before]
            self.peaks[:, :, quarter % self.KEPT_BUCKETS] = 0
            self.quarter = quarter
            self.update_baselines()
        now = self.peaks[:, :, quarter % self.KEPT_BUCKETS]
        bits = np.nan_to_num(np.abs(np.stack([difference, deviation], axis=1)))
        shortened = np.minimum(-(-bits.view(np.uint32).astype(np.int64) // 65536), 0x7F7F).astype(np.uint32)
        self.peaks[:, :, quarter % self.KEPT_BUCKETS] = np.maximum(now, shortened)
        return columns, self.baselines

    def update_baselines(self):
        """Baselines in the order of the columns; a residual has none."""
        baselines = np.zeros((len(self.peaks), 1 + self.peaks.shape[1]), dtype=np.float32)
        if self.quarter is not None:
            baselines[:, 1:] = self.recurring_peaks()
        self.baselines = baselines.ravel()

    def recurring_peaks(self):
        """The peaks that recurred at this time on each of the last days, and stand out from the median quarter."""
        at = [self.peaks[:, :, (self.quarter - ago) % self.KEPT_BUCKETS] for ago in range(self.KEPT_BUCKETS)]
        days = [np.max([at[day * self.BUCKETS + near] for near in (-1, 0, 1)], axis=0) for day in range(1, 5)]
        lowest, median = (
            (bits << np.uint32(16)).view(np.float32)
            for bits in (np.min(days, axis=0), np.sort(at[1:], axis=0)[self.KEPT_BUCKETS // 2])
        )
        return np.where(lowest > np.float32(3.0) * median, lowest, np.float32(0.0))

    def expected(self, time):
        self.advance_to(time // self.DAY)
        width = self.DAY // self.BUCKETS
        place = time - width // 2
        before, share = place // width, place % width / width
        low, high = self.mean_at(before), self.mean_at(before + 1)
        return low + (high - low) * share

    def mean_at(self, bucket):
        """The means of a bucket, counted from the epoch."""
        day, bucket = bucket // self.BUCKETS, bucket % self.BUCKETS
        weekly = self.weekly_means(day)[:, bucket]
        return np.where(self.is_weekly & ~np.isnan(weekly), weekly, self.means[:, bucket])

    def weekly_means(self, day):
        return self.weekday_means + (self.weekend_offsets if self.is_weekend(day) else 0.0)

    @staticmethod
    def is_weekend(day):
        return (day + 3) % 7 >= 5

    def advance_to(self, day):
        if day <= self.today:
            return
        completed, self.today = self.today, day
        is_weekend = self.is_weekend(completed)
        if is_weekend:
            self.n_weekend_days += ~np.isnan(self.weekday_means).all(axis=1)
        known = self.counts > 0
        mean = np.where(known, self.sums / np.maximum(self.counts, 1), np.nan)
        expected = np.stack([self.means, self.weekly_means(completed)])
        errors = np.abs(mean - expected)
        compared = known & ~np.isnan(expected).any(axis=0)
        n_errors = compared.sum(axis=1)
        # Sums in the order of the buckets.
        total = np.cumsum(np.where(compared, errors, 0.0), axis=2)[:, :, -1].T
        mean_errors = total / np.maximum(n_errors, 1)[:, np.newaxis]
        has_errors = n_errors > 0
        self.errors[has_errors] = (self.ERROR_FADE * self.errors + mean_errors)[has_errors]
        is_better = self.errors[:, 1] < self.WEEKLY_ADVANTAGE * self.errors[:, 0]
        self.is_weekly = np.where(has_errors, is_better, self.is_weekly)
        self.means = approach(self.means, mean, self.ALPHA)
        if not is_weekend:
            self.weekday_means = approach(self.weekday_means, mean, self.ALPHA)
        else:
            weight = np.maximum(self.ALPHA, 1.0 / np.maximum(self.n_weekend_days, 1))[:, np.newaxis]
            self.weekend_offsets = approach(self.weekend_offsets, mean - self.weekday_means, weight)
        self.sums, self.counts = np.zeros_like(self.sums), np.zeros_like(self.counts)

    def add(self, time, row):
        expected = self.expected(time)
        value = row.astype(np.float64)
        residual = value - expected
        known = ~np.isnan(residual)
        self.distance = np.where(known & (self.distance == 0.0), np.abs(residual), self.distance)
        greatest = self.MAX_DISTANCE * self.distance
        share = min(self.interval / self.DAY, 1.0)
        distance = self.distance + share * (np.minimum(np.abs(residual), greatest) - self.distance)
        self.distance = np.where(known, distance, self.distance)
        bucket = time % self.DAY // (self.DAY // self.BUCKETS)
        self.sums[:, bucket] += np.where(known, expected + np.clip(residual, -greatest, greatest), value)
        self.counts[:, bucket] += 1


def approach(means, new, weight):
    """Moves means towards new values where there are any; NaN takes the value."""
    moved = np.where(np.isnan(means), new, means + weight * (new - means))
    return np.where(np.isnan(new), means, moved)


class PotThreshold:
    """The threshold for one alert per day."""

    HOUR, KEPT_HOURS, PEAKS_PER_DAY, CAP_FACTOR, MIN_THRESHOLD, MAX_WIDTH = 3_600_000, 336, 2.0, 1.1, 0.7, 5.0

    def __init__(self, state):
        self.hours = [tuple(hour) for hour in state["hours"]]
        self.current = tuple(state["current"]) if state["current"] else None
        self.n_rows = state["n_rows"]
        self.refit()

    def value_at(self, time):
        hour = time // self.HOUR
        if self.current and self.current[0] < hour:
            self.hours.append(self.current)
            self.current = None
            self.hours = [known for known in self.hours if known[0] >= hour - self.KEPT_HOURS]
            self.refit()
        return self.width() * self.value

    def add(self, time, score):
        self.n_rows += 1
        capped = min(score, self.CAP_FACTOR * (self.value if self.one_per_day is None else self.one_per_day))
        hour, most, most_capped = self.current or (time // self.HOUR, -np.inf, -np.inf)
        self.current = (max(hour, time // self.HOUR), max(most, score), max(most_capped, capped))

    def width(self):
        """The factor for little history."""
        rows, hours = float(max(self.n_rows, 1)), float(len(self.hours))
        for_rows = 400.0 / (rows * (1.0 + rows / 600.0))
        return min(1.0 + for_rows + 6.0 / (1.0 + hours) * max(1.0 - hours / 120.0, 0.0), self.MAX_WIDTH)

    def refit(self):
        days = len(self.hours) / 24.0
        most = [-np.inf] + [most for _, most, _ in self.hours] + [-np.inf]
        peaks = [h for n, h in enumerate(self.hours, 1) if most[n] > most[n - 1] and most[n] >= most[n + 1]]
        capped = sorted((peak for _, _, peak in peaks), reverse=True)
        # Rounds half up, as promforest does.
        tail = min(int(np.floor(self.PEAKS_PER_DAY * days + 0.5)), max(len(capped) - 1, 0))
        value = capped[0] if capped else self.MIN_THRESHOLD
        if tail:
            excess = np.cumsum(capped[:tail])[-1] / tail - capped[tail]
            value = capped[tail] + excess * np.log(tail / days)
        self.one_per_day = value if days >= 1.0 and tail else None
        self.value = max(value, self.MIN_THRESHOLD)
