#!/usr/bin/env python3
"""The two sides of bench/network.sh's connections, and what it counts.

  network.py serve PORT                   answers every connection, until killed
  network.py throughput HOST PORT SECONDS megabytes a second that are read
  network.py rate HOST PORT SECONDS       short requests a second, each its own connection
  network.py dns SERVER NAME COUNT        milliseconds until a name is answered, the median
"""
import socket
import statistics
import struct
import sys
import threading
import time

SIZE = 256 * 1024
ANSWER = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"


def endless(peer):
    zeros = bytes(SIZE)
    try:
        while True:
            peer.sendall(zeros)
    except OSError:
        peer.close()


def serve(port):
    listener = socket.create_server(("0.0.0.0", int(port)), backlog=1024)
    while True:
        peer, _ = listener.accept()
        try:
            if peer.recv(64).startswith(b"ENDLESS"):
                threading.Thread(target=endless, args=(peer,), daemon=True).start()
                continue
            peer.sendall(ANSWER)
        except OSError:
            pass
        peer.close()


def throughput(host, port, seconds):
    with socket.create_connection((host, int(port)), 10) as peer:
        peer.sendall(b"ENDLESS")
        buffer, total = bytearray(SIZE), 0
        begin = time.monotonic()
        while time.monotonic() - begin < float(seconds):
            total += peer.recv_into(buffer)
        return total / 1e6 / (time.monotonic() - begin)


def rate(host, port, seconds):
    count, begin = 0, time.monotonic()
    while time.monotonic() - begin < float(seconds):
        with socket.create_connection((host, int(port)), 10) as peer:
            peer.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while part := peer.recv(4096):
                answer += part
            if answer != ANSWER:
                sys.exit(f"a wrong answer: {answer!r}")
        count += 1
    return count / (time.monotonic() - begin)


def dns(server, name, count):
    times = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(5)
        asker.connect((server, 53))
        for number in range(int(count)):
            labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
            question = struct.pack(">6H", number & 0xFFFF, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
            begin = time.monotonic()
            asker.send(question)
            answer = asker.recv(4096)
            times.append(time.monotonic() - begin)
            if answer[:2] != question[:2] or answer[3] & 15 or answer[6:8] == b"\0\0":
                sys.exit(f"{name} is not answered: {answer!r}")
    return statistics.median(times) * 1000


verbs = {"serve": serve, "throughput": throughput, "rate": rate, "dns": dns}
print(f"{verbs[sys.argv[1]](*sys.argv[2:]):.4f}")
