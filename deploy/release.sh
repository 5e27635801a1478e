#!/usr/bin/env bash
# Builds a release and packs it: deploy/release.sh [--binary PATH] [--output FOLDER] [--target TRIPLE]
#
#   --binary PATH    pack this program instead of building one; it must run on this machine
#   --output FOLDER  where the files go (default target/release-files)
#   --target TRIPLE  build for this target of the compiler, if it is installed; the program must run on this machine
#
# Makes, for Linux on amd64 or arm64:
#
#   promforest-VERSION-linux-ARCH.tar.gz   program, configuration, units, rules, dashboards, completions, manual page, licences
#   promforest-VERSION-linux-ARCH.debug    debug information of the program, for gdb and perf
#   promforest_VERSION_ARCH.deb, promforest-VERSION-1.ARCH.rpm
#   sha256sums
#
# The same program and commit give the same bytes. Environment:
#   NFPM               nfpm; without it, it is built by Go from the version pinned in deploy/packages
#   SOURCE_DATE_EPOCH  time of the files, in seconds since 1970; without it, that of the commit
set -euo pipefail
umask 022

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() {
    printf 'release: error: %s\n' "$*" >&2
    exit 1
}
usage() {
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

binary=''
output=$repo/target/release-files
target=''
while [ $# -gt 0 ]; do
    case $1 in
        --binary | --output | --target)
            [ -n "${2:-}" ] || die "$1 wants a value"
            printf -v "${1#--}" %s "$2"
            shift 2
            ;;
        -h | --help)
            usage
            exit
            ;;
        *) die "unknown argument $1; deploy/release.sh --help lists what there is" ;;
    esac
done
[ -z "$binary" ] || [ -z "$target" ] || die "--target builds a program, --binary packs one: use one of them"
for program in git gzip objcopy readelf sha256sum tar; do
    command -v "$program" >/dev/null || die "$program is missing (objcopy and readelf are in binutils)"
done

if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    SOURCE_DATE_EPOCH=$(git -C "$repo" log -1 --format=%ct) || die "no commit in $repo: set SOURCE_DATE_EPOCH"
fi
[[ $SOURCE_DATE_EPOCH =~ ^[0-9]+$ ]] || die "SOURCE_DATE_EPOCH is $SOURCE_DATE_EPOCH; seconds since 1970 are wanted"
export SOURCE_DATE_EPOCH

# The folders of the source and of the dependencies are replaced in what the compilers write, of Rust and of C.
build() {
    local cargo_home=${CARGO_HOME:-$HOME/.cargo} target_dir
    target_dir=$(realpath -m "${CARGO_TARGET_DIR:-$repo/target}")
    command -v cargo >/dev/null || PATH=$PATH:$cargo_home/bin
    command -v cargo >/dev/null || die "cargo is not in PATH: install Rust (https://rustup.rs), or use --binary"
    (cd "$repo" &&
        RUSTFLAGS="${RUSTFLAGS:-} --remap-path-prefix=$repo=/promforest --remap-path-prefix=$cargo_home=/cargo" \
            CFLAGS="${CFLAGS:-} -ffile-prefix-map=$repo=/promforest -ffile-prefix-map=$cargo_home=/cargo" \
            cargo build --release --locked --bin promforest --target-dir "$target_dir" ${target:+--target "$target"}) ||
        die "cargo build failed${target:+; is the target $target installed? rustup target add $target}"
    binary=$target_dir/${target:+$target/}release/promforest
}

# The newest version of glibc of which the program needs a symbol; nothing if it needs no glibc.
glibc_version() {
    readelf --version-info --wide "$1" | grep -o 'GLIBC_[0-9.]*' | sort -V -u | tail -n 1 | cut -d _ -f 2 || true
}

[ -n "$binary" ] || build
[ -x "$binary" ] || die "$binary is not a program"
binary=$(realpath "$binary")
line=$("$binary" --version) || die "$binary does not run on this machine"
[[ $line =~ ^promforest\ ([0-9]+\.[0-9]+\.[0-9]+[^\ ]*)\  ]] ||
    die "$binary is not promforest: --version prints ${line%%$'\n'*}"
