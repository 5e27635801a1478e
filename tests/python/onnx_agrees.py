"""Does onnxruntime score a table as we do?

    onnx_agrees.py MODEL.onnx INPUT.parquet EXPECTED.csv

INPUT holds the columns that the model's metadata names, as doubles; EXPECTED the columns score_samples,
decision_function and predict, row by row. Needs numpy, onnx, onnxruntime and pyarrow. Prints the largest
difference; exit code 1 if it is above 1e-12 or a prediction differs.
"""

import json
import sys

import numpy
import onnx
import onnxruntime
import pyarrow.csv
import pyarrow.parquet

LIMIT = 1e-12


def main(model_path, input_path, expected_path):
    onnx.checker.check_model(model_path, full_check=True)
    session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    names = json.loads(session.get_modelmeta().custom_metadata_map["promforest.columns"])
    table = pyarrow.parquet.read_table(input_path)
    values = numpy.column_stack([table[name].to_numpy() for name in names]).astype(numpy.float64)
    expected = pyarrow.csv.read_csv(expected_path)

    outputs = ["score_samples", "decision_function", "predict"]
    found = dict(zip(outputs, session.run(outputs, {"X": values})))
    largest = 0.0
    for name in outputs:
        ours = expected[name].to_numpy()
        theirs = found[name]
        if theirs.shape != (len(ours), 1):
            sys.exit(f"{name}: shape {theirs.shape}, expected ({len(ours)}, 1)")
        difference = numpy.abs(theirs[:, 0] - ours)
        worst = int(difference.argmax())
        limit = 0.0 if name == "predict" else LIMIT
        if not difference[worst] <= limit:  # NaN too
            sys.exit(f"{name}: row {worst} is {theirs[worst, 0]!r} in onnxruntime, {ours[worst]!r} here")
        largest = max(largest, float(difference[worst]))
    print(f"{len(values)} rows, {len(names)} columns: largest difference {largest:.2e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
