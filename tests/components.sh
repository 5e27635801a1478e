#!/usr/bin/env bash
# Gets the real programs that the tests run against, and prints where they are:
#
#   PROMETHEUS_2, PROMTOOL_2   Debian's package
#   PROMETHEUS_3, PROMTOOL_3   built from the Go modules pinned in tests/components/
#   JSONNET                    likewise
#   VICTORIAMETRICS, VMAGENT   from tests/components/victoriametrics/
#   OTELCOL                    from tests/components/otelcol/: a collector that scrapes and writes
#   THANOS                     from tests/components/thanos/
#   MANIFESTS                  from tests/components/kubernetes/: Helm's, kustomize's and Kubernetes' packages
#   NFPM                       from deploy/packages/
#   NODE_EXPORTER              Debian's package
#   POSTGRES_BIN               the folder of initdb and postgres; Debian's package
#   CHROMIUM                   Debian's package
#   PROMFOREST_PYTHON          Python with MLflow 3, scikit-learn and what else tests/components/requirements.txt pins
#   PROMFOREST_PYTHON_MLFLOW2  Python with a server of MLflow 2 (requirements-mlflow2.txt)
#   S3S_FS                     an S3 server on a folder; built by cargo install
#   KAFKA_LIBS                 the folder of Kafka's jars; copied by Maven (tests/components/kafka/)
#   JAVA                       Debian's package
#
#   eval "$(tests/components.sh)"
#
# Standard output is one `export NAME=path` line each, and the same lines are kept in components.env in
# the cache directory, PROMFOREST_CACHE (default ~/.cache/promforest). Everything else goes to standard
# error. Running it again costs nothing. What cannot be had is an error: no test is ever skipped for it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${PROMFOREST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/promforest}

log() { printf 'components: %s\n' "$*" >&2; }
die() {
    printf 'components: error: %s\n' "$*" >&2
    exit 1
}

# Debian packages, without letting their services run.
apt_install() {
    command -v apt-get >/dev/null || die "missing: $*; no apt-get here to install it with"
    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "missing: $*; installing it needs root or sudo"
        root=(sudo -n)
    fi
    log "installing $*"
    {
        "${root[@]}" apt-get update -q &&
            "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
    } >&2 || die "apt-get could not install $*"
    if [ -d /run/systemd/system ]; then
        local service
        for service in "$@"; do "${root[@]}" systemctl disable --now "$service" >&2 || true; done
    fi
}

# Debian keeps one folder for each major version; the newest is taken.
postgres_bin() {
    local bin
    bin=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
    [ -x "$bin/initdb" ] && [ -x "$bin/postgres" ] && echo "$bin"
}

