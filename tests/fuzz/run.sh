#!/usr/bin/env bash
# Fuzzes every decoder for a while: tests/fuzz/run.sh [SECONDS [TARGET...]]
#
# Needs a nightly toolchain and cargo-fuzz (cargo install cargo-fuzz --locked). Two targets run at a time; JOBS=N changes
# that. What is found is in tests/fuzz/artifacts, and the logs are in tests/fuzz/target/logs. Ends with 1 when something is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

seconds=${1:-60}
shift || true
# The versions that the product is built with; cargo adds libfuzzer-sys to them.
cp ../../Cargo.lock Cargo.lock
mapfile -t targets < <(printf '%s\n' "$@" | grep . || cargo +nightly fuzz list --fuzz-dir .)

logs=$PWD/target/logs
mkdir -p "$logs"
(cd ../.. && PROMFOREST_FUZZ_CORPUS=$PWD/tests/fuzz/corpus \
    cargo test --quiet --locked --test fuzz write_seeds -- --ignored) >"$logs/seeds.log" 2>&1 ||
    { cat "$logs/seeds.log" >&2 && exit 1; }
cargo +nightly fuzz build --fuzz-dir . >"$logs/build.log" 2>&1 || { tail -n 40 "$logs/build.log" >&2 && exit 1; }

one() {
    cargo +nightly fuzz run --fuzz-dir . "$1" -- -max_total_time="$2" -rss_limit_mb=2048 -timeout=20 -max_len=65536 \
        -print_final_stats=1 >"$3/$1.log" 2>&1
}
export -f one
printf '%s\0' "${targets[@]}" |
    nice -n 19 xargs -0 -P "${JOBS:-2}" -I '{}' bash -c 'one "$@" || true' one '{}' "$seconds" "$logs"

crashes=0
printf '%-16s %12s %10s %10s %8s\n' target executions coverage features crashes
for target in "${targets[@]}"; do
    log=$logs/$target.log
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    last=$(grep -o 'cov: [0-9]* ft: [0-9]*' "$log" | tail -n 1 || true)
    found=$(find artifacts/"$target" -type f 2>/dev/null | wc -l)
    # The number of runs is not printed when it ends with a crash.
    [ -n "$runs" ] || runs=$(sed -n 's/^#\([0-9]*\)\t.*/\1/p' "$log" | tail -n 1)
    crashes=$((crashes + found))
    # shellcheck disable=SC2086
    set -- $last
    printf '%-16s %12s %10s %10s %8s\n' "$target" "${runs:--}" "${2:--}" "${4:--}" "$found"
done
[ "$crashes" -eq 0 ]
