"""Grows an extended isolation forest in plain numpy and scores rows with it, as golden data.

    python extended.py .
"""

import math
import sys
from pathlib import Path

import numpy as np

N_TREES, MAX_SAMPLES, WIDTH = 50, 32, 3
EULER_GAMMA = 0.577_215_664_901_532_9


def c(n):
    if n < 2:
        return 0.0
    return 1.0 if n == 2 else 2 * (math.log(n - 1) + EULER_GAMMA) - 2 * (n - 1) / n


def mixture(row, columns, coefficients):
    """In order, because the last bits depend on it."""
    total = 0.0
    for column, coefficient in zip(columns, coefficients):
        total += coefficient * float(row[column])
    return total


def grow(rng, rows):
    """Nodes of one tree, parents first: left, right, count, columns, coefficients, cut, low, high."""
    nodes = []
    waiting = [(rows, 0, None, None)]
    while waiting:
        rows, depth, parent, side = waiting.pop()
        if parent is not None:
            nodes[parent][side] = len(nodes)
        node = [-1, -1, len(rows), [0] * WIDTH, [0.0] * WIDTH, 0.0, 0.0, 0.0]
        nodes.append(node)
        if depth == math.ceil(math.log2(MAX_SAMPLES)) or len(rows) < 2:
            continue
        columns = rng.integers(rows.shape[1], size=WIDTH).tolist()
        coefficients = rng.standard_normal(WIDTH).astype(np.float32).tolist()
        values = np.array([mixture(row, columns, coefficients) for row in rows])
        low, high = values.min(), values.max()
        if low == high:
            continue
        cut = rng.uniform(low, high)
        node[3:] = columns, coefficients, float(cut), float(low), float(high)
        waiting.append((rows[values > cut], depth + 1, len(nodes) - 1, 1))
        waiting.append((rows[values <= cut], depth + 1, len(nodes) - 1, 0))
    return nodes


def path_length(nodes, row):
    at, depth, length, alive = 0, 0, 0.0, 1.0
    while True:
        left, right, count, columns, coefficients, cut, low, high = nodes[at]
        if left < 0:
            return length + alive * (depth + c(count))
        value = mixture(row, columns, coefficients)
        beyond = max(low - value, value - high, 0.0)
        p = beyond / (high - low + beyond)
        length += alive * p * (depth + 1)
        alive *= 1 - p
        at = left if value <= cut else right
        depth += 1


def write(path, header, lines):
    text = [header] if header else []
    text += [",".join(repr(cell) for cell in line) for line in lines]
    path.write_text("\n".join(text) + "\n")


def main(folder):
    rng = np.random.default_rng(0)
    # Four columns: two that go together, one on its own, one that is rarely not 0.
    rows = rng.standard_normal((300, 4))
    rows[:, 1] = rows[:, 0] + 0.1 * rows[:, 1]
    rows[:, 3] = np.where(rng.random(300) < 0.05, rows[:, 3], 0.0)
    rows = rows.astype(np.float32)
    forest = [grow(rng, rows[rng.choice(300, MAX_SAMPLES, replace=False)]) for _ in range(N_TREES)]

    # After the training rows: further and further out, and off the line.
    out = [rows[k] * np.float32(10.0**k) for k in range(20)] + [[1, -1, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0]]
    rows = np.concatenate([rows, np.array(out, dtype=np.float32)])
    unit = N_TREES * c(MAX_SAMPLES)
    scores = [-(2.0 ** -(sum(path_length(nodes, row) for nodes in forest) / unit)) for row in rows]

    terms = [f"{name}{k}" for name in ("column", "coefficient") for k in range(WIDTH)]
    header = ",".join(["tree", "left_child", "right_child", "n_node_samples", *terms, "cut", "low", "high"])
    lines = [
        [number, left, right, count, *columns, *coefficients, cut, low, high]
        for number, nodes in enumerate(forest)
        for left, right, count, columns, coefficients, cut, low, high in nodes
    ]
    write(folder / "extended.csv", header, lines)
    write(folder / "extended.input.csv", None, [[float(value) for value in row] for row in rows])
    write(folder / "extended.expected.csv", "score_samples", [[score] for score in scores])


main(Path(sys.argv[1]))
