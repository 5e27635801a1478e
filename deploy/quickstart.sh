#!/usr/bin/env bash
# promforest on this machine, in one command: a real Prometheus, node_exporter and promforest, all on
# loopback, until Ctrl-C.
#
#   deploy/quickstart.sh                  install what is missing (Debian), build, run
#   deploy/quickstart.sh burst [SECONDS]  in another terminal: traffic on lo that does not look like before
#   PROMFOREST_DEMO=1 deploy/quickstart.sh
#                                         simulated hosts with a past of a week, and an incident every quarter of an hour,
#                                         instead of this machine
#
# Environment:
#   PROMETHEUS_PORT=9090  NODE_EXPORTER_PORT=9100  PROMFOREST_PORT=9599
#   KEEP_DATA=1           keep the temporary directory (configuration, data, logs)
#   DEMO_DAYS=7           days of the simulated past, 3 at least
#   PROMETHEUS_BIN, NODE_EXPORTER_BIN, PROMFOREST_BIN   use these programs; nothing is installed or built for them
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
prometheus_port=${PROMETHEUS_PORT:-9090}
node_exporter_port=${NODE_EXPORTER_PORT:-9100}
promforest_port=${PROMFOREST_PORT:-9599}
prometheus_url=http://127.0.0.1:$prometheus_port
promforest_url=http://127.0.0.1:$promforest_port
scores_within=600 # seconds from the start of promforest; about 3 minutes is usual
demo=${PROMFOREST_DEMO:-0}
# shellcheck disable=SC2034 # for demo.sh
demo_days=${DEMO_DAYS:-7}
demo_hosts=(web-1 web-2 db-1 cache-1 mail-1)
replayed_hours=24 # of the simulated past, that promforest scores after its start

# ---------------------------------------------------------------- words

heading() { printf '\n==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
die() {
    printf '\nerror: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
    exit 1
}

# A line that the next one replaces. Where there is no terminal, every sixth is printed (one in 30 s).
ticks=0
tick() {
    if [ -t 1 ]; then
        printf '\r\033[K    %s' "$*"
    elif [ $((ticks++ % 6)) -eq 0 ]; then
        note "$*"
    fi
}
tick_end() {
    ticks=0
    if [ -t 1 ]; then printf '\r\033[K'; fi
}

# `sleep` that does not keep a signal waiting.
pause() {
    sleep "$1" &
    wait $! || true
}

# Never through a proxy: everything asked here is on loopback.
get() { curl -fsS --noproxy '*' --max-time 5 "$@" 2>/dev/null; }

# The value of the first series of an instant query, or nothing.
query() {
    get -G --data-urlencode "query=$1" "$prometheus_url/api/v1/query" |
        sed -n 's/^[^]]*"value":\[[^,]*,"\([^"]*\)"\].*/\1/p' || true
}

rounded() { [ -n "$1" ] && LC_ALL=C printf '%.2f' "$1" || printf -- '-'; }

# ---------------------------------------------------------------- before anything starts

check_ports() {
    local variable port taken=()
    for variable in PROMETHEUS_PORT NODE_EXPORTER_PORT PROMFOREST_PORT; do
        case $variable in
            PROMETHEUS_PORT) port=$prometheus_port ;;
            NODE_EXPORTER_PORT) port=$node_exporter_port ;;
            PROMFOREST_PORT) port=$promforest_port ;;
        esac
        if ! [[ $port =~ ^[1-9][0-9]{0,4}$ ]] || [ "$port" -gt 65535 ]; then die "$variable=$port is not a port"; fi
        [[ " ${taken[*]:-} " != *" $port "* ]] || die "$variable=$port: another program of the quickstart has this port"
        taken+=("$port")
        check_free "$variable" "$port"
    done
}

# Before the installation and the build, which take minutes, and again just before a program uses the port.
check_free() { # variable port
    if (exec 3<>"/dev/tcp/127.0.0.1/$2") 2>/dev/null; then
        die "port $2 on 127.0.0.1 is in use; choose another one with $1, for example" \
            "$1=$(($2 < 55000 ? $2 + 10000 : $2 - 10000)) $0"
    fi
}

