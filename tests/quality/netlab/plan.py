"""What happens in the lab, minute by minute: flows with their rates, actions on links, and the labels of faults.

A plan is a pure function of its seed and its days. Time is counted in lab minutes from Monday, 00:00.
"""

from dataclasses import dataclass, field

import numpy as np

DAY = 1440
HOSTS = ["web", "app", "db"]
DEVICES = ["eth0", "eth1", "docker0", "ct0", "lo"]
# Address of each network namespace: hosts have two uplinks, and a container behind a bridge.
ADDRESS = {"world": "10.0.0.1", "store": "10.0.1.1"}
ADDRESS |= {host: f"10.0.0.{11 + i}" for i, host in enumerate(HOSTS)}
ADDRESS |= {f"{host}-c": f"172.17.{1 + i}.2" for i, host in enumerate(HOSTS)}
# Name, source, target, kind, bytes of a request and of an answer. A flow without a rate is a fault's.
#   http    requests/s over kept connections         udp   datagrams/s with an answer (0 bytes: none)
#   sql     queries/s to PostgreSQL                  pour  bytes/s over one connection
#   scan    connection attempts/s to closed ports    cast  broadcast datagrams/s, from one port
FLOWS = [
    ("pages", "world", "web-c", "http", 400, 4000),
    ("api", "web-c", "app-c", "http", 300, 1500),
    ("sql", "app-c", "db-c", "sql", 100, 600),
    ("downloads", "web-c", "world", "pour", 0, 0),
    *((f"dns-{host}", host, "world", "udp", 50, 140) for host in HOSTS),
    *((f"checks-{host}", host, host, "http", 200, 900) for host in HOSTS),
    *((f"logs-{host}", host, "store", "pour", 0, 0) for host in HOSTS),
    *((f"backup-{host}", host, "store", "pour", 0, 0) for host in HOSTS),
    *((f"updates-{host}", "world", host, "pour", 0, 0) for host in HOSTS),
    ("pages-elsewhere", "world", "app-c", "http", 400, 4000),
    ("exfiltration", "db-c", "world", "pour", 0, 0),
    ("leak", "app-c", "world", "pour", 0, 0),
    ("scan", "world", "app", "scan", 0, 0),
    ("reflection", "world", "web", "udp", 50, 1300),
    ("storm", "world", "10.0.0.255", "cast", 200, 0),
]
# Start (minute of the day), minutes and bytes/s of the nightly backup of each host.
BACKUPS = {"db": (120, 45, 2_500_000), "web": (210, 20, 900_000), "app": (250, 15, 700_000)}


@dataclass
class Label:
    kind: str
    size: str
    start: int
    end: int
    host: str
    devices: list
    metrics: list


# A row of the plan's table beside those of the flows: the share of connections to app-c whose requests get no answer.
MUTE = len(FLOWS)


@dataclass
class Plan:
    # A row a flow, by minute: its rate per second. Agents read it while it plays.
    table: np.ndarray
    # Minute, namespace, device, action (up, down, recreate, "limit BYTES/S", unlimit).
    links: list = field(default_factory=list)
    labels: list = field(default_factory=list)

    @classmethod
    def of(cls, n_minutes):
        return cls(np.zeros((len(FLOWS) + 1, n_minutes)))

    @property
    def n_minutes(self):
        return self.table.shape[1]

    @property
    def rates(self):
        """The row of each flow."""
        return {flow[0]: row for flow, row in zip(FLOWS, self.table)}

    def busy(self, start, end, hosts, gap):
        return any(
            label.start - gap < end and start < label.end + gap and (label.host in hosts or gap == 0)
            for label in self.labels
        )


def noise(rng, n_minutes, sigma, minutes=20):
    """A log-normal factor that wanders, with a correlation time in minutes."""
    rho = np.exp(-1 / minutes)
    steps = rng.normal(0, sigma * np.sqrt(1 - rho * rho), n_minutes)
    level = np.empty(n_minutes)
    level[0] = rng.normal(0, sigma)
    for i in range(1, n_minutes):
        level[i] = rho * level[i - 1] + steps[i]
    return np.exp(level)


def rhythm(n_minutes, night, weekend):
    """Share of the peak: two humps on a working day, one flat hump on a weekend, growth of a percent a day."""
    minute = np.arange(n_minutes)
    hour, day = minute / 60 % 24, minute // DAY
    work = np.exp(-(((hour - 10.5) / 2.6) ** 2)) + 0.9 * np.exp(-(((hour - 15.5) / 3.2) ** 2))
    rest = weekend * np.exp(-(((hour - 16) / 5.5) ** 2))
    share = night + (1 - night) * np.where(day % 7 < 5, np.minimum(work, 1.1), rest)
    return share * 1.01**day


