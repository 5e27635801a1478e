#!/usr/bin/env bash
# Every check and every test: tests/run.sh
# Format, lints, unit tests and documentation, without other programs: tests/run.sh fast
#
# The full run installs the programs that it needs first (tests/components.sh). Both stop at the first failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

stage=''
began=0
begin() {
    finish
    stage=$1
    began=$SECONDS
    printf '\n======== %s\n' "$stage"
}
finish() {
    [ -z "$stage" ] || printf '======== %s: ok, %s s\n' "$stage" $((SECONDS - began))
    stage=''
}
report() {
    local status=$?
    if [ "$status" -ne 0 ]; then
        printf '\n======== %s: FAILED after %s s\n' "${stage:-setup}" $((SECONDS - began)) >&2
    fi
}
trap report EXIT

command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
command -v cargo >/dev/null || die "cargo is not in PATH: install Rust (https://rustup.rs)"
cargo fmt --version >/dev/null 2>&1 || die "cargo fmt is missing: rustup component add rustfmt"
cargo clippy --version >/dev/null 2>&1 || die "cargo clippy is missing: rustup component add clippy"

check_format() {
    begin "cargo fmt"
    cargo fmt --all --check
    cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
}
check_docs() {
    begin "cargo doc"
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
}

case ${1:-} in
'') ;;
fast)
    check_format
    begin "cargo clippy"
    cargo clippy --locked --lib --bins -- -D warnings
    begin "Unit tests"
    cargo test --locked --lib
    check_docs
    finish
    printf '\nThe fast checks passed, %s s.\n' "$SECONDS"
    exit
    ;;
*) die "usage: tests/run.sh [fast]" ;;
esac
command -v python3 >/dev/null || die "python3 is missing"

begin "Components"
components=$(tests/components.sh)
printf '%s\n' "$components"
eval "$components"

begin "Shell scripts"
scripts=(deploy/quickstart.sh deploy/demo/demo.sh deploy/release.sh deploy/packages/*.sh deploy/mlflow/serve.sh tests/components.sh tests/compliance/receiver.sh tests/fuzz/run.sh tests/run.sh .ci/run)
if command -v shellcheck >/dev/null; then
    shellcheck "${scripts[@]}"
else
    echo "no shellcheck here: only the syntax is checked"
    for script in "${scripts[@]}"; do bash -n "$script"; done
fi

begin "Dashboards"
tests/dashboard.py deploy/grafana/dashboards/*.json

begin "Containers"
"$PROMFOREST_PYTHON" tests/compose.py deploy/compose.yaml

begin "Prometheus configuration and rules"
for promtool in "$PROMTOOL_2" "$PROMTOOL_3"; do
    "$promtool" --version 2>&1 | head -n 1
    "$promtool" check config deploy/prometheus/prometheus.yml
    "$promtool" check rules deploy/prometheus/promforest.rules.yml
    "$promtool" test rules deploy/prometheus/promforest.rules.test.yml
done

check_format

begin "cargo clippy"
cargo clippy --locked --all-targets --features kafka -- -D warnings
cargo clippy --locked --lib --bins -- -D warnings

# Most tests wait for servers, so two files run at a time. Their output comes file by file.
test_file() {
    local log
    log=$(mktemp)
    # xargs stops at a status of 255.
    cargo test --locked --features kafka --test "$1" >"$log" 2>&1 || { cat "$log" && rm "$log" && exit 255; }
    cat "$log" && rm "$log"
}
export -f test_file

begin "cargo test"
cargo test --locked --features kafka --no-run
cargo test --locked --features kafka --lib --bins
for file in tests/*.rs tests/*/main.rs; do basename "${file%/main.rs}" .rs; done | xargs -n 1 -P 2 bash -c "test_file \$0"

check_docs

finish
printf '\nEverything passed, %s s.\n' "$SECONDS"