is_at_least() { [ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

find_cargo() {
    local needed version
    [ -z "${PROMFOREST_BIN:-}" ] || return 0
    command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    command -v cargo >/dev/null || die "cargo, Rust's build tool, is not in PATH" \
        "install Rust (https://rustup.rs), or name a built promforest in PROMFOREST_BIN"
    needed=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$repo/Cargo.toml")
    version=$(cd "$repo" && cargo --version | cut -d ' ' -f 2)
    is_at_least "$version" "$needed" || die "cargo is version $version; promforest needs $needed or newer" \
        "rustup update, or name a built promforest in PROMFOREST_BIN"
}

# Debian's packages would also run Prometheus and node_exporter as services, on the usual ports. That is not wanted here:
# they are not started (policy-rc.d) and not enabled for the next boot.
install_packages() {
    local root=() policy=/usr/sbin/policy-rc.d package
    command -v apt-get >/dev/null ||
        die "missing: $*" "this machine has no apt-get: install them, or name them in PROMETHEUS_BIN and NODE_EXPORTER_BIN"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "missing: $*" "installing them needs root or sudo"
        root=(sudo)
        if [ ! -t 0 ]; then root+=(-n); fi
        "${root[@]}" true || die "missing: $*" "installing them needs root, and sudo did not grant it"
    fi
    heading "Installing $*"
    local ours=''
    if [ -d /run/systemd/system ] && [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
        "${root[@]}" chmod 755 "$policy"
        ours=1
    fi
    local status=0
    "${root[@]}" apt-get update -q &&
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" || status=$?
    if [ -n "$ours" ]; then "${root[@]}" rm -f "$policy"; fi
    [ "$status" -eq 0 ] || die "apt-get could not install $*"
    if [ -d /run/systemd/system ]; then
        for package in "$@"; do
            case $package in
                prometheus | prometheus-node-exporter) "${root[@]}" systemctl disable --now "$package" || true ;;
            esac
        done
    fi
}

find_programs() {
    local missing=()
    command -v curl >/dev/null || missing+=(curl)
    if [ -z "${PROMFOREST_BIN:-}" ]; then
        command -v cc >/dev/null || missing+=(gcc libc6-dev)
        [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates) # for cargo's downloads
    fi
    [ -n "${PROMETHEUS_BIN:-}" ] || command -v prometheus >/dev/null || missing+=(prometheus)
    if [ "$demo" = 1 ]; then
        command -v perl >/dev/null || missing+=(perl)
    else
        [ -n "${NODE_EXPORTER_BIN:-}" ] || command -v prometheus-node-exporter >/dev/null ||
            command -v node_exporter >/dev/null || missing+=(prometheus-node-exporter)
    fi
    [ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"

    prometheus=${PROMETHEUS_BIN:-$(command -v prometheus)}
    promforest=${PROMFOREST_BIN:-}
    local program programs=(prometheus promforest)
    if [ "$demo" = 1 ]; then
        promtool=$(dirname "$(realpath "$prometheus")")/promtool
        [ -x "$promtool" ] || promtool=$(command -v promtool) || die "promtool is neither beside $prometheus nor in PATH"
    else
        node_exporter=${NODE_EXPORTER_BIN:-$(command -v prometheus-node-exporter || command -v node_exporter)}
        programs+=(node_exporter)
    fi
    for program in "${programs[@]}"; do
        [ -n "${!program}" ] || continue
        if ! [ -f "${!program}" ] || ! [ -x "${!program}" ]; then die "${!program} is not a program"; fi
        printf -v "$program" %s "$(realpath "${!program}")"
    done

    local version
    version=$("$prometheus" --version 2>&1 | sed -n '1s/^prometheus, version \([0-9]*\.[0-9]*\).*/\1/p')
    is_at_least "${version:-0}" 2.42 ||
        die "$prometheus is version ${version:-unknown}; the rules of promforest need 2.42 or newer (keep_firing_for)" \
            "name a newer one in PROMETHEUS_BIN"
}

# ---------------------------------------------------------------- processes

dir=
running=() # names, in the order of their start
declare -A pid=()

# Every program gets a session of its own, so that Ctrl-C reaches only this script, which then stops them in order; and
# should this script itself be killed, the kernel stops them.
start() {
    local name=$1
    shift
    setsid setpriv --pdeathsig TERM "$@" </dev/null >"$dir/logs/$name.log" 2>&1 &
    pid[$name]=$!
    running+=("$name")
}

alive() { kill -0 "${pid[$1]}" 2>/dev/null; }

check_alive() {
    local name status
    for name in "${running[@]}"; do
        alive "$name" && continue
        status=0
        wait "${pid[$name]}" || status=$?
        tick_end
        printf '\nerror: %s has stopped (exit status %s). The end of its log:\n' "$name" "$status" >&2
        tail -n 20 "$dir/logs/$name.log" | sed 's/^/    /' >&2
        exit 1
    done
}

# Whether the program itself listens on the port: an answer may be that of another one.
listens() { # name port
    local inodes sockets
    inodes=$(awk -v port=":$(printf '%04X' "$2")" '$4 == "0A" && $2 ~ port "$" { print $10 }' /proc/net/tcp)
    sockets=$(find "/proc/${pid[$1]}/fd" -lname 'socket:*' -printf '%l\n' 2>/dev/null)
    local inode
    for inode in $inodes; do
        [[ $sockets != *"[$inode]"* ]] || return 0
    done
    return 1
}

wait_ready() { # name port url
    local _
    for _ in {1..150}; do
        if listens "$1" "$2" && get -o /dev/null "$3"; then return; fi
        check_alive
        pause 0.2
    done
    printf '\nerror: %s does not answer on %s. The end of its log:\n' "$1" "$3" >&2
    tail -n 20 "$dir/logs/$1.log" | sed 's/^/    /' >&2
    exit 1
}

stop() {
    local name=$1 _
    [ -n "${pid[$name]:-}" ] || return 0
    kill -TERM -- "-${pid[$name]}" 2>/dev/null || kill -TERM "${pid[$name]}" 2>/dev/null || return 0
    for _ in {1..100}; do
        alive "$name" || return 0
        sleep 0.1
    done
    note "$name does not stop; killing it"
    kill -KILL -- "-${pid[$name]}" 2>/dev/null || true
}

# promforest goes before Prometheus, so that it can still deliver its last scores.
# shellcheck disable=SC2317,SC2329 # called by the trap
cleanup() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP
    tick_end
    [ ${#running[@]} -eq 0 ] || heading "Stopping"
    local name
    for name in build train promforest prometheus import node_exporter hosts; do stop "$name"; done
    if [ -n "$dir" ]; then
        if [ "${KEEP_DATA:-}" = 1 ]; then
            note "kept: $dir"
        else
            rm -rf "$dir"
        fi
    fi
    exit "$status"
}

# ---------------------------------------------------------------- configuration

write_config() {
    mkdir -p "$dir/logs" "$dir/prometheus" "$dir/promforest"
    cp "$repo/deploy/prometheus/promforest.rules.yml" "$dir/"

    local interval=5s late=30m age=50m window=6h training='{history: 5d, min_history: 1m, interval: 15m}'
    local targets="{targets: ['127.0.0.1:$node_exporter_port']}"
    if [ "$demo" = 1 ]; then
        interval=15s
        # The scores of the replayed hours are written late.
        late=$((replayed_hours + 1))h age=$((replayed_hours + 1))h window=${replayed_hours}h training='{history: 7d}' targets=''
        local host
        for host in "${demo_hosts[@]}"; do
            targets+="{targets: ['127.0.0.1:$node_exporter_port'], labels: {instance: $host, __metrics_path__: /$host}}, "
        done
    fi

    # deploy/prometheus/prometheus.yml with these ports, and a scrape every 5 s so that there is something to see soon.
    cat >"$dir/prometheus.yml" <<YAML
global:
  scrape_interval: $interval
  evaluation_interval: $interval
storage:
  tsdb:
    out_of_order_time_window: $late
rule_files: [promforest.rules.yml]
scrape_configs:
  - job_name: node
    static_configs: [$targets]
  - job_name: promforest
    honor_labels: true
    static_configs: [{targets: ['127.0.0.1:$promforest_port']}]
remote_write:
  - name: promforest
    url: $promforest_url/api/v1/write
    remote_timeout: 10s
    write_relabel_configs:
      - source_labels: [__name__]
        regex: .+_anomaly|anomaly_(score|threshold|incident|job_incident|contribution|value|expected|expected_lower|expected_upper)|promforest_.+
        action: drop
    queue_config:
      batch_send_deadline: 1s
      max_samples_per_send: 2000
      capacity: 10000
      min_shards: 1
      max_shards: 4
      min_backoff: 30ms
      max_backoff: 5s
      retry_on_http_429: true
    metadata_config: {send: false}
YAML

    # deploy/promforest.yml with these ports, and a first model after 1 minute of history instead of an hour. Such a
    # model has seen little, so it is renewed every quarter of an hour. Of simulated hosts there is a week of history.
    cat >"$dir/promforest.yml" <<YAML
global:
  scrape_interval: $interval
remote_write:
  - url: $prometheus_url/api/v1/write
    queue_config: {sample_age_limit: $age}
remote_read:
  - url: $prometheus_url/api/v1/read
detectors:
  - name: node_network
    match:
      - '{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total", device!~"veth.*|cali.*|tap.*"}'
    by: [job, instance]
    transform: rate(1m)
    window: $window
    training: $training
YAML
}

# ---------------------------------------------------------------- up

build() {
    [ -z "$promforest" ] || return 0
    heading "Building promforest (some minutes the first time; Prometheus collects history meanwhile)"
    local target status=0
    cd "$repo"
    target=$(cargo metadata --locked --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
    setsid setpriv --pdeathsig TERM cargo build --release --locked --bin promforest </dev/null &
    pid[build]=$!
    wait "${pid[build]}" || status=$?
    unset 'pid[build]'
    [ "$status" -eq 0 ] || die "the build failed"
    promforest=$target/release/promforest
    check_alive
}

wait_for_scores() {
    heading "Waiting for the first scores (2 to 3 minutes: rates settle, then a minute of history for the first model)"
    local until=$((SECONDS + scores_within)) progress
    while [ -z "$(query 'anomaly_score{job="node"} and on (job, instance) node_network_anomaly')" ]; do
        check_alive
        if [ $SECONDS -ge $until ]; then
            tick_end
            printf '\nerror: no scores after %s s. The end of the log of promforest:\n' "$scores_within" >&2
            tail -n 20 "$dir/logs/promforest.log" | sed 's/^/    /' >&2
            exit 1
        fi
        progress=$(get "$promforest_url/metrics" | sed -n 's/^promforest_training_progress_ratio{.*} //p' | head -n 1 || true)
        if [ -n "$progress" ]; then
            tick "history for the first model: $(LC_ALL=C awk "BEGIN {printf \"%.0f\", 100 * $progress}") %"
        else
            tick "no samples have arrived at promforest yet"
        fi
        pause 5
    done
    tick_end
    note "they are here."
}

graph() { # expression, percent-encoded
    printf '%s/graph?g0.expr=%s&g0.tab=0&g0.range_input=15m' "$prometheus_url" "$1"
}

where_to_look() {
    local burst="$0 burst"
    [ "$prometheus_port" = 9090 ] || burst="PROMETHEUS_PORT=$prometheus_port $burst"
    heading "Where to look"
    note "promforest's own page                          $promforest_url/"
    note "anomaly_score          incident from about 1   $(graph anomaly_score)"
    note "node_network_anomaly   negative is an anomaly  $(graph node_network_anomaly)"
    note "the traffic behind it                          $(graph 'rate(node_network_receive_bytes_total%5B1m%5D)')"
    note "alerts                                         $prometheus_url/alerts"
    note "promforest's metrics                           $promforest_url/metrics"
    note "configuration, data, logs                      $dir"
    note "Grafana: import deploy/grafana/dashboards/*.json, with $prometheus_url as its data source"
    heading "Make an anomaly, in another terminal"
    note "$burst"
    heading "The score, every 5 s. Ctrl-C stops everything"
}

watch_score() {
    local score threshold decision was=calm now
    while :; do
        check_alive
        score=$(query 'anomaly_score{job="node"}')
        threshold=$(query 'anomaly_threshold{job="node"}')
        decision=$(query 'node_network_anomaly{job="node"}')
        if [ -n "$score" ]; then
            now=$(awk "BEGIN {print ($score >= ${threshold:-1}) ? \"anomaly\" : \"calm\"}")
            if [ "$now" != "$was" ]; then
                tick_end
                note "$(date +%T)  $was -> $now (score $(rounded "$score"))"
                was=$now
            fi
        fi
        tick "$(date +%T)  score $(rounded "$score")  decision $(rounded "$decision")"
        pause 5
    done
}

start_prometheus() {
    check_free PROMETHEUS_PORT "$prometheus_port"
    start prometheus "$prometheus" --config.file="$dir/prometheus.yml" --storage.tsdb.path="$dir/prometheus" \
        --web.listen-address="127.0.0.1:$prometheus_port" --web.enable-remote-write-receiver \
        --storage.remote.flush-deadline=1s # promforest stops first: do not wait for it at the end
    wait_ready prometheus "$prometheus_port" "$prometheus_url/-/ready"
}

start_promforest() {
    heading "Starting promforest"
    check_free PROMFOREST_PORT "$promforest_port"
    cd "$dir/promforest"
    start promforest "$promforest" --config.file="$dir/promforest.yml" --storage.path="$dir/promforest" \
        --web.listen-address="127.0.0.1:$promforest_port"
    wait_ready promforest "$promforest_port" "$promforest_url/-/healthy"
    note "promforest listens on port $promforest_port"
}

# Checks what is needed before anything starts, and sees to the end of all that does.
prepare() {
    check_ports
    find_cargo
    find_programs
    trap cleanup EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    dir=$(mktemp -d "${TMPDIR:-/tmp}/promforest-quickstart.XXXXXX")
    write_config
}

up() {
    prepare

    heading "Starting node_exporter and Prometheus in $dir"
    check_free NODE_EXPORTER_PORT "$node_exporter_port"
    # Debian's node_exporter leaves lo out unless told otherwise.
    start node_exporter "$node_exporter" --web.listen-address="127.0.0.1:$node_exporter_port" \
        --collector.netdev.device-exclude='^$'
    start_prometheus
    wait_ready node_exporter "$node_exporter_port" "http://127.0.0.1:$node_exporter_port/"
    note "Prometheus on port $prometheus_port scrapes node_exporter on port $node_exporter_port every 5 s"

    build
    start_promforest
    wait_for_scores
    where_to_look
    watch_score
}

# ---------------------------------------------------------------- burst

# 100 MB/s at most over a TCP connection of lo: thousands of times what the scrapes make, and no strain on the machine.
# Perl's base is part of every Debian.
burst() {
    local seconds=${1:-60}
    [[ $seconds =~ ^[1-9][0-9]*$ ]] || die "burst: '$seconds' is not a number of seconds"
    command -v perl >/dev/null || die "burst needs perl"
    command -v curl >/dev/null || die "burst needs curl"
    local before='' score highest=''
    before=$(query 'anomaly_score{job="node"}')
    heading "Sending 100 MB/s over lo for $seconds s"
    if [ -n "$before" ]; then
        note "score before: $(rounded "$before")"
    else
        note "(no score on $prometheus_url: is the quickstart running, and is PROMETHEUS_PORT the same?)"
    fi
    perl -MIO::Socket::INET -e '
        my $listener = IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1") or die "listen: $@\n";
        my $reader = fork() // die "fork: $!\n";
        if (!$reader) {
            my $in = $listener->accept() or exit 1;
            my $data;
            1 while sysread($in, $data, 1 << 20);
            exit 0;
        }
        my $out = IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => $listener->sockport()) or die "connect: $@\n";
        my ($data, $end) = ("x" x (1 << 20), time() + $ARGV[0]);
        while (time() < $end) {
            syswrite($out, $data) // die "write: $!\n";
            select(undef, undef, undef, 0.01);
        }
        close($out);
        waitpid($reader, 0);
    ' "$seconds" &
    local sender=$!
    # shellcheck disable=SC2064 # the process of now
    trap "kill $sender 2>/dev/null || true" EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    while kill -0 "$sender" 2>/dev/null; do
        pause 5
        score=$(query 'anomaly_score{job="node"}')
        [ -n "$score" ] || continue
        highest=$(awk "BEGIN {h = \"$highest\"; print (h == \"\" || $score > h + 0) ? $score : h}")
        note "$(date +%T)  score $(rounded "$score")"
    done
    wait "$sender" || die "the traffic could not be sent"
    trap - EXIT
    if [ -n "$highest" ]; then note "highest: $(rounded "$highest"); it falls again within a quarter of an hour: until then the last minutes are unsteady"; fi
}

case ${1:-up} in
    up)
        if [ "$demo" = 1 ]; then
            # shellcheck source-path=SCRIPTDIR source=demo/demo.sh
            . "$repo/deploy/demo/demo.sh"
            demo
        else
            up
        fi
        ;;
    burst) burst "${2:-}" ;;
    -h | --help | help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" ;;
    *) die "unknown command '$1'" "deploy/quickstart.sh --help" ;;
esac
