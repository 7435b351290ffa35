# What the example for Kubernetes starts, started by a real dockerd with the same images, arguments, variables, mounts and
# rights; only "privileged" is spelt out, since not every machine of a developer has all rights to give. $1: a scratch
# directory with `users.htpasswd` (alice), `ca.crt`, `registry.crt` and `registry.key`, $2: the image, $3: the directory of the
# examples, $4: the program.
set -euo pipefail
room=$1 image=$2 example=$3/kubernetes.yaml program=$4
source "$(dirname "$0")/dockerd.sh"

mkdir config tls users
# The block of the only ConfigMap, without its indentation.
sed -n '/^  portcullis.toml: |$/,/^---$/{s/^    //p;/^$/p}' "$example" >config/portcullis.toml
cp registry.crt tls/tls.crt
cp registry.key tls/tls.key
cp users.htpasswd users/
# As the kubelet does for `fsGroup` and `defaultMode`.
chgrp -R 65532 tls users
chmod 440 tls/* users/*
printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: "127.0.0.1:5000"}\n' "$room" >registry.yml
docker-registry serve registry.yml >registry.log 2>&1 &
registry=$!
stop_all() { stop; kill $registry; "$program" guard detach; }
trap stop_all EXIT

gate() {
    $docker run --detach --name gate --network host --read-only --cap-drop ALL --cap-add SETUID --cap-add SETGID \
        --security-opt seccomp=unconfined --security-opt no-new-privileges \
        --env PORTCULLIS_LISTEN= --env PORTCULLIS_ALLOW_PLAINTEXT_CREDENTIALS= \
        --volume "$room/config:/etc/portcullis:ro" --volume "$room/tls:/secrets/tls:ro" \
        --volume "$room/users:/secrets/users:ro" --volume /sys/fs/bpf:/sys/fs/bpf \
        portcullis:0.1.0 serve --config /etc/portcullis/portcullis.toml >/dev/null
}
gate
[ "$($docker wait gate)" = 1 ] || fail "the gate starts without a guard"
$docker logs gate 2>&1 | grep -q '\[guard\] require' || fail "it does not say why it did not start"
$docker rm gate >/dev/null
until_is 200 http://127.0.0.1:5000/v2/

$docker run --detach --name guard --network host --cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt seccomp=unconfined \
    --volume "$room/config:/etc/portcullis:ro" --volume /sys/fs/bpf:/sys/fs/bpf --volume /sys/fs/cgroup:/sys/fs/cgroup:ro \
    portcullis:0.1.0 guard run --config /etc/portcullis/portcullis.toml >/dev/null
until_is 000 http://127.0.0.1:5000/v2/
gate
until_is 200 http://127.0.0.1:9180/healthz
until_is 200 http://127.0.0.1:9180/readyz
until_is 401 --cacert ca.crt https://localhost:8443/v2/
until_is 200 --cacert ca.crt --user 'alice:open sesame' https://localhost:8443/v2/
[ "$(rights gate)" = "65532 0000000000000000" ] || fail "the gate is $(rights gate)"
# It can still read what changes.
cp "$room/users.htpasswd" users/next
echo 'another word' | "$program" user add --htpasswd users/next bob
chgrp 65532 users/next
chmod 440 users/next
mv users/next users/users.htpasswd
until_is 200 --cacert ca.crt --user 'bob:another word' https://localhost:8443/v2/
$docker exec gate /portcullis reload || fail "it does not read its configuration again"
# The guard's container may go; the door stays shut.
$docker rm --force guard >/dev/null
until_is 000 http://127.0.0.1:5000/v2/
until_is 200 --cacert ca.crt --user 'alice:open sesame' https://localhost:8443/v2/
stop_all
trap - EXIT
echo 'the end was reached'
