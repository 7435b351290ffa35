# The image and the example of docker-compose by a real dockerd, in namespaces of their own: first as the container of 2014
# was run, then the example as its head says, with the guard on the host. $1: a scratch directory with `users.htpasswd`
# (alice), `ca.crt`, `registry.crt` and `registry.key`, $2: the image, $3: the directory of the examples, $4: the program.
set -euo pipefail
room=$1 image=$2 example=$3/compose/compose.yaml program=$4
source "$(dirname "$0")/dockerd.sh"
compose() { docker-compose --project-name example --file compose.yaml "$@" >>compose.log 2>&1; }
stop() { compose down --volumes --timeout 2 || true; }

# registry:2 cannot be fetched without a network; Debian's registry stands in for it.
mkdir registry
ldd "$(command -v docker-registry)" | grep -o '/[^ ]*' | xargs --no-run-if-empty cp --dereference --parents --target-directory registry
cp "$(command -v docker-registry)" registry/docker-registry
printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: /var/lib/registry}}\nhttp: {addr: ":5000"}\n' >registry/config.yml
tar -C registry -c . | $docker import --change 'ENTRYPOINT ["/docker-registry", "serve", "/config.yml"]' - registry:2 >/dev/null

mkdir portcullis
cp users.htpasswd registry.key portcullis/
cp registry.crt portcullis/registry.pem
cp "$example" compose.yaml
compose config --quiet || fail "the example is not valid"
compose up --detach registry auth || fail "the registry does not start"
until_is 200 http://172.28.0.2:5000/v2/

# As in 2014, under docker's own seccomp profile and capabilities.
$docker run --detach --name of-2014 --network example_inside --publish 127.0.0.1:8080:80 \
    --env BACKEND=http://172.28.0.2:5000 --env AUTH_BACKEND=http://172.28.0.3:8000 portcullis:0.1.0 >/dev/null
until_is 401 http://127.0.0.1:8080/v2/
until_is 200 --user 'alice:open sesame' http://127.0.0.1:8080/v2/
until_is 401 --user alice:wrong http://127.0.0.1:8080/v2/

# The example, as its head says.
"$program" guard enforce --protect 172.28.0.2:5000 || fail "the guard does not enforce"
until_is 000 http://172.28.0.2:5000/v2/
# A gate that nobody vouches for is a process like any other.
until_is 502 --user 'alice:open sesame' http://127.0.0.1:8080/v2/
$docker rm --force of-2014 >/dev/null
compose up --detach || fail "the example does not start"
until_is 401 --cacert ca.crt https://localhost/v2/
until_is 200 --cacert ca.crt --user 'alice:open sesame' https://localhost/v2/
until_is 404 --cacert ca.crt --user 'alice:open sesame' https://localhost/v2/team-a/app/tags/list
# It is nobody in particular, and keeps no right.
gate=$($docker ps --quiet --filter label=com.docker.compose.service=gate)
[ "$(rights "$gate")" = "65532 0000000000000000" ] || fail "the gate is $(rights "$gate")"
# A user who was added on the host may enter.
echo 'another word' | "$program" user add --htpasswd portcullis/users.htpasswd bob
until_is 200 --cacert ca.crt --user 'bob:another word' https://localhost/v2/
stop
"$program" guard detach
trap - EXIT
echo 'the end was reached'
