"""Starts a unit's command confined the way its lines say, as far as that can be had without systemd: `UNIT [SOCKET-UNIT]`.

The lines that change what a program can do are carried out: its sockets, its mounts, its user namespace, its capabilities
and its system calls. Prints the name of each line that it carried out.
"""

import ctypes, os, re, shutil, socket, struct, subprocess, sys

libc = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUSER = 0x20000, 0x10000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
CAPBSET_DROP, NO_NEW_PRIVS, SECCOMP = 24, 38, 22
CAPABILITIES = {"CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SETPCAP": 8, "CAP_NET_BIND_SERVICE": 10, "CAP_NET_ADMIN": 12,
                "CAP_PERFMON": 38, "CAP_BPF": 39}


def read(path):
    lines = {}
    for name, value in re.findall(r"^([A-Za-z]+)=(.*)$", open(path).read(), re.M):
        lines.setdefault(name, []).append(value)
    return lines


def must(done, what):
    if done < 0:
        raise OSError(ctypes.get_errno(), what)


def mount(source, target, kind, flags, data=None):
    encode = lambda text: text.encode() if text else None
    must(libc.mount(encode(source), encode(target), encode(kind), flags, encode(data)), f"mount {target}")


def read_only(path):
    mount(path, path, None, BIND | REC)
    mount(None, path, None, REMOUNT | BIND | RDONLY | NOSUID | (NODEV | NOEXEC if path.startswith("/sys") else 0))


def mounts(unit):
    on = lambda name: unit.get(name, ["no"])[-1] in ("yes", "strict", "invisible", "pid")
    must(libc.unshare(NEWNS), "unshare mounts")
    mount(None, "/", None, REC | PRIVATE)
    for name in unit.get("LogsDirectory", []):
        path = f"/var/log/{name}"
        os.makedirs(path, int(unit["LogsDirectoryMode"][0], 8), exist_ok=True)
        shutil.chown(path, unit["User"][0], unit["User"][0])
        mount(path, path, None, BIND)
    for name, paths in {"ProtectSystem": ["/etc", "/usr", "/var"], "ProtectKernelTunables": ["/sys"],
                        "ProtectControlGroups": ["/sys/fs/cgroup"]}.items():
        if on(name):
            # What is mounted beneath stays as it is, as with systemd.
            [read_only(path) for path in paths if path != "/sys/fs/cgroup" or os.path.ismount(path)]
            yield name
    if on("ProtectKernelTunables") and "/sys/fs/bpf" not in unit.get("ReadWritePaths", []):
        read_only("/sys/fs/bpf")
    options = ["hidepid=2"] * on("ProtectProc") + ["subset=pid"] * on("ProcSubset")
    if options:
        mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC, ",".join(options))
        yield "ProtectProc"


def users(user):
    """A user namespace that knows root and this user. Another process has to write that."""
    import pwd
    entry = pwd.getpwnam(user)
    ready, go = os.pipe(), os.pipe()
    target = os.getpid()
    if os.fork() == 0:
        os.read(ready[0], 1)
        for name, id in (("uid_map", entry.pw_uid), ("gid_map", entry.pw_gid)):
            open(f"/proc/{target}/{name}", "w").write(f"0 0 1\n{id} {id} 1\n")
        os.write(go[1], b".")
        os._exit(0)
    must(libc.unshare(NEWUSER), "unshare users")
    os.write(ready[1], b".")
    assert os.read(go[0], 1)
    os.wait()
    [os.close(fd) for fd in (*ready, *go)]


def allowed(filters):
    def names(of):
        if not of.startswith("@"):
            return {of}
        lines = subprocess.run(["systemd-analyze", "syscall-filter", of], capture_output=True, text=True).stdout.splitlines()
        return set().union(*(names(line.strip()) for line in lines if re.match(r"\s+[@a-z0-9_-]+$", line)))
    found = names("@default")
    for line in filters:
        these = set().union(*map(names, line.lstrip("~").split()))
        found = found - these if line.startswith("~") else found | these
    return found


def filter_of(filters):
    header = open("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").read()
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", header)}
    steps = [(0x20, 0, 0, 0)]
    for name in allowed(filters) & numbers.keys() | {"execve"}:
        steps += [(0x15, 0, 1, numbers[name]), (0x06, 0, 0, 0x7FFF0000)]
    return steps + [(0x06, 0, 0, 0x00050001)]


def system_calls(steps):
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    must(libc.prctl(SECCOMP, 2, ctypes.byref(Program(len(steps), ctypes.addressof(code))), 0, 0), "seccomp")


unit, done = read(sys.argv[1]), []
sockets = []
for address in read(sys.argv[2])["ListenStream"] if len(sys.argv) > 2 else []:
    host, port = address.rsplit(":", 1)
    sockets.append(socket.create_server((host, int(port)), backlog=4096))
calls = unit["SystemCallFilter"]
can_filter = os.path.exists("/usr/include/x86_64-linux-gnu/asm/unistd_64.h") and shutil.which("systemd-analyze")
steps = filter_of(calls) if can_filter else []
done += mounts(unit)
if unit.get("PrivateUsers") == ["yes"]:
    users(unit["User"][0])
    done.append("PrivateUsers")
kept = {CAPABILITIES[name] for name in unit["CapabilityBoundingSet"][0].split()}
[libc.prctl(CAPBSET_DROP, number, 0, 0, 0) for number in range(41) if number not in kept]
must(libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
done.append("CapabilityBoundingSet")
command = unit["ExecStart"][0].lstrip("!").split()
print("carried out:", *done, *["SystemCallFilter"] * bool(can_filter), flush=True)
if sockets:
    for fd, one in enumerate(sockets, 3):
        os.dup2(one.fileno(), fd)
        os.set_inheritable(fd, True)
    os.environ |= {"LISTEN_FDS": str(len(sockets)), "LISTEN_PID": str(os.getpid())}
if can_filter:
    system_calls(steps)
os.execv(command[0], command)
