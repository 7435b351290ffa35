"""Runs a program to which the kernel refuses something: `ring|landlock|pipes|room PROGRAM ARGUMENTS…`.

ring: io_uring, as docker's default seccomp profile does. landlock: as a kernel without it. pipes: new pipes, for want of memory. room: larger pipes, as past
a user's quota.
"""

import ctypes, os, struct, sys

LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, EPERM, ENOMEM, ENOSYS = 0x7FFF0000, 0x00050001, 0x0005000C, 0x00050026
# Where the number of a call and the lower half of its second argument stand in what a filter is shown.
NUMBER, SECOND = 0, 24
PIPE2, FCNTL = {"x86_64": (293, 72), "aarch64": (59, 25)}[os.uname().machine]
F_SETPIPE_SZ = 1031

steps = {
    # io_uring_setup, io_uring_enter and io_uring_register have these numbers on every architecture.
    "ring": [(LOAD, 0, 0, NUMBER), (AT_LEAST, 0, 2, 425), (AT_LEAST, 1, 0, 428), (RETURN, 0, 0, EPERM)],
    # So have landlock_create_ruleset, landlock_add_rule and landlock_restrict_self.
    "landlock": [(LOAD, 0, 0, NUMBER), (AT_LEAST, 0, 2, 444), (AT_LEAST, 1, 0, 447), (RETURN, 0, 0, ENOSYS)],
    "pipes": [(LOAD, 0, 0, NUMBER), (EQUAL, 0, 1, PIPE2), (RETURN, 0, 0, ENOMEM)],
    "room": [
        (LOAD, 0, 0, NUMBER),
        (EQUAL, 0, 3, FCNTL),
        (LOAD, 0, 0, SECOND),
        (EQUAL, 0, 1, F_SETPIPE_SZ),
        (RETURN, 0, 0, EPERM),
    ],
}[sys.argv[1]] + [(RETURN, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
libc = ctypes.CDLL(None)
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_SECCOMP, FILTER, ctypes.byref(Program(len(steps), ctypes.addressof(code))), 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
