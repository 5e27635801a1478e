# shellcheck shell=bash disable=SC2154,SC2164 # sourced by quickstart.sh, which sets variables and -e
# Simulated hosts with a past: hosts.pl makes it and goes on with it, Prometheus stores and scrapes it.
#
# The first days train the models. promforest takes the last hours for an outage of its own, because Prometheus has the
# decision of each host at their beginning: it reads them by remote read, scores them row by row, and writes the scores.

demo() {
    if ! [[ $demo_days =~ ^[1-9][0-9]?$ ]] || [ "$demo_days" -lt 3 ]; then
        die "DEMO_DAYS=$demo_days is not a number of days from 3 to 99"
    fi
    prepare
    heading "The page of promforest, in two minutes: $promforest_url/"
    build

    heading "Simulating $demo_days days of the hosts ${demo_hosts[*]}"
    check_free NODE_EXPORTER_PORT "$node_exporter_port"
    # Prometheus first: its scrapes follow the simulated past without a gap, and it takes the past in while it runs.
    start_prometheus
    start hosts perl "$repo/deploy/demo/hosts.pl" "$node_exporter_port" "$dir/history.om" "$demo_days" "$replayed_hours"
    wait_for_file hosts "$dir/history.om"
    local until
    until=$(date -r "$dir/history.om" +%s)
    # One block for all of it: each block would read the whole file again.
    start import "$promtool" tsdb create-blocks-from openmetrics --quiet --max-block-duration=1200h \
        "$dir/history.om" "$dir/prometheus"
    wait_end import
    rm -f "$dir/history.om"
    wait_for_query 'count(node_network_receive_bytes_total offset 1d)' ${#demo_hosts[@]} "Prometheus looks for the simulated past once a minute"
    note "replayed: counters, one sample every 15 s, in Prometheus' storage until $(date -d "@$until" +%T)"
    note "live:     the same counters go on since then, scraped from port $node_exporter_port"

    heading "Training a model for each host on the days before the last $replayed_hours hours"
    cd "$dir/promforest"
    start train "$promforest" train --config.file="$dir/promforest.yml" --storage.path="$dir/promforest" --sweep 256 \
        --end "$(date -u -d "-$replayed_hours hours" +%FT%TZ)"
    wait_end train
    grep ' features, ' "$dir/logs/train.log" | sed 's/^/    /' || true

    start_promforest
    wait_for_replay
    where_to_look_in_demo
    watch_incidents
}

# Until a program has written a file.
wait_for_file() { # name file
    local until=$((SECONDS + scores_within))
    while [ ! -e "$2" ]; do
        check_alive
        [ $SECONDS -lt $until ] || die "$1 has not written $2 within $scores_within s"
        pause 0.2
    done
}

# Until a program has ended, which is an error unless its exit status is 0.
wait_end() { # name
    local status=0
    wait "${pid[$1]}" || status=$?
    if [ "$status" -ne 0 ]; then
        printf '\nerror: %s has failed (exit status %s). The end of its log:\n' "$1" "$status" >&2
        tail -n 20 "$dir/logs/$1.log" | sed 's/^/    /' >&2
        exit 1
    fi
    unset "pid[$1]"
    local name others=()
    for name in "${running[@]}"; do [ "$name" = "$1" ] || others+=("$name"); done
    running=("${others[@]}")
}

# Until a query has this value.
wait_for_query() { # query value text
    local until=$((SECONDS + scores_within))
    while [ "$(query "$1")" != "$2" ]; do
        check_alive
        [ $SECONDS -lt $until ] || die "not within $scores_within s: $3" "$(tail -n 20 "$dir/logs/${running[-1]}.log")"
        tick "$3"
        pause 2
    done
    tick_end
}

wait_for_replay() {
    heading "Scoring the last $replayed_hours hours, as after an outage"
    wait_for_query 'count(time() - timestamp(anomaly_score{job="node"}) < 60)' ${#demo_hosts[@]} "the scores are on their way to Prometheus"
    note "all hosts are scored up to now"
}

where_to_look_in_demo() {
    heading "The page of promforest: $promforest_url/"
    note "replayed  the last 24 hours with their incidents, the incidents a day against the budget, and, on the page of"
    note "          each host, its traffic within the range that is usual at that time of day"
    note "live      a simulated incident every quarter of an hour, the first two minutes after the first scrape; it opens on"
    note "          the page within a minute, and closes half an hour later, after 12 unsteady and 10 calm minutes"
    note "the series in Prometheus      $(graph anomaly_score | sed 's/15m$/1d/')"
    note "the traffic behind them       $(graph 'rate(node_network_receive_bytes_total%5B1m%5D)' | sed 's/15m$/1d/')"
    note "alerts                        $prometheus_url/alerts"
    note "configuration, data, logs     $dir"
    heading "What is simulated, and the open incidents. Ctrl-C stops everything"
}

# The hosts with an open incident.
open_incidents() {
    get -G --data-urlencode 'query=anomaly_incident{job="node"} == 1' "$prometheus_url/api/v1/query" |
        grep -o '"instance":"[^"]*"' | cut -d '"' -f 4 | sort -u | tr '\n' ' ' || true
}

watch_incidents() {
    local printed=0 lines before='' now
    while :; do
        check_alive
        lines=$(wc -l <"$dir/logs/hosts.log")
        if [ "$lines" -gt "$printed" ]; then
            tick_end
            sed -n "$((printed + 1)),${lines}p" "$dir/logs/hosts.log" | sed 's/^/    /'
            printed=$lines
        fi
        now=$(open_incidents)
        if [ "$now" != "$before" ]; then
            tick_end
            note "$(date +%T)  open incidents: ${now:-none}"
            before=$now
        fi
        tick "$(date +%T)  open incidents: ${now:-none}"
        pause 5
    done
}
