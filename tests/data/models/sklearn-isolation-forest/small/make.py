"""Forests that the autologged ones do not show: fewer features a tree, a fitted offset through skops, no
names, another pickle protocol. Writes a folder per model, as MLflow would, without MLflow."""
import json, pathlib, pickle, sys
import numpy as np, skops.io, sklearn
from sklearn.ensemble import IsolationForest

out = pathlib.Path(sys.argv[1])
rng = np.random.default_rng(0)
train = rng.standard_t(3, size=(300, 6))
rows = np.vstack([train[:40], train[:20] * 100, np.zeros((1, 6))])
np.savetxt(out / "input.csv", rows, delimiter=",", fmt="%.17g")
def save(name, write, **params):
    forest = IsolationForest(n_estimators=5, random_state=0, **params).fit(train)
    write(forest, out / f"{name}")
    columns = [forest.score_samples(rows), forest.decision_function(rows), forest.predict(rows)]
    lines = [f"{s:.17g},{d:.17g},{p}" for s, d, p in zip(*columns)]
    (out / f"{name}.expected.csv").write_text("\n".join(["score_samples,decision_function,predict", *lines, ""]))
def dump(protocol):
    return lambda forest, path: path.write_bytes(pickle.dumps(forest, protocol))
save("half-features.pkl", dump(4), max_features=0.5, max_samples=64, contamination=0.1, bootstrap=True)
save("half-features.skops", lambda f, p: skops.io.dump(f, p, compression=8), max_features=0.5, max_samples=64, contamination=0.1)
for protocol in (2, 3, 5):
    save(f"protocol-{protocol}.pkl", dump(protocol), max_samples=16)
save("one-row.pkl", dump(4), max_samples=1)
