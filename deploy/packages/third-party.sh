#!/usr/bin/env bash
# Prints the crates in the program and the texts of their licences: deploy/packages/third-party.sh [--target TRIPLE]
#
# Each text is printed once, after the names of the crates whose packages have it. The same Cargo.lock and target give the same bytes.
set -euo pipefail
export LC_ALL=C

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
die() {
    printf 'third-party: error: %s\n' "$*" >&2
    exit 1
}
command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
command -v cargo >/dev/null || die "cargo is not in PATH: install Rust (https://rustup.rs)"

# What is linked: neither macros nor what tests and the build need. A line is: NAME vVERSION|LICENCE
crates=$(cargo tree --locked --edges normal,no-proc-macro --prefix none --no-dedupe --format '{p}|{l}' "$@" |
    grep -v '^promforest v' | sort -u) || die "cargo tree failed"
manifests=$(cargo metadata --locked --format-version 1 | grep -o '"manifest_path":"[^"]*"' | cut -d '"' -f 4) ||
    die "cargo metadata failed"

declare -A users=() texts=() # by the checksum of a text: the crates that have it, a file with it
declare -A without=()
while IFS='|' read -r package _; do
    crate=${package/ v/-}
    folder=$(grep -F "/$crate/Cargo.toml" <<<"$manifests") || die "the source of $crate is not there: cargo fetch --locked"
    without[$crate]=1
    while read -r file; do
        sum=$(tr -d '\r' <"$file" | sha256sum)
        texts[$sum]=$file
        [[ " ${users[$sum]:-} " == *" $crate "* ]] || users[$sum]+="${users[$sum]:+ }$crate"
        unset "without[$crate]"
    done < <(find "${folder%/Cargo.toml}" -type f ! -name '*.rs' \
        \( -iname 'licen[cs]e*' -o -iname 'unlicen[cs]e*' -o -iname 'copying*' -o -iname 'copyright*' -o -iname 'notice*' \) | sort)
done <<<"$crates"

cat <<TEXT
promforest is linked with these crates and with the standard library of Rust (MIT OR Apache-2.0). Their licences:

$(sed 's/^\([^ ]*\) v\(.*\)|/\1 \2: /' <<<"$crates")

The packages of these crates have no text of a licence. Each of them allows Apache-2.0, the licence of promforest itself:
$(printf '%s\n' "${!without[@]}" | sort)
TEXT
for sum in "${!users[@]}"; do printf '%s\t%s\n' "${users[$sum]}" "$sum"; done | sort | while IFS=$'\t' read -r names sum; do
    printf '\n%s\n%s\n\n' "$(printf -- '-%.0s' {1..100})" "$(fold -s -w 100 <<<"$names")"
    tr -d '\r' <"${texts[$sum]}"
done
