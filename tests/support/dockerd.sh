# Sourced: a real dockerd in namespaces of its own, an interface that faces outside, a BPF file system for the guard's pins,
# and the image. Wants $room and $image; `stop` may be said anew.
cd "$room"
ip link set lo up
ip link add outside type veth peer name wire
ip address add 10.99.99.1/24 dev outside
ip link set outside up
ip link set wire up
ip route add default dev outside
for place in /run /var/lib /etc/docker; do mount -t tmpfs tmpfs $place; done
mount -t bpf none /sys/fs/bpf

export DOCKER_HOST=unix:///run/docker.sock DOCKER_CONFIG=$room/docker
# The package's own client first: one of another version may refuse to talk to the package's daemon.
docker=/usr/bin/docker
[ -x $docker ] || docker=docker
stop() { $docker ps --all --quiet | xargs --no-run-if-empty $docker rm --force >/dev/null || true; }
fail() {
    trap - EXIT
    echo "$*" >&2
    tail -n 20 ./*.log >&2
    for name in $($docker ps --all --quiet); do $docker logs --tail 20 "$name" >&2; done
    stop
    exit 1
}
status() { curl --silent --output /dev/null --max-time 5 --write-out '%{http_code}' "$@" || true; }
until_is() {
    local wanted=$1
    shift
    for _ in $(seq 150); do [ "$(status "$@")" = "$wanted" ] && return || sleep 0.2; done
    fail "$(status "$@") instead of $wanted for $*"
}
# A process's user and what rights it has left.
rights() { awk '/^Uid:/{u=$2} /^CapEff:/{c=$2} END{print u, c}' "/proc/$($docker inspect --format '{{.State.Pid}}' "$1")/status"; }
trap stop EXIT

containerd --config /dev/null --root /var/lib/containerd --state /run/containerd --address /run/containerd.sock >containerd.log 2>&1 &
for _ in $(seq 100); do [ -S /run/containerd.sock ] && break || sleep 0.1; done
echo '{"storage-driver": "vfs", "iptables": false, "ip6tables": false, "bridge": "none"}' >daemon.json
dockerd --config-file daemon.json --host "$DOCKER_HOST" --containerd /run/containerd.sock --data-root /var/lib/docker \
    --exec-root /run/docker --pidfile /run/docker.pid >dockerd.log 2>&1 &
for _ in $(seq 200); do $docker version >/dev/null 2>&1 && break || sleep 0.1; done
$docker load --quiet --input "$image" || fail "docker does not take the image"
