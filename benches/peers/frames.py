"""Sends one frame again and again out of an interface, from inside the kernel (BPF_PROG_TEST_RUN with live frames).

A sender on a socket costs more than most filters, and would hide what they cost.

frames.py INTERFACE COUNT FRAME: FRAME is hexadecimal. Prints the nanoseconds of processor time that it took, in this
process and in its core's softirq thread; the other end of a veth pair receives in these two as well.
"""

import ctypes
import os
import platform
import socket
import struct
import sys
import time

# <linux/bpf.h>
PROG_LOAD, PROG_TEST_RUN = 5, 10
PROG_TYPE_XDP, XDP_TX, TEST_XDP_LIVE_FRAMES = 6, 3, 2
# r0 = XDP_TX; exit
PROGRAM = struct.pack("<BBhi BBhi", 0xB7, 0, 0, XDP_TX, 0x95, 0, 0, 0)
BATCH = 64
CALL = {"x86_64": 321, "aarch64": 280}

libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, attribute):
    attribute = ctypes.create_string_buffer(attribute, 128)
    result = libc.syscall(CALL[platform.machine()], command, attribute, 128)
    if result < 0:
        raise SystemExit(f"bpf({command}): {os.strerror(ctypes.get_errno())}")
    return result


def softirq_thread(core):
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/comm") as name:
                if name.read().strip() == f"ksoftirqd/{core}":
                    return f"/proc/{process}/schedstat"
        except OSError:
            pass  # it ended meanwhile
    raise SystemExit(f"there is no ksoftirqd/{core}")


def spent(thread):
    with open(thread) as stat:
        return time.process_time_ns() + int(stat.read().split()[0])


def main(interface, count, frame):
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    program, licence = ctypes.create_string_buffer(PROGRAM), ctypes.create_string_buffer(b"GPL")
    attribute = struct.pack("<IIQQ", PROG_TYPE_XDP, 2, ctypes.addressof(program), ctypes.addressof(licence))
    fd = bpf(PROG_LOAD, attribute)
    data = ctypes.create_string_buffer(frame, len(frame))
    # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    context = struct.pack("<6I", 0, len(frame), 0, socket.if_nametoindex(interface), 0, 0)
    context = ctypes.create_string_buffer(context, len(context))
    attribute = struct.pack("<IIIIQQII", fd, 0, len(frame), 0, ctypes.addressof(data), 0, count, 0)
    attribute += struct.pack("<IIQQIII", 24, 0, ctypes.addressof(context), 0, TEST_XDP_LIVE_FRAMES, 0, BATCH)
    thread = softirq_thread(core)
    begin = spent(thread)
    bpf(PROG_TEST_RUN, attribute)
    time.sleep(0.05)  # what still waits is received meanwhile
    print(spent(thread) - begin)


main(sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3]))