debian_components() {
    local missing=()
    [ -x /usr/bin/prometheus ] && [ -x /usr/bin/promtool ] || missing+=(prometheus)
    [ -x /usr/bin/prometheus-node-exporter ] || missing+=(prometheus-node-exporter)
    postgres_bin >/dev/null || missing+=(postgresql)
    [ -x /usr/bin/chromium ] || missing+=(chromium fonts-dejavu-core)
    command -v python3 >/dev/null || missing+=(python3)
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    command -v java >/dev/null || missing+=(default-jre-headless)
    command -v mvn >/dev/null || missing+=(maven)
    command -v ip >/dev/null || missing+=(iproute2)
    command -v mount >/dev/null || missing+=(mount)
    # The feature `kafka` is built with it.
    pkg-config --exists openssl 2>/dev/null || missing+=(libssl-dev pkg-config)
    [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
    postgres_bin >/dev/null || die "no initdb and postgres in /usr/lib/postgresql/*/bin"
    local version
    version=$(/usr/bin/prometheus --version 2>&1 | sed -n '1s/^prometheus, version \([^ ]*\).*/\1/p')
    [[ $version == 2.* ]] || die "/usr/bin/prometheus is version ${version:-unknown}; the tests want a 2.x there"
    log "Prometheus $version, Debian's"
}

# Prometheus 3.16 is the Go module v0.316.0.
pinned_version() {
    local module
    module=$(sed -n 's/^.*github\.com\/prometheus\/prometheus \(v0\.[0-9]*\.[0-9]*\).*$/\1/p' "$here/components/go.mod")
    [[ $module =~ ^v0\.([0-9])([0-9]{2})\.([0-9]+)$ ]] || die "no version of prometheus in tests/components/go.mod"
    echo "${BASH_REMATCH[1]}.$((10#${BASH_REMATCH[2]})).${BASH_REMATCH[3]}"
}

# The Go that a go.mod wants, for building a program.
check_go() {
    local wanted have
    wanted=$(sed -n 's/^go //p' "$2")
    command -v go >/dev/null ||
        die "no 'go' in PATH; building $1 needs Go $wanted or newer (Debian's package is older)"
    have=$(cd / && go env GOVERSION)
    have=${have#go}
    if [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1)" != "$wanted" ] &&
        [ "$(cd / && go env GOTOOLCHAIN)" = local ]; then
        die "Go is $have; building $1 needs $wanted or newer"
    fi
}

# Programs of a folder with a go.mod, without cgo, for which a C compiler would be needed; built again when the folder changed.
#   build_go NAME FOLDER INTO TAGS LDFLAGS PROGRAM=PACKAGE...    PROGRAM in LDFLAGS and PACKAGE is replaced
build_go() {
    local name=$1 folder=$2 into=$3 tags=$4 ldflags=$5 pins program package is_there=yes
    shift 5
    pins=$(cd "$folder" && shopt -s nullglob && cat go.mod go.sum ./*.go | sha256sum)
    for program in "${@%%=*}"; do [ -x "$into/$program" ] || is_there=no; done
    if [ $is_there = yes ] && [ "$(cat "$into/pins" 2>/dev/null)" = "$pins" ]; then
        log "$name, in the cache"
        return
    fi
    check_go "$name" "$folder/go.mod"
    log "building $name; some minutes, once"
    mkdir -p "$into"
    for program in "$@"; do
        package=${program#*=} program=${program%%=*}
        (cd "$folder" && CGO_ENABLED=0 go build -mod=readonly -trimpath -tags "$tags" \
            -ldflags "-s -w ${ldflags//PROGRAM/$program}" -o "$into/$program.new" "${package//PROGRAM/$program}") >&2 ||
            die "$program did not build"
        mv "$into/$program.new" "$into/$program"
    done
    printf '%s\n' "$pins" >"$into/pins"
}

# A virtual environment of exactly what a requirements file pins.
python_environment() {
    local into=$1 requirements=$here/components/$2 pins
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$(command -v python3) is $(python3 --version); 3.11 or newer is wanted"
    pins=$({ cat "$requirements" && python3 -c 'import sys; print(sys.base_prefix, sys.version)'; } | sha256sum)
    if [ "$(cat "$into/pins" 2>/dev/null)" = "$pins" ] && "$into/bin/python" -c '' 2>/dev/null; then
        log "Python of $2, in the cache"
        return
    fi
    log "installing $2; a minute or two, once"
    rm -rf "$into"
    python3 -m venv "$into" >&2 || die "python3 cannot make a virtual environment"
    "$into/bin/python" -m pip install -q --no-compile --only-binary :all: -r "$requirements" >&2 ||
        die "pip could not install $2"
    "$into/bin/python" -m pip check >&2 || die "$2 contradicts itself"
    # Without bytecode a server takes three times as long to start, and PYTHONDONTWRITEBYTECODE would keep it so. A few
    # packages carry files of another Python's syntax.
    "$into/bin/python" -m compileall -q -j 0 "$into/lib" >/dev/null 2>&1 || true
    printf '%s\n' "$pins" >"$into/pins"
}

# Unoptimized: it builds sooner, and nothing depends on how fast it is.
build_s3s_fs() {
    local version=$1 into=$2
    if "$into/bin/s3s-fs" --version 2>/dev/null | grep -qF "$version"; then
        log "s3s-fs $version, in the cache"
        return
    fi
    command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    command -v cargo >/dev/null || die "no 'cargo' in PATH; s3s-fs $version is built with it"
    log "building s3s-fs $version; some minutes, once"
    (cd / && CARGO_TARGET_DIR=$into/target CARGO_PROFILE_DEV_DEBUG=0 \
        cargo install s3s-fs --version "$version" --features binary --locked --debug --quiet --root "$into" --force) >&2 ||
        die "s3s-fs $version did not build"
    rm -rf "$into/target"
    "$into/bin/s3s-fs" --version | grep -qF "$version" || die "$into/bin/s3s-fs does not report version $version"
}

# The jars of a pom.xml, each with the checksum of libs.sha256.
kafka_broker() {
    local into=$1 pins
    pins=$(cat "$here"/components/kafka/{pom.xml,libs.sha256} | sha256sum)
    if [ "$(cat "$into/pins" 2>/dev/null)" = "$pins" ]; then
        log "Kafka, in the cache"
        return
    fi
    log "copying Kafka; 44 MB, once"
    rm -rf "$into"
    mkdir -p "$into"
    mvn -q -B -C -f "$here/components/kafka/pom.xml" \
        org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
        -DincludeScope=runtime "-DoutputDirectory=$into/libs" >&2 || die "Maven could not copy Kafka"
    (cd "$into/libs" && sha256sum --quiet -c "$here/components/kafka/libs.sha256") >&2 ||
        die "a jar of Kafka has another checksum"
    printf '%s\n' "$pins" >"$into/pins"
}

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9 # two runs at once: the second finds the first one's work

debian_components
version=$(pinned_version)
prometheus_3=$cache/prometheus-$version
# Without service discovery (static_configs and file_sd_configs stay) and without the web UI, which is not in the Go module:
# half the build time, and no test needs either.
build_go "Prometheus $version" "$here/components" "$prometheus_3" remove_all_sd,netgo \
    "-X github.com/prometheus/common/version.Version=$version" \
    {prometheus,promtool}=github.com/prometheus/prometheus/cmd/PROGRAM
build_go jsonnet "$here/components" "$cache/jsonnet" '' '' jsonnet=github.com/google/go-jsonnet/cmd/jsonnet
version=$(sed -n 's/^require .*VictoriaMetrics \(v.*\)$/\1/p' "$here/components/victoriametrics/go.mod")
victoriametrics=$cache/victoriametrics-${version#v}
build_go "VictoriaMetrics $version" "$here/components/victoriametrics" "$victoriametrics" '' \
    "-X github.com/VictoriaMetrics/VictoriaMetrics/lib/buildinfo.Version=PROGRAM-$version" \
    {victoria-metrics,vmagent}=github.com/VictoriaMetrics/VictoriaMetrics/app/PROGRAM
build_go otelcol "$here/components/otelcol" "$cache/otelcol" remove_all_sd,netgo '' otelcol=.
build_go Thanos "$here/components/thanos" "$cache/thanos" slicelabels '' thanos=github.com/thanos-io/thanos/cmd/thanos
build_go nfpm "$here/../deploy/packages" "$cache/nfpm" '' '' nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm
build_go manifests "$here/components/kubernetes" "$cache/manifests" '' '' manifests=.
s3s_version=0.14.1 # 0.17 wants a newer Rust than 1.95
s3s_fs=$cache/s3s-fs-$s3s_version
build_s3s_fs "$s3s_version" "$s3s_fs"
kafka_broker "$cache/kafka"
python_environment "$cache/python" requirements.txt
python_environment "$cache/python-mlflow2" requirements-mlflow2.txt

{
    printf 'export PROMETHEUS_2=%q\n' /usr/bin/prometheus
    printf 'export PROMTOOL_2=%q\n' /usr/bin/promtool
    printf 'export PROMETHEUS_3=%q\n' "$prometheus_3/prometheus"
    printf 'export PROMTOOL_3=%q\n' "$prometheus_3/promtool"
    printf 'export VICTORIAMETRICS=%q\n' "$victoriametrics/victoria-metrics"
    printf 'export VMAGENT=%q\n' "$victoriametrics/vmagent"
    printf 'export OTELCOL=%q\n' "$cache/otelcol/otelcol"
    printf 'export THANOS=%q\n' "$cache/thanos/thanos"
    printf 'export NFPM=%q\n' "$cache/nfpm/nfpm"
    printf 'export JSONNET=%q\n' "$cache/jsonnet/jsonnet"
    printf 'export MANIFESTS=%q\n' "$cache/manifests/manifests"
    printf 'export NODE_EXPORTER=%q\n' /usr/bin/prometheus-node-exporter
    printf 'export POSTGRES_BIN=%q\n' "$(postgres_bin)"
    printf 'export CHROMIUM=%q\n' /usr/bin/chromium
    printf 'export PROMFOREST_PYTHON=%q\n' "$cache/python/bin/python"
    printf 'export PROMFOREST_PYTHON_MLFLOW2=%q\n' "$cache/python-mlflow2/bin/python"
    printf 'export S3S_FS=%q\n' "$s3s_fs/bin/s3s-fs"
    printf 'export KAFKA_LIBS=%q\n' "$cache/kafka/libs"
    printf 'export JAVA=%q\n' "$(command -v java)"
} >"$cache/components.env.new"
mv "$cache/components.env.new" "$cache/components.env"
cat "$cache/components.env"
