#!/usr/bin/env bash
# The public compliance suite for remote write receivers, against promforest:
#
#     tests/compliance/receiver.sh CHECKOUT
#
# CHECKOUT is a clone of github.com/prometheus/compliance. Go 1.25 or newer gets the suite's modules; PROMFOREST names the
# program, built here if it is not set. Not a part of tests/run.sh: the suite is not ours, and lives on the network.
#
# The suite takes 400 for an answer almost everywhere it means success. So its log is read once more: every case that is no
# mistake has to be answered 204, and every mistake as it should be.
set -euo pipefail
suite=$(cd "${1:?the path of a checkout of github.com/prometheus/compliance}/remotewrite/receiver" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ -z "${PROMFOREST:-}" ]; then
    cargo build --release --locked
    PROMFOREST=${CARGO_TARGET_DIR:-target}/release/promforest
fi
work=$(mktemp -d)
trap 'kill "$program" 2>/dev/null || true; wait "$program" 2>/dev/null || true; rm -rf "$work"' EXIT

cat >"$work/promforest.yml" <<YAML
remote_write: []
remote_read: []
detectors:
  - {name: suite, match: ['{__name__=~".+"}'], by: [job], transform: value}
YAML
"$PROMFOREST" --config.file "$work/promforest.yml" --storage.path "$work/data" --web.listen-address 127.0.0.1:0 \
    2>"$work/promforest.log" &
program=$!
address=
for _ in $(seq 100); do
    address=$(sed -n 's/.* address=\([^ ]*\).*/\1/p' "$work/promforest.log")
    [ -n "$address" ] && break
    sleep 0.1
done
[ -n "$address" ] || { cat "$work/promforest.log" >&2; exit 1; }
echo "remote_write: [{name: promforest, url: 'http://$address/api/v1/write'}]" >"$work/suite.yml"

passed=0
(cd "$suite" && PROMETHEUS_RW2_COMPLIANCE_CONFIG_FILE=$work/suite.yml PROMETHEUS_RW2_COMPLIANCE_RECEIVERS=promforest \
    go test -count=1 -json ./...) >"$work/results.json" || passed=$?

python3 - "$work/results.json" <<'PYTHON'
import json
import re
import sys
from collections import Counter

# What is wrong with a case by its name, and the answer to it.
MISTAKES = [
    (r"TestBadContent(Types|Encodings)/", 415),
    (r"TestCorruptRequestBody|TestRW1ErrorHandling", 400),
    (r"without_name|with_empty_name|empty_metric", 400),
    (r"bad_count_histogram|metadata_without_data", 400),
]

codes, failed = {}, []
for line in open(sys.argv[1]):
    event = json.loads(line)
    test, text = event.get("Test", ""), event.get("Output", "")
    if event["Action"] == "fail" and test:
        failed.append(test)
    if answer := re.search(r'Response (code|body) from "promforest": (.*)', text):
        codes.setdefault(test, []).append(answer[2])
wrong = []
for test, answers in sorted(codes.items()):
    expected = next((code for mistake, code in MISTAKES if re.search(mistake, test)), 204)
    if answers[0] != str(expected):
        wrong.append(f"{test}: expected {expected}: {' '.join(answers)}")
print(f"{len(codes)} requests: {dict(Counter(answers[0] for answers in codes.values()))}; "
      f"the suite fails {len(failed)} of its tests")
for test in failed:
    print("failed:", test)
for line in wrong:
    print("wrong answer:", line)
sys.exit(1 if failed or wrong or not codes else 0)
PYTHON
exit "$passed"
