#!/usr/bin/env python3
"""Turns saved scikit-learn isolation forests into text that any language reads.

    convert.py MODELS OUT

MODELS is a folder as described in README.md; OUT receives one `<forest>.csv` per different forest, the
inputs, the expected outputs and `models.csv`, which says what belongs together.

Pickles are read by an unpickler that builds nothing but numpy arrays and inert stand-ins.
"""

import io
import json
import pathlib
import pickle
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FIELDS = ["left_child", "right_child", "feature", "threshold", "n_node_samples", "missing_go_to_left"]


class Inert:
    """Stands in for an estimator or a tree: keeps its state, does nothing."""

    def __init__(self, *args):
        self.args = args

    def __setstate__(self, state):
        self.state = state


class Forest(Inert):
    pass


class Estimator(Inert):
    pass


class Tree(Inert):
    pass


class Reader(pickle.Unpickler):
    """Knows seven names and refuses every other."""

    NAMES = {
        ("sklearn.ensemble._iforest", "IsolationForest"): Forest,
        ("sklearn.tree._classes", "ExtraTreeRegressor"): Estimator,
        ("sklearn.tree._tree", "Tree"): Tree,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        ("numpy._core.multiarray", "scalar"): np._core.multiarray.scalar,
    }

    def find_class(self, module, name):
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return self.NAMES[module, name]


def from_pickle(path):
    with open(path, "rb") as file:
        state = Reader(file).load().state
    trees = [estimator.state["tree_"].state["nodes"] for estimator in state["estimators_"]]
    return state, trees, state["estimators_features_"]


def from_skops(path):
    """The zip entries as data: JSON and arrays, no code."""
    with zipfile.ZipFile(path) as archive:
        schema = json.loads(archive.read("schema.json"))

        def value(node):
            match node["__loader__"]:
                case "JsonNode":
                    return json.loads(node["content"]) if node.get("is_json") else node["content"]
                case "NdArrayNode" if "file" in node:
                    return np.load(io.BytesIO(archive.read(node["file"])), allow_pickle=False)
                case "ListNode" | "TupleNode":
                    return [value(item) for item in node["content"]]
                case "DictNode":
                    return {key: value(item) for key, item in node["content"].items()}
                case "ObjectNode" | "TreeNode":
                    content = node["content"]
                    return value(content) if "__loader__" in content else {k: value(v) for k, v in content.items()}
                case _:
                    return None

        state = value(schema)
    trees = [estimator["tree_"]["nodes"] for estimator in state["estimators_"]]
    return state, trees, state["estimators_features_"]


def text(number):
    """Enough digits to read the same number again."""
    number = float(number)
    return "NaN" if number != number else repr(number)


def forest_csv(trees, columns):
    """One line per node; features are columns of the table."""
    lines = ["tree," + ",".join(FIELDS)]
    for number, (nodes, columns) in enumerate(zip(trees, columns, strict=True)):
        for node in nodes:
            left, right, feature, threshold, count, missing = (node[field] for field in FIELDS)
            feature = columns[feature] if feature >= 0 else feature
            cells = [number, left, right, feature, text(threshold), count, int(missing)]
            lines.append(",".join(map(str, cells)))
    return "\n".join(lines) + "\n"


def table_csv(path):
    """The features; the index of the frame, a column too, is no float."""
    table = pq.read_table(path)
    columns = [column.to_numpy() for column in table.columns if column.type == pa.float64()]
    return "\n".join(",".join(map(text, row)) for row in zip(*columns)) + "\n"


def expected_csv(path):
    """The three last columns, as they are: score_samples, decision_function, predict."""
    lines = path.read_text().splitlines()
    return "\n".join(",".join(line.split(",")[-3:]) for line in lines) + "\n"


def main(models, out):
    known = {}

    def write(name, content):
        """Writes each content once; returns the name it goes by."""
        if content not in known:
            known[content] = name
            (out / name).write_text(content)
        return known[content]

    index = ["model,forest,n_features,max_samples,offset,input,expected"]

    def case(model, folder, input_path, input_name, expected_path, expected_name):
        if (folder / "model.pkl").exists():
            state, trees, columns = from_pickle(folder / "model.pkl")
        else:
            state, trees, columns = from_skops(folder / "model.skops")
        forest = write(f"{folder.name}.csv", forest_csv(trees, columns))
        table = write(input_name, table_csv(input_path))
        expected = write(expected_name, expected_csv(expected_path))
        offset, width = text(state["offset_"]), state["n_features_in_"]
        index.append(f"{model},{forest},{width},{state['max_samples_']},{offset},{table},{expected}")

    for folder in sorted(models.glob("sklearn-*/*")):
        if (folder / "model.pkl").exists() or (folder / "model.skops").exists():
            model = f"{folder.parent.name}/{folder.name}"
            expected = f"{folder.name}.expected.csv"
            case(model, folder, models / "input.parquet", "input.csv", folder / "expected.csv", expected)
    edges, folder = models / "edges", models / "sklearn-1.9.1" / "ms256-auto"
    for name, expected in [("f32_edges", "expected.csv"), ("nonfinite", "expected_nonfinite.csv")]:
        source = edges / f"input_{name}.parquet"
        case(f"edges/{name}", folder, source, f"{name}.csv", edges / expected, f"{name}.expected.csv")
    (out / "models.csv").write_text("\n".join(index) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