def people_and_checks(plan, rng, people):
    """The flows that never rest; people: their share of the peak."""
    n = plan.n_minutes
    people = people * noise(rng, n, 0.09)
    wander = lambda sigma: noise(rng, n, sigma)
    rates = plan.rates
    rates["pages"][:] = 300 * people * wander(0.04)
    rates["api"][:] = 200 * people * wander(0.05)
    rates["sql"][:] = 260 * people * wander(0.05) + 30
    for i, host in enumerate(HOSTS):
        rates[f"dns-{host}"][:] = (30 + 40 * people) * wander(0.1)
        rates[f"checks-{host}"][:] = (60 + 20 * i) * wander(0.06)
        rates[f"logs-{host}"][:] = (30_000 + 120_000 * people) * wander(0.1)


def steady(seed, n_minutes):
    """Minutes of a working noon, without machines' jobs."""
    plan = Plan.of(n_minutes)
    people_and_checks(plan, np.random.default_rng(seed), np.ones(n_minutes))
    return plan


def ordinary(seed, n_days):
    """Days without faults: people, machines at their hours, deployments."""
    rng = np.random.default_rng(seed)
    n = n_days * DAY
    plan = Plan.of(n)
    people_and_checks(plan, rng, rhythm(n, 0.22, 0.45))
    rates = plan.rates
    for i, host in enumerate(HOSTS):
        rates[f"logs-{host}"][np.arange(n) % 60 // 3 == 1 + i] += 250_000  # an hourly job
    for host, (start, minutes, speed) in BACKUPS.items():
        for day in range(n_days):
            begin = day * DAY + start + rng.integers(0, 4)
            rates[f"backup-{host}"][begin : begin + int(minutes * rng.uniform(0.9, 1.1))] = speed * rng.uniform(0.9, 1.1)
    for day in range(n_days):
        for host in HOSTS:
            begin = day * DAY + 360 + rng.integers(0, 20)
            rates[f"updates-{host}"][begin : begin + rng.integers(3, 9)] = 300_000
        for _ in range(rng.poisson(8 if day % 7 < 5 else 4)):
            begin = int(day * DAY + np.clip(rng.normal(14, 4), 6, 23) * 60)
            rates["downloads"][begin : begin + rng.integers(2, 8)] += rng.uniform(200_000, 500_000)
        if day % 7 < 5:
            for host in rng.permutation(["web", "app"])[: rng.integers(1, 3)]:
                begin = int(day * DAY + rng.uniform(9.5, 17) * 60)
                rates[f"updates-{host}"][begin : begin + 3] = 600_000
                plan.links.append((begin + 3, host, "ct0", "recreate"))
    return plan


FORWARDED = ["eth0", "docker0", "ct0"]
BYTES = ["receive_bytes", "transmit_bytes"]
PACKETS = ["receive_packets", "transmit_packets"]
ANY = BYTES + PACKETS


def multiply(flow, large, small):
    def apply(plan, start, end, is_large):
        plan.rates[flow][start:end] *= large if is_large else small

    return apply


def add(flow, large, small):
    def apply(plan, start, end, is_large):
        plan.rates[flow][start:end] += large if is_large else small

    return apply


def saturate(plan, start, end, is_large):
    usual = plan.rates["pages"][start:end].mean() * 4400
    plan.links += [(start, "web", "eth0", f"limit {int(usual * (0.25 if is_large else 0.5))}"), (end, "web", "eth0", "unlimit")]


def silence(plan, start, end, is_large):
    plan.table[MUTE, start:end] = 1.0 if is_large else 0.4


def down(large, small):
    def apply(plan, start, end, is_large):
        host, device = large if is_large else small
        plan.links += [(start, host, device, "down"), (end, host, device, "up")]

    return apply


def flap(host, device):
    def apply(plan, start, end, is_large):
        period = 4 if is_large else 10
        for begin in range(start, end - 1, period):
            plan.links += [(begin, host, device, "down"), (begin + 2, host, device, "up")]

    return apply


def crash_loop(plan, start, end, is_large):
    for begin in range(start, end, 3 if is_large else 10):
        plan.links.append((begin, "app", "ct0", "recreate"))


def misplaced_backup(plan, start, end, is_large):
    host = "db" if is_large else "web"
    plan.rates[f"backup-{host}"][start:end] = BACKUPS[host][2]


def missing_backup(plan, start, end, is_large):
    plan.rates["backup-db" if is_large else "backup-web"][start:end] = 0


def leak(plan, start, end, is_large):
    plan.rates["leak"][start:end] = np.linspace(0, 500_000 if is_large else 120_000, end - start)


def move(plan, start, end, is_large):
    share = 0.9 if is_large else 0.5
    plan.rates["pages-elsewhere"][start:end] = share * plan.rates["pages"][start:end]
    plan.rates["pages"][start:end] *= 1 - share


def switch_down(plan, start, end, is_large):
    end = end if is_large else start + 3
    plan.links += [(start, "switch", "lan0", "down"), (end, "switch", "lan0", "up")]


# Kind, minutes, hours of the day at which it starts, what it does, and its labels: host, devices and metrics that an
# expert would name; a pair tells large from small.
WORK, NIGHT, ANYTIME = (9, 16), (22, 29), (0, 24)
FAULTS = [
    ("burst", 30, WORK, multiply("pages", 15, 4), [("web", FORWARDED, ANY)]),
    ("exfiltration at night", 45, NIGHT, add("exfiltration", 1_000_000, 150_000), [("db", FORWARDED, ANY)]),
    ("exfiltration at noon", 45, (11, 14), add("exfiltration", 1_500_000, 300_000), [("db", FORWARDED, ANY)]),
    ("port scan", 20, ANYTIME, add("scan", 1500, 250), [("app", ["eth0"], ANY)]),
    ("reflection", 30, ANYTIME, add("reflection", 900, 150), [("web", ["eth0"], ANY)]),
    ("saturation", 40, WORK, saturate, [("web", FORWARDED, ANY)]),
    ("half-open service", 30, WORK, silence, [("app", FORWARDED, ANY), ("web", FORWARDED, ANY)]),
    ("silent sender", 30, WORK, multiply("sql", 0, 0.3), [("db", FORWARDED, ANY), ("app", FORWARDED, ANY)]),
    ("link down", 25, WORK, down(("db", "eth0"), ("web", "eth1")), ([("db", FORWARDED, ANY)], [("web", ["eth1"], ANY)])),
    ("flapping link", 40, WORK, flap("db", "eth1"), [("db", ["eth1"], ANY)]),
    ("interface made again", 30, WORK, crash_loop, [("app", FORWARDED, ANY)]),
    ("broadcast storm", 20, ANYTIME, add("storm", 3000, 400), [(host, ["eth0"], ANY) for host in HOSTS]),
    ("duplicated requests", 40, WORK, multiply("api", 3, 2), [("app", FORWARDED, ANY), ("web", FORWARDED, ANY)]),
    ("backup at the wrong hour", 30, WORK, misplaced_backup, ([("db", ["eth1"], ANY)], [("web", ["eth1"], ANY)])),
    ("backup that did not run", None, None, missing_backup, ([("db", ["eth1"], ANY)], [("web", ["eth1"], ANY)])),
    ("slow leak", 1440, (0, 10), leak, [("app", FORWARDED, ANY)]),
    ("load moved", 45, WORK, move, [("web", FORWARDED, ANY), ("app", FORWARDED, ANY)]),
    ("switch down", 8, WORK, switch_down, [(host, FORWARDED, ANY) for host in HOSTS]),
]


def labels_of(fault, is_large):
    labels = fault[4]
    return labels[0 if is_large else 1] if isinstance(labels, tuple) else labels


def place(plan, rng, fault, is_large, first_day):
    """Puts a fault at a free time of its hours."""
    kind, minutes, hours, apply, _ = fault
    hosts = [host for host, *_ in labels_of(fault, is_large)]
    for gap in [150] * 400 + [90] * 400 + [45] * 4000:
        day = rng.integers(first_day, plan.n_minutes // DAY)
        if minutes is None:
            begin, length, _ = BACKUPS["db" if is_large else "web"]
            start, end = day * DAY + begin - 3, day * DAY + begin + int(length * 1.2) + 5
        else:
            if hours is WORK and kind in ("saturation", "half-open service", "silent sender") and day % 7 >= 5:
                continue
            start = int(day * DAY + rng.uniform(*hours) * 60)
            end = start + int(minutes * rng.uniform(0.8, 1.2))
        if end + 60 < plan.n_minutes and not plan.busy(start, end, hosts, gap):
            apply(plan, start, end, is_large)
            size = "large" if is_large else "small"
            plan.labels += [Label(kind, size, start, end, *label) for label in labels_of(fault, is_large)]
            return
    raise ValueError(f"no free time for {kind}: more days of faults are needed")


def make(seed, n_ordinary, n_faulty):
    """Ordinary days, then days with every fault: twice large, once small."""
    plan = ordinary(seed, n_ordinary + n_faulty)
    rng = np.random.default_rng([seed, 1])
    by_length = sorted(FAULTS, key=lambda fault: -(fault[1] or 10_000))
    for fault in by_length if n_faulty else []:
        for is_large in (True, False, True):
            place(plan, rng, fault, is_large, n_ordinary)
    plan.links.sort(key=lambda link: link[0])
    plan.labels.sort(key=lambda label: label.start)
    return plan
