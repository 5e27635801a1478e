"""The programs of one network namespace: servers, and clients that follow the rates of a plan.

    traffic.py PLAN NAMESPACE START ROW_SECONDS

PLAN: npy of a plan's table, read while it plays; START: Unix time of the first lab minute, which lasts ROW_SECONDS. Every
namespace serves HTTP on port 80, datagrams on 53, and takes bytes on 9.
"""

import asyncio
import contextlib
import errno
import os
import random
import socket
import sys
import threading
import time

import numpy as np
import psycopg2
from plan import ADDRESS, FLOWS, MUTE

TICK = 0.01
PATIENCE = 0.5  # seconds without an answer, after which a client connects anew
N_SESSIONS = 2  # of a client of PostgreSQL
BODY = bytes(1 << 20)
TCP_USER_TIMEOUT = 18


def prepare(sock):
    sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, int(PATIENCE * 1000))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)


def prefer_lab():
    """Real-time priority for all that follows, where it is allowed: a busy machine would stall the traffic, which is no
    fault of the plan. Programs load before: that would stall the traffic of another lab."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


class Clock:
    def __init__(self, start, row_seconds, n_minutes):
        self.start, self.row_seconds, self.n_minutes = start, row_seconds, n_minutes

    def minute(self):
        return int((time.time() - self.start) / self.row_seconds)

    def at(self, table):
        minute = self.minute()
        return table[minute] if 0 <= minute < self.n_minutes else 0.0


class HttpServer(asyncio.Protocol):
    """Answers `GET /BYTES` over kept connections; a connection of the muted share gets no answer."""

    def __init__(self, clock, mute):
        self.clock, self.mute, self.rest, self.chance = clock, mute, b"", random.random()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        *requests, self.rest = (self.rest + data).split(b"\r\n\r\n")
        if self.mute is not None and self.chance < self.clock.at(self.mute):
            return
        for request in requests:
            size = int(request.split(b" ", 2)[1][1:])
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + BODY[:size])


class Sink(asyncio.Protocol):
    pass


class Datagrams(asyncio.DatagramProtocol):
    """Answers with as many bytes as the first two of a datagram say."""

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, source):
        size = int.from_bytes(data[:2], "big")
        if size:
            self.transport.sendto(BODY[:size], source)


class Connection(asyncio.Protocol):
    """A connection of a client, made anew when it fails or nothing has moved for a while."""

    def __init__(self, address):
        self.address, self.transport, self.moved, self.is_connecting = address, None, 0.0, False
        self.waiting, self.head = 0, b""

    async def connect(self):
        self.is_connecting = True
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        prepare(sock)
        try:
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(sock, self.address)
            await loop.create_connection(lambda: self, sock=sock)
        except (OSError, TimeoutError):
            sock.close()
            await asyncio.sleep(0.05)
        self.is_connecting = False

    def ready(self):
        """True if something can be sent."""
        is_stuck = self.waiting or (self.transport and self.transport.get_write_buffer_size())
        if self.transport and is_stuck and time.monotonic() - self.moved > PATIENCE:
            self.transport.abort()
            self.transport = None
        if self.transport is None and not self.is_connecting:
            asyncio.create_task(self.connect())
        return self.transport is not None and not self.transport.is_closing()

    def connection_made(self, transport):
        transport.set_write_buffer_limits(high=1 << 17)
        self.transport, self.moved, self.waiting, self.head = transport, time.monotonic(), 0, b""

    def resume_writing(self):
        self.moved = time.monotonic()

    def data_received(self, data):
        self.moved = time.monotonic()
        self.waiting = max(0, self.waiting - (self.head + data).count(b"HTTP/1.1 200"))
        self.head = data[-11:]

    def connection_lost(self, error):
        self.transport = None


class HttpFlow:
    def __init__(self, target, request, answer, port=80):
        self.connections = [Connection((target, port)) for _ in range(4)]
        self.request, self.answer = request, answer

    def send(self, amount):
        for i, connection in enumerate(self.connections):
            n_requests = (amount + i) // len(self.connections)
            if not connection.ready() or connection.waiting > 500:
                continue
            if connection.waiting == 0:
                connection.moved = time.monotonic()
            heads = []
            for _ in range(n_requests):
                head = b"GET /%d HTTP/1.1\r\nHost: lab\r\nX-Fill: " % int(self.answer * random.lognormvariate(0, 0.4))
                heads.append(head + b"x" * max(0, self.request - len(head) - 4) + b"\r\n\r\n")
            connection.transport.write(b"".join(heads))
            connection.waiting += n_requests


class PourFlow:
    def __init__(self, target):
        self.connection = Connection((target, 9))

    def send(self, amount):
        if self.connection.ready() and self.connection.transport.get_write_buffer_size() < 1 << 17:
            if not self.connection.transport.get_write_buffer_size():
                self.connection.moved = time.monotonic()
            self.connection.transport.write(BODY[: min(amount, len(BODY))])


class UdpFlow:
    def __init__(self, target, request, answer, port=53):
        self.socket = socket.socket(type=socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        self.socket.setblocking(False)
        self.target, self.datagram = (target, port), answer.to_bytes(2, "big") + bytes(request)

    def send(self, amount):
        try:
            for _ in range(amount):
                self.socket.sendto(self.datagram, self.target)
        except OSError as error:
            if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EAGAIN, errno.ENOBUFS, errno.ENETDOWN):
                raise


class ScanFlow:
    def __init__(self, target):
        self.target = target

    def send(self, amount):
        for _ in range(amount):
            with socket.socket() as probe:
                probe.setblocking(False)
                probe.connect_ex((self.target, random.randrange(10_000, 60_000)))


async def play(flow, table, clock):
    """Sends what is due, every tick."""
    due, last = 0.0, time.time()
    while clock.minute() < clock.n_minutes:
        await asyncio.sleep(TICK)
        now = time.time()
        due += clock.at(table) * min(now - last, 0.25)
        last = now
        if due >= 1:
            flow.send(int(due))
            due -= int(due)


def query(target, size, table, clock):
    """Queries PostgreSQL at the rate of a table."""
    connection, due, last = None, 0.0, time.time()
    while clock.minute() < clock.n_minutes:
        time.sleep(TICK)
        now = time.time()
        due = min(due + clock.at(table) / N_SESSIONS * (now - last), 100)
        last = now
        try:
            if connection is None:
                connection = psycopg2.connect(
                    host=target, user="postgres", dbname="postgres", sslmode="disable", connect_timeout=2, tcp_user_timeout=500
                )
                connection.autocommit = True
            with connection.cursor() as cursor:
                while due >= 1:
                    cursor.execute("select repeat('x', %s)", [int(size * random.lognormvariate(0, 0.4))])
                    cursor.fetchall()
                    due -= 1
        except psycopg2.Error:
            connection = None
            due = 0.0


def flow_of(kind, target, request, answer):
    match kind:
        case "http":
            return HttpFlow(target, request, answer)
        case "pour":
            return PourFlow(target)
        case "udp":
            return UdpFlow(target, request, answer)
        case "cast":
            return UdpFlow(target, request, 0, port=9999)
        case "scan":
            return ScanFlow(target)


async def main(path, namespace, start, row_seconds):
    prefer_lab()
    plan = np.load(path, mmap_mode="r")
    clock = Clock(float(start), float(row_seconds), plan.shape[1])
    mute = plan[MUTE] if namespace == "app-c" else None
    random.seed(namespace)
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: HttpServer(clock, mute), "0.0.0.0", 80)
    await loop.create_server(Sink, "0.0.0.0", 9)
    await loop.create_datagram_endpoint(Datagrams, ("0.0.0.0", 53))
    plays = []
    for row, (_, source, target, kind, request, answer) in zip(plan, FLOWS):
        if source != namespace:
            continue
        address = "127.0.0.1" if target == source else ADDRESS.get(target, target)
        if kind == "sql":
            for _ in range(N_SESSIONS):
                threading.Thread(target=query, args=(address, answer, row, clock), daemon=True).start()
        else:
            plays.append(play(flow_of(kind, address, request, answer), row, clock))
    await asyncio.sleep(max(0.0, clock.start - time.time()))
    await asyncio.gather(*plays)
    await asyncio.sleep(max(0.0, clock.start + clock.n_minutes * clock.row_seconds - time.time()))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
