"""Scores rows with a promforest model, in numpy and pyarrow alone.

    import mlflow
    mlflow.pyfunc.load_model(folder).predict(frame)

`frame` has the model's columns (any order; a plain array needs the model's order). The answer has, for every row:

score_samples, decision_function, predict
    as scikit-learn's IsolationForest names them; decision_function < 0 and predict -1 are anomalous
decision, score
    what promforest publishes: the same inside of the range of training; a row outside of it scores the
    higher the further out it lies; score 1 is the threshold
"""

import json
import pathlib

import numpy as np
import pyarrow as pa

EULER_GAMMA = 0.5772156649015329
LEAST_WIDTH = 0.1


def _load_pyfunc(path):
    """What MLflow calls with the folder of the model."""
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
        self.forest = FORESTS[self.meta["kind"]](self.meta["forest"], nodes)

    def predict(self, rows, params=None):
        import pandas as pd

        index = getattr(rows, "index", None)
        if hasattr(rows, "columns"):
            missing = [name for name in self.columns if name not in rows.columns]
            if missing:
                raise ValueError(f"the rows have no column {missing[0]!r}")
            rows = rows[self.columns].to_numpy()
        rows = np.asarray(rows, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != len(self.columns):
            raise ValueError(f"rows have shape {rows.shape}, must be [n, {len(self.columns)}]")
        offset = self.meta["forest"]["offset"]
        score_samples, beyond = self.forest.score(rows)
        decision = score_samples - offset
        return pd.DataFrame(
            {
                "score_samples": score_samples,
                "decision_function": decision,
                "predict": np.where(decision < 0, -1, 1),
                "decision": beyond - offset,
                "score": beyond / offset,
            },
            index=index,
        )


def from_path(path, unit):
    """The score of a sum of path lengths over all trees."""
    return -np.exp2(-(path / unit if unit > 0 else np.ones_like(path)))


def split_by_tree(nodes, columns):
    """The columns of each tree, by their names."""
    starts = np.flatnonzero(np.diff(nodes["tree"].to_numpy(), prepend=-1))
    arrays = (np.split(column, starts[1:]) for column in columns.values())
    return [dict(zip(columns, tree)) for tree in zip(*arrays)]


class IsolationForest:
    """Cuts along the axes: Liu, Ting and Zhou 2008, with scikit-learn's semantics."""

    def __init__(self, meta, nodes):
        names = ["left_child", "right_child", "feature", "threshold", "n_node_samples", "missing_go_to_left"]
        self.trees = split_by_tree(nodes, {name: nodes[name].to_numpy() for name in names})
        self.unit = len(self.trees) * float(average_path_length(meta["max_samples"]))
        # Their decimals are the shortest that mean a number of 32 bits.
        ranges = None if meta["ranges"] is None else np.array(meta["ranges"], dtype=np.float32)
        self.ranges = None if ranges is None else ranges.astype(np.float64)

    def score(self, rows):
        ends = self.share_beyond(rows)
        plain, expected = np.zeros(len(rows)), np.zeros(len(rows))
        everyone = np.arange(len(rows))
        for tree in self.trees:
            at = np.zeros(len(rows), dtype=np.int64)
            depth = np.zeros(len(rows))
            alive, sum_beyond = np.ones(len(rows)), np.zeros(len(rows))
            while True:
                going = everyone[tree["left_child"][at] >= 0]
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
            plain += leaf
            expected += sum_beyond + alive * leaf
        return from_path(plain, self.unit), from_path(expected, self.unit)

    def share_beyond(self, rows):
        """How likely a cut isolates each value beyond the range of training."""
        rows = rows.astype(np.float64)
        if self.ranges is None:
            return np.zeros_like(rows)
        least, greatest = self.ranges[:, 0], self.ranges[:, 1]
        width = np.maximum(greatest - least, LEAST_WIDTH * np.maximum(np.abs(least), np.abs(greatest)))
        beyond = np.maximum(least - rows, rows - greatest)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = beyond / (width + beyond)
        return np.where(np.isposinf(beyond), 1.0, np.where(beyond > 0, share, 0.0))


class ExtendedIsolationForest:
    """Slanted cuts of standardised columns: Hariri, Carrasco Kind and Brunner 2019.

    Columns are rounded to 32 bits where promforest rounds them, and sums are added up in its order: a value on
    the other side of a cut would be another leaf.
    """

    def __init__(self, meta, nodes):
        names = ["left_child", "right_child", "cut", "low", "high", "n_node_samples"]
        columns = {name: nodes[name].to_numpy() for name in names}
        for name in ["columns", "coefficients"]:
            values = nodes[name].combine_chunks().flatten().to_numpy()
            columns[name] = values.reshape(-1, meta["width"])
        self.trees = split_by_tree(nodes, columns)
        self.unit = len(self.trees) * float(average_path_length(meta["max_samples"]))
        self.columns = meta["columns"]
        self.scales = np.array(meta["scales"], dtype=np.float64)
        self.residuals = None
        if meta["residuals"] is not None:
            self.residuals = {name: np.array(values) for name, values in meta["residuals"].items()}
            n_columns = len(self.columns)
            self.residuals["inverse"] = self.residuals["inverse"].reshape(n_columns, n_columns)

    def score(self, rows):
        with np.errstate(over="ignore", invalid="ignore"):
            values = self.coordinates(rows)
        path = np.zeros(len(rows))
        everyone = np.arange(len(rows))
        for tree in self.trees:
            at = np.zeros(len(rows), dtype=np.int64)
            depth = np.zeros(len(rows))
            alive, ended = np.ones(len(rows)), np.zeros(len(rows))
            while True:
                going = everyone[tree["left_child"][at] >= 0]
                if not len(going):
                    break
                node = at[going]
                terms = tree["coefficients"][node] * values[going[:, np.newaxis], tree["columns"][node]]
                mixture = np.cumsum(terms, axis=1)[:, -1]
                low, high = tree["low"][node], tree["high"][node]
                # Had the row been in the sample, a cut on the way out to it would have isolated it.
                beyond = np.maximum(np.maximum(low - mixture, mixture - high), 0.0)
                end = beyond / (high - low + beyond)
                depth[going] += 1
                ended[going] += alive[going] * end * depth[going]
                alive[going] *= 1.0 - end
                left = mixture <= tree["cut"][node]
                at[going] = np.where(left, tree["left_child"][node], tree["right_child"][node])
            path += ended + alive * (depth + average_path_length(tree["n_node_samples"][at]))
        score_samples = from_path(path, self.unit)
        return score_samples, score_samples

    def coordinates(self, rows):
        """The standardised columns, and then what of each the others do not explain, standardised too."""
        values = [standardise(rows, self.scales)[:, self.columns]]
        if self.residuals is not None:
            values.append(standardise(self.unexplained(rows[:, self.columns]), self.residuals["scales"]))
        greatest = np.finfo(np.float32).max
        values = np.nan_to_num(np.hstack(values), nan=0.0, posinf=greatest, neginf=-greatest)
        return values.astype(np.float64)

    def unexplained(self, rows):
        deviations, inverse = self.residuals["deviations"], self.residuals["inverse"]
        w = (rows.astype(np.float64) - self.residuals["means"]) / deviations
        w[~np.isfinite(rows)] = 0.0
        mixed = np.zeros_like(w)
        for metric in range(len(inverse)):
            mixed += inverse[:, metric] * w[:, [metric]]
        greatest = float(np.finfo(np.float32).max)
        return np.clip(mixed / np.diag(inverse) * deviations, -greatest, greatest).astype(np.float32)


def standardise(rows, scales):
    return ((rows.astype(np.float64) - scales[:, 0]) / scales[:, 1]).astype(np.float32)


FORESTS = {"isolation_forest": IsolationForest, "extended_isolation_forest": ExtendedIsolationForest}
