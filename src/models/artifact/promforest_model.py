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


class IsolationForest:
    """Cuts along the axes: Liu, Ting and Zhou 2008, with scikit-learn's semantics."""

    def __init__(self, meta, nodes):
        starts = np.flatnonzero(np.diff(nodes["tree"].to_numpy(), prepend=-1))
        names = ["left_child", "right_child", "feature", "threshold", "n_node_samples", "missing_go_to_left"]
        arrays = [nodes[name].to_numpy() for name in names]
        self.trees = [dict(zip(names, columns)) for columns in zip(*(np.split(a, starts[1:]) for a in arrays))]
        self.unit = len(self.trees) * float(average_path_length(meta["max_samples"]))
        # Of 32 bits, written with as few digits as tell them apart: read with 64, they would be others.
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
        return self.from_path(plain), self.from_path(expected)

    def from_path(self, path):
        return -np.exp2(-(path / self.unit if self.unit > 0 else np.ones_like(path)))

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


FORESTS = {"isolation_forest": IsolationForest}
