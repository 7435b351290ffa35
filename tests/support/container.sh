# Unpacks the image as an engine does and runs it with the environment of 2014's container: BACKEND and AUTH_BACKEND.
# Network, mounts and processes are of their own. $1: a scratch directory with `users.htpasswd` (alice), $2: the image.
set -euo pipefail
room=$1 image=$2
cd "$room"
fail() { echo "$*" >&2; tail -n 20 "$room"/*.log >&2; exit 1; }
ip link set lo up
# Found before the environment is emptied.
chroot=$(command -v chroot)
mkdir layout rootfs
tar -xf "$image" -C layout
layer=$(sed 's/.*"Layers":\["\([^"]*\)".*/\1/' layout/manifest.json)
tar -xf "layout/$layer" -C rootfs
[ "$(find rootfs -type f -perm /111)" = rootfs/portcullis ] || fail "more than one program in the image"

printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: 127.0.0.1:5000}\n' "$room" >registry.yml
docker-registry serve registry.yml >registry.log 2>&1 &
# As an engine writes it.
echo '127.0.0.1 localhost auth' >rootfs/etc/hosts
cp users.htpasswd rootfs/users
chmod 644 rootfs/users
# Only what the image's configuration says, and what 2014's users gave on the command line.
env -i PATH=/ "$chroot" rootfs /portcullis auth-service --htpasswd /users >auth.log 2>&1 &
for _ in $(seq 200); do curl -s -o /dev/null 127.0.0.1:5000/v2/ && curl -s -o /dev/null 127.0.0.1:8000/ && break; sleep 0.1; done
mapfile -t environment < <(python3 -c 'import json,sys
layout = sys.argv[1]
config = json.load(open(layout + "/" + json.load(open(layout + "/manifest.json"))[0]["Config"]))["config"]
print("\n".join(config["Env"]))' layout)
env -i "${environment[@]}" BACKEND=http://127.0.0.1:5000 AUTH_BACKEND=http://auth:8000 \
    "$chroot" rootfs /portcullis serve >gate.log 2>&1 &
gate=$!
status() { curl -s -o /dev/null -w '%{http_code}' "$@"; }
for _ in $(seq 200); do [ "$(status http://127.0.0.1/_ping)" != 000 ] && break; sleep 0.1; done
[ "$(status http://127.0.0.1/v2/)" = 401 ] || fail "without a login: $(status http://127.0.0.1/v2/)"
[ "$(status -u 'alice:open sesame' http://127.0.0.1/v2/)" = 200 ] || fail "with a login: $(status -u 'alice:open sesame' http://127.0.0.1/v2/)"
[ "$(status -u alice:wrong http://127.0.0.1/v2/)" = 401 ] || fail "with a wrong password"
# It listens on port 80 and is nobody in particular all the same.
[ "$(awk '/^Uid:/{print $2}' /proc/$gate/status)" = 65532 ] || fail "the gate runs as $(awk '/^Uid:/{print $2}' /proc/$gate/status)"
kill -TERM $gate
wait $gate || fail "it did not end well"
echo 'the end was reached'