VERSION=${BASH_REMATCH[1]}
case $(readelf -h "$binary" | sed -n 's/^ *Machine: *//p') in
    *X86-64) ARCH=amd64 ;;
    AArch64) ARCH=arm64 ;;
    *) die "$binary is for a machine that has no package: amd64 and arm64 are known" ;;
esac
glibc=$(glibc_version "$binary")
# A program that is linked to nothing depends on nothing; nfpm leaves empty names out.
export VERSION ARCH DEB_GLIBC=${glibc:+libc6 (>= $glibc)} DEB_LIBGCC=${glibc:+libgcc-s1}
export RPM_GLIBC=${glibc:+glibc >= $glibc} RPM_LIBGCC=${glibc:+libgcc}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
name=promforest-$VERSION-linux-$ARCH
stage=$work/$name
packed=$work/packed
mkdir -p "$stage/completions" "$work/packages" "$packed"

objcopy --only-keep-debug --compress-debug-sections "$binary" "$packed/$name.debug"
objcopy --strip-all "$binary" "$stage/promforest"
(cd "$packed" && objcopy --add-gnu-debuglink="$name.debug" "$stage/promforest")

# Only files of the repository: a folder may have others beside them, such as passwords.
git -C "$repo" ls-files -z -- LICENSE README.md deploy ':!deploy/Dockerfile*' ':!deploy/compose.yaml' \
    ':!deploy/demo' ':!deploy/packages' ':!deploy/quickstart.sh' ':!deploy/release.sh' |
    tar -C "$repo" --null --files-from=- -cf - | tar -C "$stage" -xf -
cp "$repo"/.github/{CONTRIBUTING,SECURITY}.md "$stage/"
# Links to these two pages lead to where they are here. The sources and the tests are not here: links to them become text.
find "$stage" -name '*.md' -exec sed -i -e 's,\.github/,,g' -e 's,\[\([^]]*\)](\(\.\./\)*\(src\|tests\)/[^)]*),\1,g' {} +
"$repo/deploy/packages/third-party.sh" ${target:+"$target"} >"$stage/THIRD-PARTY"
"$binary" completions bash >"$stage/completions/promforest.bash"
"$binary" completions fish >"$stage/completions/promforest.fish"
"$binary" completions zsh >"$stage/completions/_promforest"
"$binary" man >"$stage/promforest.1"

# Paths as a package has them, and without the header, which tells how to install a file by hand.
for unit in promforest.service promforest.socket; do
    sed -e '1,/^$/d' -e 's,/usr/local/bin/,/usr/bin/,' "$repo/deploy/systemd/$unit" >"$work/packages/$unit"
done
gzip -9n <"$stage/promforest.1" >"$work/packages/promforest.1.gz"
cp "$repo"/deploy/packages/{copyright,postinstall.sh,preremove.sh,postremove.sh} "$work/packages/"
chmod -R u=rwX,go=rX "$stage" "$work/packages"
find "$work" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

tar -C "$work" --sort=name --format=gnu --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -cf - "$name" |
    gzip -n >"$packed/$name.tar.gz"

if [ -z "${NFPM:-}" ]; then
    command -v go >/dev/null || die "go is not in PATH: install Go (https://go.dev), or name nfpm in NFPM"
    NFPM=$work/nfpm
    (cd "$repo/deploy/packages" &&
        CGO_ENABLED=0 go build -mod=readonly -trimpath -o "$NFPM" github.com/goreleaser/nfpm/v2/cmd/nfpm) >&2 ||
        die "nfpm did not build"
fi
mv "$work/packages" "$stage/"
for packager in deb rpm; do
    (cd "$stage" && "$NFPM" package --config "$repo/deploy/packages/nfpm.yaml" --packager "$packager" \
        --target "$packed" >/dev/null) ||
        die "nfpm could not make the $packager package"
done

(cd "$packed" && sha256sum -- * >"$work/sha256sums")
mkdir -p "$output"
mv "$packed"/* "$work/sha256sums" "$output/"
(cd "$output" && wc -c -- "$name".* promforest[_-]"$VERSION"[_-]*.{deb,rpm} sha256sums | sed '$d')
