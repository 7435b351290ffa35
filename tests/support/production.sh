# Runs before the commands of the README's production set-up, as the first process of its own mount, network and
# process namespaces: real files, users, programs and eBPF, but none of it outlives this shell.
#
# Stood in for: apt-get (installed already), cargo (built already), certbot (a certificate of our own, the real hook),
# systemctl (starts a unit's command under what its lines ask for, by tests/peers/unit.py), docker (curl and skopeo).
# $1: a scratch directory with `image` (an OCI layout), $2: the work tree, $3: the program.
set -euo pipefail
scratch=$1 tree=$2 program=$3
address=10.99.99.1
password='open sesame'

room=$scratch/room
mkdir "$room"
mount -t tmpfs none "$room"
for name in etc usr var; do
    mkdir "$room/$name" "$room/$name.work"
    mount -t overlay none -o "lowerdir=/$name,upperdir=$room/$name,workdir=$room/$name.work" "/$name"
done
mount -t bpf none /sys/fs/bpf
ip link set lo up
ip link add outside type veth peer name wire
ip address add $address/24 dev outside
ip link set outside up
ip link set wire up
ip route add default dev outside
echo "$address registry.example.com" >>/etc/hosts

mkdir -p "$room/tree/target/release" "$room/home"
cp "$program" "$room/tree/target/release/portcullis"
ln -s "$tree/xtask" "$room/tree/xtask"
cd "$room/tree"
# The certificate's hook runs in a shell of its own.
printf '#!/bin/sh\n' >/usr/local/sbin/systemctl
chmod 755 /usr/local/sbin/systemctl
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin HOME=$room/home
exec 3<<<"$password"

wait_for() {
    for _ in $(seq 100); do
        command curl --silent --insecure --output /dev/null --max-time 2 "$1" && return
        sleep 0.1
    done
    echo "nobody answers at $1" >&2
    cat "$room"/*.log >&2
    exit 1
}

start_unit() {
    local unit=$1
    shift
    python3 "$tree/tests/peers/unit.py" "/etc/systemd/system/$unit.service" "$@" >"$room/$unit.log" 2>&1 &
    echo $! >"$room/$unit.pid"
}

apt-get() { :; }
cargo() { :; }
hostname() { echo registry.example.com; }
systemctl() {
    case "$*" in
    "restart docker-registry")
        mkdir -p /var/lib/docker-registry
        docker-registry serve /etc/docker/registry/config.yml >"$room/registry.log" 2>&1 &
        wait_for http://127.0.0.1:5000/
        ;;
    "daemon-reload") ;;
    "enable --now portcullis-guard portcullis.socket portcullis")
        start_unit portcullis-guard
        # Its word that it is ready, which systemd would wait for.
        for _ in $(seq 100); do command portcullis guard status >/dev/null 2>&1 && break || sleep 0.1; done
        # In a place of its own user's, which root without its capabilities may not enter.
        sed -i '1i access_log = "/var/log/portcullis/access.log"' /etc/portcullis/portcullis.toml
        start_unit portcullis /etc/systemd/system/portcullis.socket
        wait_for https://registry.example.com/
        ;;
    "disable --now portcullis-guard")
        local agent=$(cat "$room/portcullis-guard.pid")
        kill "$agent" && wait "$agent"
        ;;
    *) echo "systemctl $*: not stood in for" >&2 && exit 1 ;;
    esac
}
certbot() {
    local lineage=$room/lineage
    mkdir -p "$lineage" "$room/trust"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=registry.example.com \
        -addext subjectAltName=DNS:registry.example.com -keyout "$lineage/privkey.pem" \
        -out "$lineage/fullchain.pem" 2>/dev/null
    cp "$lineage/fullchain.pem" "$room/trust/ca.crt"
    RENEWED_LINEAGE=$lineage "${@: -1}"
}
portcullis() { command portcullis "$@" <&3; }
curl() {
    local code=0
    command curl --silent --output /dev/null --max-time 5 "$@" || code=$?
    if [ $code -ne 7 ]; then
        echo "curl $*: expected a refused connection, got exit code $code" >&2
        exit 1
    fi
}
docker() {
    case "$1" in
    login)
        command curl --silent --fail --cacert "$room/trust/ca.crt" --user "$3:$password" "https://$4/v2/"
        ;;
    push)
        _CONTAINERS_ROOTLESS_UID=65534 XDG_DATA_HOME=$HOME skopeo --insecure-policy --tmpdir "$HOME" copy --quiet \
            --dest-creds "alice:$password" --dest-cert-dir "$room/trust" "oci:$scratch/image:latest" "docker://$2"
        grep -h -e "^carried out" -e "confined: " -e "warning: " "$room"/portcullis*.log
        grep -q '"method":"PUT"' /var/log/portcullis/access.log
        # It has to run as nobody in particular by now.
        [ "$(stat -c %U /proc/"$(pgrep -f 'portcullis serve')")" = portcullis ]
        ;;
    esac
}
# ---- the README follows ----
