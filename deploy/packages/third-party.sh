#!/usr/bin/env bash
# Prints the crates that are linked into the program, and the texts of their licences: deploy/packages/third-party.sh [TARGET]
#
# Each text is printed once, after the names of the crates whose packages have it. The same Cargo.lock and target of the compiler
# give the same bytes. FEATURES in the environment names features of the program.
set -euo pipefail
export LC_ALL=C

die() {
    printf 'third-party: error: %s\n' "$*" >&2
    exit 1
}

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
command -v cargo >/dev/null || die "cargo is not in PATH: install Rust (https://rustup.rs)"
target=${1:-$(rustc -vV | sed -n 's/^host: //p')}

# NAME vVERSION|LICENCE, a line each, without macros and what only the build and the tests need.
crates=$(cargo tree --locked --features "${FEATURES:-}" --target "$target" --edges normal,no-proc-macro --prefix none \
    --no-dedupe --format '{p}|{l}' |
    grep -v '^promforest v' | sort -u) || die "cargo tree failed"
manifests=$(cargo metadata --locked --features "${FEATURES:-}" --filter-platform "$target" --format-version 1 |
    grep -o '"manifest_path":"[^"]*"' | cut -d '"' -f 4) || die "cargo metadata failed"

declare -A users=() texts=() # the crates that have a text, and a file with it, by its checksum
without=()
while IFS='|' read -r package licence; do
    crate=${package/ v/-}
    manifest=$(grep -F "/$crate/Cargo.toml" <<<"$manifests") || die "no source of $crate: run cargo fetch --locked"
    files=$(find "${manifest%/*}" -type f ! -name '*.rs' \( -iname 'licen[cs]e*' -o -iname 'unlicen[cs]e*' \
        -o -iname 'copying*' -o -iname 'copyright*' -o -iname 'notice*' \) | sort)
    if [ -z "$files" ]; then
        [[ $licence == *Apache-2.0* ]] || die "$crate has no text of its licence, $licence"
        without+=("$crate")
        continue
    fi
    while read -r file; do
        sum=$(tr -d '\r' <"$file" | sha256sum)
        texts[$sum]=$file
        [[ " ${users[$sum]:-} " == *" $crate "* ]] || users[$sum]+="${users[$sum]:+ }$crate"
    done <<<"$files"
done <<<"$crates"

printf 'promforest is linked with the standard library of Rust (MIT OR Apache-2.0) and with these crates:\n\n'
awk -F '|' '{ sub(/ v/, " ", $1); print $1 ": " $2 }' <<<"$crates"
[ ${#without[@]} -eq 0 ] ||
    printf '\nWithout a text of their own, under Apache-2.0, as promforest: %s\n' "${without[*]}"
for sum in "${!users[@]}"; do printf '%s\t%s\n' "${users[$sum]}" "$sum"; done | sort | while IFS=$'\t' read -r names sum; do
    printf '\n%s\n%s\n\n' "$(printf -- '-%.0s' {1..100})" "$(fold -s -w 100 <<<"$names")"
    tr -d '\r' <"${texts[$sum]}"
done
