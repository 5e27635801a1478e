#!/usr/bin/env bash
# Runs the public compliance suite for remote write senders (github.com/prometheus/compliance, its folder
# remotewrite/sender) with promforest's sender: tests/compliance/sender.sh PATH_OF_SUITE
#
# At its revision of 2026-08-06 141 of its cases pass and 8 do not, each for a reason:
#   no_retry_on_400, no_retry_on_413   it counts requests: a refused batch is narrowed down, each part sent once
#   no_retry_on_401, no_retry_on_404   a target that is set up wrong is asked again, and nothing is lost meanwhile
#   samples_with_metadata              type and help are known of promforest's own metrics, not of what is scraped
#   samples_with_exemplars, histogram_with_metadata_and_exemplars   optional, and promforest has none to send
#   high_cardinality                   of the 50 lines of its page 10 have a number for a value; it wants 20
#
# The suite has its targets compiled in: a copy of it gets one more, the example compliance_sender. Needs Go, and
# the modules of the suite. The last lines sum it up; TEST_FLAGS goes to its tests, as in TEST_FLAGS='-run Retry'.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
suite=${1:?"usage: tests/compliance/sender.sh PATH_OF_SUITE"}
[ -f "$suite/main_test.go" ] || suite=$suite/remotewrite/sender
[ -f "$suite/main_test.go" ] || { echo "error: no main_test.go in $1: it is no suite for senders" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$suite/." "$work"

cd "$here"
cargo build --locked --quiet --example compliance_sender
program=${CARGO_TARGET_DIR:-$here/target}/debug/examples/compliance_sender

cat > "$work/targets/promforest.go" <<GO
package targets

// RunPromforest runs promforest's sender.
func RunPromforest(opts TargetOptions) error {
	return runCommand("$program", opts.Timeout, opts.ScrapeTarget, opts.ReceiveEndpoint)
}
GO
sed -i 's/^\(\t*\)"prometheus": targets.RunPrometheus,/\1"promforest": targets.RunPromforest,/' "$work/main_test.go"
grep -q RunPromforest "$work/main_test.go" || { echo "error: the suite lists its targets in another way" >&2; exit 1; }

cd "$work"
status=0
# shellcheck disable=SC2086 # several flags
PROMETHEUS_RW2_COMPLIANCE_SENDERS=promforest go test -count=1 -v -parallel 8 ${TEST_FLAGS:-} . > results.log 2>&1 || status=$?
grep -E '^ *--- FAIL' results.log || true
grep -E '^ +[a-z_]+_test\.go:[0-9]+: .*(not met|Error)' results.log || true
printf '%s passed, %s failed, %s skipped\n' \
    "$(grep -c -E '^ +--- PASS' results.log)" "$(grep -c -E '^ +--- FAIL' results.log)" "$(grep -c -E '^ *--- SKIP' results.log)"
exit "$status"
