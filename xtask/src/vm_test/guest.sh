#!/bin/bash
# The first process of the virtual machine. Each check says `CHECK pass NAME` or `CHECK fail NAME` on the console;
# `CHECK end` says that the script has got to its end.
export PATH=/bin
IN=10.1.0.1
USER=alice:open-sesame

say() { printf '%s\n' "$*" >/dev/console; }

check() { # NAME COMMAND…
    local name=$1
    shift
    if "$@" >/tmp/said 2>&1; then
        say "CHECK pass $name"
    else
        say "CHECK fail $name"
        tail -n 20 /tmp/said | sed 's/^/    /' >/dev/console
    fi
}

boot() {
    /bin/busybox mkdir -p /proc /sys /dev /tmp /etc /run /www
    for applet in awk chmod cmp cp cut dd cat grep head httpd insmod kill ls mkdir mkfifo mount mv poweroff rm sed seq \
        sha256sum sleep sort tail timeout uniq wc; do
        /bin/busybox ln -s busybox "/bin/$applet"
    done
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    mount -t devtmpfs dev /dev
    mount -t tmpfs run /run
    mount -t tmpfs -o size=90% tmp /tmp
    mount -t bpf bpf /sys/fs/bpf
    mount -t cgroup2 cgroup /sys/fs/cgroup
    echo 1 >/proc/sys/kernel/printk
    printf 'root:x:0:0::/:/bin/bash\nnobody:x:65534:65534::/:/bin/bash\n' >/etc/passwd
    # In no order: what one needs may come after it.
    for _ in 1 2 3 4; do
        for module in /modules/*; do insmod "$module" && rm "$module"; done
    done
    ip link set lo up
    ip netns add out
    ip link add in0 type veth peer name out0 netns out
    ip addr add $IN/24 dev in0
    ip link set in0 up
    ip -n out addr add 10.1.0.2/24 dev out0
    ip -n out link set out0 up
    dd if=/dev/urandom of=/www/blob bs=1M count=4
    httpd -p 5000 -h /www
    httpd -p 5001 -h /www
}

# What connect(2) says: nothing when it succeeds. By their paths, or busybox takes its own.
outside() { timeout 5 /bin/ip netns exec out /bin/bash -c "exec 3<>/dev/tcp/$IN/$1" 2>&1 || echo "failed: $?"; }
inside() { timeout 5 /bin/bash -c "exec 3<>/dev/tcp/$1/5000" 2>&1 || echo "failed: $?"; }

open_outside() { [ -z "$(outside "$1")" ]; }
# 143: ended by our timeout, as nothing came back at all.
shut_outside() {
    local said
    said=$(outside 5000)
    echo "$said"
    [ "$said" = "failed: 143" ]
}
open_inside() { [ -z "$(inside "$1")" ]; }
shut_inside() {
    local said
    said=$(inside "$1")
    echo "$said"
    [[ $said == *"Operation not permitted"* ]]
}

gate() {
    printf 'open-sesame\n' | portcullis user add --htpasswd /tmp/users alice
    printf 'user = "nobody"\nworkers = 1\n[guard]\nrequire = true\n' >/tmp/gate.toml
    portcullis serve --config /tmp/gate.toml --listen 127.0.0.1:8080 --backend http://127.0.0.1:5000 --kind http \
        --htpasswd /tmp/users --access-log off 2>/tmp/gate.log &
    GATE=$!
    for _ in $(seq 60); do
        grep -q 'ready:' /tmp/gate.log && break
        sleep 1
    done
    cat /tmp/gate.log
    grep 'ready:' /tmp/gate.log >/dev/console
}

status() { curl -s -m 60 -o /tmp/got -w '%{http_code}' "$@" http://127.0.0.1:8080/blob; }
login_is_asked_for() { [ "$(status)" = 401 ]; }
blob_is_whole() { [ "$(status --user $USER)" = 200 ] && [ "$(sha256sum </tmp/got)" = "$(sha256sum </www/blob)" ]; }
# All but what came together with its head.
blob_was_spliced() {
    curl -s -m 60 http://127.0.0.1:9180/metrics | grep 'response_bytes_total{path="splice"}' >/tmp/spliced
    cat /tmp/spliced
    read -r _ bytes </tmp/spliced
    [ "$bytes" -ge $((4 * 1048576 - 16384)) ]
}
gate_ends() { kill $GATE && wait $GATE; }

. /ktls.sh
boot >/dev/null 2>&1
say "Linux $(cat /proc/sys/kernel/osrelease)"
check 'without a guard the port is open from outside' open_outside 5000
check 'and from inside' open_inside 127.0.0.1
check 'guard plan' portcullis guard plan --port 5000 --interface in0
check 'guard enforce' portcullis guard enforce --port 5000 --interface in0
check 'guard status' portcullis guard status
check 'another port is open from outside' open_outside 5001
for host in 127.0.0.1 ::1 $IN 0.0.0.0 ::ffff:127.0.0.1; do
    check "root is refused at $host" shut_inside $host
done
check 'guard verify' portcullis guard verify
check 'the gate starts and insists on the guard' gate
check 'the gate asks for a login' login_is_asked_for
check 'a blob through the gate is whole' blob_is_whole
check 'the blob was spliced' blob_was_spliced
check 'the gate ends with 0' gate_ends
check 'with the gate gone the port stays shut inside' shut_inside 127.0.0.1
# Whoever sits outside here is a process of this machine as well: for the packet rings alone, without the connect ring.
check 'guard enforce --no-local' portcullis guard enforce --port 5000 --interface in0 --no-local
check 'from outside nothing comes back' shut_outside
check 'inside it is open then' open_inside 127.0.0.1
check 'guard allow add' portcullis guard allow add 10.1.0.2
check 'who is allowed comes in' open_outside 5000
check 'guard detach' portcullis guard detach
check 'without a guard the port is open again' open_inside 127.0.0.1
ktls_checks
say 'CHECK end'
poweroff -f
