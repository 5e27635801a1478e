#!/usr/bin/env python3
"""A network of three hosts with real traffic, real faults and real labels: recorded, or live.

    tests/quality/netlab/lab.py record FOLDER [--seed 1] [--ordinary-days 9] [--faulty-days 20] [--day-seconds 120]
    tests/quality/netlab/lab.py live URL [--row-seconds 1]

Each host is a network namespace with five devices, its own node_exporter, and a container behind a bridge; one Prometheus
scrapes them once a lab minute. A recording's minute lasts day_seconds / 1440 s: times are stretched to a minute a row and
counters multiplied by the same factor, so that rates per second stay what they were.

Needs root or user namespaces, Debian's iproute2, mount and util-linux, PostgreSQL, node_exporter and Prometheus:
PROMETHEUS_3, NODE_EXPORTER, POSTGRES_BIN as tests/components.sh prints them, and numpy, pyarrow and psycopg2. Processes,
networks and files are in namespaces of the command, and end with it, however it ends.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from dataclasses import asdict
from pathlib import Path

import numpy as np
import plan as plans
import pyarrow as pa
import pyarrow.parquet as pq
from plan import ADDRESS, DEVICES, HOSTS
from traffic import prefer_lab

HERE = Path(__file__).resolve().parent
# A file system of this command alone, with the names of the networks.
RUN = Path("/run")
PLAN = RUN / "plan.npy"
DATABASE = RUN / "postgres"
NAMESPACES = ["switch", "world", "store", *HOSTS, *(f"{host}-c" for host in HOSTS)]
METRICS = ["receive_bytes", "transmit_bytes", "receive_packets", "transmit_packets"]
MIN_ROWS = 0.99  # of the minutes
EPOCH_MS = 1_772_409_600_000  # Monday, 2026-03-02T00:00:00Z


def isolate():
    """Starts the command again as the first of processes of its own, with mounts of its own, and returns there."""
    if os.getpid() == 1:
        subprocess.run(["mount", "-t", "tmpfs", "lab", RUN], check=True)
        return
    for user in ([], ["--user", "--map-root-user"]):
        unshare = ["unshare", *user, "--mount", "--pid", "--fork", "--kill-child"]
        probe = subprocess.run([*unshare, "--net", "true"], capture_output=True, text=True)
        if probe.returncode == 0:
            os.execvp("unshare", [*unshare, sys.executable, *sys.argv])
    sys.exit(f"error: no network namespaces here: they need root, or user namespaces for everyone ({probe.stderr.strip()})")


def ip(*words, namespace, check=True):
    subprocess.run(["ip", "-n", namespace, *words], check=check, capture_output=not check)


def inside(namespace, *command):
    return ["nsenter", f"--net={RUN}/netns/{namespace}", *command]


class Network:
    """Namespaces and their links."""

    def __init__(self):
        (RUN / "netns").mkdir()
        for namespace in NAMESPACES:
            file = RUN / "netns" / namespace
            file.touch()
            subprocess.run(["unshare", "--net", "mount", "--bind", "/proc/self/ns/net", file], check=True)
            ip("link", "set", "lo", "up", namespace=namespace)
        for bridge in ("lan0", "lan1"):
            ip("link", "add", bridge, "type", "bridge", namespace="switch")
            ip("link", "set", bridge, "up", namespace="switch")
        self.cable("world", "eth0", "lan0", ADDRESS["world"])
        self.cable("store", "eth0", "lan1", ADDRESS["store"])
        for host in HOSTS:
            self.cable(host, "eth0", "lan0", ADDRESS[host])
            self.cable(host, "eth1", "lan1", ADDRESS[host].replace("10.0.0.", "10.0.1."))
            ip("link", "add", "docker0", "type", "bridge", namespace=host)
            ip("link", "set", "docker0", "up", namespace=host)
            ip("addr", "add", self.gateway(host) + "/24", "dev", "docker0", namespace=host)
            self.container_link(host)
            subprocess.run(inside(host, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"), check=True)
        for namespace in ["world", *HOSTS]:
            self.routes(namespace)

    @staticmethod
    def gateway(host):
        return ADDRESS[f"{host}-c"].rsplit(".", 1)[0] + ".1"

    @staticmethod
    def pair(a, a_device, b, b_device):
        """A link without segmentation offload, so that packets are counted as on a wire."""
        ip("link", "add", a_device, "type", "veth", "peer", "name", b_device, "netns", b, namespace=a)
        for namespace, device in ((a, a_device), (b, b_device)):
            ip("link", "set", "dev", device, "gso_max_segs", "1", "up", namespace=namespace)

    def cable(self, namespace, device, bridge, address):
        port = f"{namespace}-{bridge}"
        self.pair(namespace, device, "switch", port)
        ip("link", "set", port, "master", bridge, namespace="switch")
        ip("addr", "add", address + "/24", "broadcast", "+", "dev", device, namespace=namespace)

    def container_link(self, host):
        inside = f"{host}-c"
        self.pair(host, "ct0", inside, "eth0")
        ip("link", "set", "ct0", "master", "docker0", namespace=host)
        ip("addr", "add", ADDRESS[inside] + "/24", "dev", "eth0", namespace=inside)
        ip("route", "replace", "default", "via", self.gateway(host), namespace=inside)

    def routes(self, namespace):
        for host in HOSTS:
            if host != namespace:
                network = self.gateway(host).rsplit(".", 1)[0] + ".0/24"
                ip("route", "replace", network, "via", ADDRESS[host], namespace=namespace, check=False)
        if namespace in HOSTS:
            network = "10.0.1.0/24"
            address = ADDRESS[namespace].replace("10.0.0.", "10.0.1.")
            ip("route", "replace", network, "dev", "eth1", "src", address, namespace=namespace, check=False)

    def act(self, namespace, device, action):
        match action.split():
            case ["down"]:
                ip("link", "set", device, "down", namespace=namespace)
            case ["up"]:
                ip("link", "set", device, "up", namespace=namespace)
                if namespace != "switch":
                    self.routes(namespace)
            case ["recreate"]:
                ip("link", "del", device, namespace=namespace)
                self.container_link(namespace)
            case ["limit", rate]:
                command = ["qdisc", "replace", "dev", device, "root", "tbf", "rate", f"{rate}bps", "burst", "16kb", "latency", "40ms"]
                subprocess.run(["tc", "-n", namespace, *command], check=True)
            case ["unlimit"]:
                subprocess.run(["tc", "-n", namespace, "qdisc", "del", "dev", device, "root"], check=True)


def node_exporter(host):
    """Its port: it listens outside of the namespace, so that being scraped is no traffic of the host."""
    listener = socket.create_server(("127.0.0.1", 0))
    os.set_inheritable(listener.fileno(), True)
    script = f'exec {listener.fileno()}<&{listener.fileno()} 3<&{listener.fileno()}; export LISTEN_PID=$$; exec "$@"'
    program = os.environ["NODE_EXPORTER"]
    flags = ["--web.systemd-socket", "--collector.disable-defaults", "--collector.netdev"]
    flags += ["--collector.netdev.device-exclude=^$", "--log.level=error"]
    subprocess.Popen(
        inside(host, "sh", "-c", script, "sh", program, *flags),
        pass_fds=[listener.fileno()], env={**os.environ, "LISTEN_FDS": "1"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return listener.getsockname()[1]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Prometheus:
    """Scrapes the hosts, and sends what it scrapes to a URL, if there is one."""

    def __init__(self, ports, interval, write_to=None):
        self.url = f"http://127.0.0.1:{free_port()}"
        targets = [{"targets": [f"127.0.0.1:{port}"], "labels": {"instance": host}} for host, port in ports.items()]
        scrape = {"job_name": "node", "scrape_interval": f"{round(interval * 1000)}ms", "static_configs": targets}
        scrape["scrape_timeout"] = scrape["scrape_interval"]
        queue = {"batch_send_deadline": scrape["scrape_interval"], "max_shards": 1}
        keep = {"source_labels": ["__name__"], "regex": "node_network_.*", "action": "keep"}
        write = {"url": write_to, "queue_config": queue, "write_relabel_configs": [keep]}
        config = RUN / "prometheus.yml"
        remote_write = [write] if write_to else []
        config.write_text(json.dumps({"scrape_configs": [scrape], "remote_write": remote_write}), encoding="utf-8")
        command = [os.environ["PROMETHEUS_3"], f"--config.file={config}", f"--storage.tsdb.path={RUN / 'tsdb'}"]
        command += [f"--web.listen-address={self.url[7:]}", "--log.level=error", "--query.max-samples=100000000"]
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self):
        for _ in range(200):
            try:
                urllib.request.urlopen(self.url + "/-/ready").read()
                return
            except OSError:
                time.sleep(0.1)
        sys.exit("error: Prometheus does not become ready")

    def samples(self, selector, start, end):
        """Raw samples, as arrays of seconds and values."""
        query = f"{selector}[{round((end - start) * 1000)}ms]"
        body = urllib.parse.urlencode({"query": query, "time": f"{end:.3f}"}).encode()
        result = json.load(urllib.request.urlopen(self.url + "/api/v1/query", body))["data"]["result"]
        if len(result) != 1:
            sys.exit(f"error: {len(result)} series match {query}")
        return np.array([(float(t), float(v)) for t, v in result[0]["values"]]).T


def postgres(program, *options):
    """A command of PostgreSQL, which refuses to run as root: it runs as somebody else, who is root outside."""
    program = os.path.join(os.environ["POSTGRES_BIN"], program)
    return ["unshare", "--user", "--map-user=65534", "--map-group=65534", program, "-D", str(DATABASE), *options]


def make_database():
    subprocess.run(postgres("initdb", "-U", "postgres", "-A", "trust", "-N"), check=True, stdout=subprocess.DEVNULL)
    with open(DATABASE / "pg_hba.conf", "a", encoding="utf-8") as file:
        file.write("host all all 172.17.0.0/16 trust\n")


def perform(network, links, start, row_seconds):
    """Does what the plan does to links, each at its minute, and tells each day."""
    day = -1
    for minute, namespace, device, action in links:
        while (wait := start + minute * row_seconds - time.time()) > 0:
            time.sleep(min(wait, 1.0))
            today = int((time.time() - start) / row_seconds / plans.DAY)
            if today > day:
                day = today
                print(f"day {day + 1}", file=sys.stderr, flush=True)
        try:
            network.act(namespace, device, action)
        except subprocess.CalledProcessError as error:
            sys.exit(f"error: minute {minute}: {error}")


def tables(prometheus, start, row_seconds, n_minutes):
    """A table a host: a row a scrape, at its own time, stretched."""
    factor = 60 / row_seconds
    end = start + n_minutes * row_seconds
    for host in HOSTS:
        columns, times = {}, None
        for device in DEVICES:
            for metric in METRICS:
                name = f"node_network_{metric}_total"
                selector = f'{name}{{instance="{host}",device="{device}"}}'
                seconds, values = prometheus.samples(selector, start, end)
                columns[f'{name}{{device="{device}"}}'] = dict(zip(seconds, values))
                times = seconds if times is None or len(seconds) > len(times) else times
        frame = {"timestamp": pa.array([EPOCH_MS + round((t - start) * factor * 1000) for t in times], pa.int64())}
        for name, column in columns.items():
            values = [None if t not in column else round(column[t] * factor) for t in times]
            frame[name] = pa.array(values, pa.int64())
        yield host, pa.table(frame)


def save(folder, plan, recorded):
    folder.mkdir(parents=True, exist_ok=True)
    for host, table in recorded:
        if table.num_rows < MIN_ROWS * plan.n_minutes:
            sys.exit(f"error: {host} has {table.num_rows} rows of {plan.n_minutes}: the machine is too busy to record")
        encodings = {name: "DELTA_BINARY_PACKED" for name in table.column_names}
        pq.write_table(
            table, folder / f"{host}.parquet", compression="zstd", compression_level=19, use_dictionary=False,
            column_encoding=encodings,
        )  # fmt: skip
        print(f"{host}: {table.num_rows} rows", file=sys.stderr)
    with open(folder / "labels.jsonl", "w", encoding="utf-8") as file:
        for label in plan.labels:
            row = asdict(label)
            row["start"], row["end"] = (EPOCH_MS + int(row[key]) * 60_000 for key in ("start", "end"))
            file.write(json.dumps(row) + "\n")


def begin(plan, row_seconds):
    """Starts the programs of every namespace; the time of the first lab minute."""
    make_database()
    np.save(PLAN, plan.table)
    start = round(time.time() + 5, 1)
    for namespace in NAMESPACES[1:]:
        program = [sys.executable, str(HERE / "traffic.py"), str(PLAN)]
        subprocess.Popen(inside(namespace, *program, namespace, str(start), str(row_seconds)))
    prefer_lab()
    settings = ["-c", "listen_addresses=*", "-c", "fsync=off", "-c", f"unix_socket_directories={DATABASE}"]
    subprocess.Popen(inside("db-c", *postgres("postgres", *settings)), stderr=subprocess.DEVNULL)
    return start


def record(args):
    plan = plans.make(args.seed, args.ordinary_days, args.faulty_days)
    row_seconds = args.day_seconds / plans.DAY
    network = Network()
    start = begin(plan, row_seconds)
    prometheus = Prometheus({host: node_exporter(host) for host in HOSTS}, row_seconds)
    prometheus.wait()
    end = (plan.n_minutes, "switch", "lan0", "up")
    perform(network, [*plan.links, end], start, row_seconds)
    time.sleep(2 * row_seconds)
    save(args.folder, plan, tables(prometheus, start, row_seconds, plan.n_minutes))


def live(args):
    """Ordinary traffic, and faults on command: `start KIND` on standard input answers with its labels, `stop` ends all. What
    Prometheus scrapes is sent to a URL by remote write."""
    kinds = {fault[0]: fault for fault in plans.FAULTS}
    network = Network()
    begun = begin(plans.steady(1, 3600), args.row_seconds)
    time.sleep(max(0.0, begun + 1 - time.time()))
    Prometheus({host: node_exporter(host) for host in HOSTS}, args.row_seconds, args.url).wait()
    plan = plans.Plan(np.load(PLAN, mmap_mode="r+"))
    calm = plan.table.copy()
    for line in sys.stdin:
        command, _, kind = line.strip().partition(" ")
        labels = []
        if command == "start":
            now = int((time.time() - begun) / args.row_seconds) + 1
            kinds[kind][3](plan, now, plan.n_minutes, True)
            links = [link for link in plan.links if link[0] == now]
            labels = [dict(zip(("host", "devices", "metrics"), label)) for label in plans.labels_of(kinds[kind], True)]
        else:
            plan.table[:] = calm
            links = [link for link in plan.links if link[0] == plan.n_minutes]
            plan.links.clear()
        for _, *link in links:
            network.act(*link)
        print(json.dumps(labels), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    recording = commands.add_parser("record", help="record days into a folder")
    recording.add_argument("folder", type=Path)
    recording.add_argument("--seed", type=int, default=1)
    recording.add_argument("--ordinary-days", type=int, default=9)
    recording.add_argument("--faulty-days", type=int, default=20)
    recording.add_argument("--day-seconds", type=float, default=120)
    recording.set_defaults(run=record)
    playing = commands.add_parser("live", help=live.__doc__)
    playing.add_argument("url", help="remote-write endpoint")
    playing.add_argument("--row-seconds", type=float, default=1.0)
    playing.set_defaults(run=live)
    args = parser.parse_args()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    programs = [name for name in ("ip", "tc", "mount", "nsenter", "unshare") if not shutil.which(name)]
    if programs:
        sys.exit(f"error: not in PATH: {', '.join(programs)} (Debian's packages iproute2, mount and util-linux)")
    missing = [name for name in ("PROMETHEUS_3", "NODE_EXPORTER", "POSTGRES_BIN") if name not in os.environ]
    if missing:
        sys.exit(f"error: not set: {', '.join(missing)} (eval \"$(tests/components.sh)\")")
    isolate()
    args.run(args)


if __name__ == "__main__":
    main()
