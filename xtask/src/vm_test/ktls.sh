# TLS in the kernel: part of the first process, after the guard's checks.
PORT=8443
GATE_URL=https://ec.test:$PORT
BLOB_BYTES=$((4 * 1048576))

certificates() {
    printf '[req]\ndistinguished_name = name\n[name]\n' >/tmp/openssl.cnf
    export OPENSSL_CONF=/tmp/openssl.cnf
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=ec.test \
        -addext subjectAltName=DNS:ec.test,DNS:put.test,DNS:reg.test -keyout /tmp/ec.key -out /tmp/ec.pem &&
        openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=rsa.test -addext subjectAltName=DNS:rsa.test \
            -keyout /tmp/rsa.key -out /tmp/rsa.pem && cat /tmp/ec.pem /tmp/rsa.pem >/tmp/both.pem
}

# A registry's blob as a plain file, a service that says what it was sent, and lines that can be counted.
upstream_files() {
    dd if=/dev/urandom of=/tmp/blob bs=64k count=$((BLOB_BYTES / 65536)) 2>/dev/null
    DIGEST=$(sha256sum </tmp/blob | cut -d' ' -f1)
    BLOB=/v2/team/app/blobs/sha256:$DIGEST
    mkdir -p /www/v2/team/app/blobs /www/cgi-bin
    cp /tmp/blob "/www$BLOB"
    awk 'BEGIN { for (n = 1; n <= 400000; n++) printf "LINE %08d\n", n }' >/www/lines
    echo small >/www/small
    printf '#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n"\nhead -c "$CONTENT_LENGTH" | sha256sum\n' >/www/cgi-bin/put
    printf '#!/bin/sh\nprintf "Content-Length: 9000000\\r\\n\\r\\n"\nhead -c 500000 /dev/zero\n' >/www/cgi-bin/cut
    printf '#!/bin/sh\nprintf "Content-Length: %d\\r\\n\\r\\n"\nn=0\nwhile [ $n -lt 520 ]; do cat /tmp/blob; n=$((n + 1)); done\n' \
        $((520 * BLOB_BYTES)) >/www/cgi-bin/many
    chmod 755 /www/cgi-bin/put /www/cgi-bin/cut /www/cgi-bin/many
}

# The real registry, and what skopeo wants to know.
registry() {
    mkdir -p /tmp/store /tmp/trust /etc/containers
    cp /tmp/ec.pem /tmp/trust/ca.crt
    echo '{"default":[{"type":"insecureAcceptAnything"}]}' >/etc/containers/policy.json
    echo "127.0.0.1 reg.test ec.test put.test" >/etc/hosts
    cat >/tmp/registry.yml <<YML
version: 0.1
log: { level: error, accesslog: { disabled: true } }
storage: { filesystem: { rootdirectory: /tmp/store } }
http: { addr: "127.0.0.1:5003", secret: x }
YML
    docker-registry serve /tmp/registry.yml >/tmp/registry.log 2>&1 &
    for _ in $(seq 60); do
        curl -s -o /dev/null http://127.0.0.1:5003/v2/ && return
        sleep 1
    done
    cat /tmp/registry.log
    return 1
}

tls_gate() { # KTLS
    cat >/tmp/tls.toml <<TOML
user = "nobody"
workers = 1
ktls = "$1"
access_log = "/run/tls/access.log"
[[listen]]
address = "127.0.0.1:$PORT"
tls = [{ cert = "/tmp/ec.pem", key = "/tmp/ec.key" }, { cert = "/tmp/rsa.pem", key = "/tmp/rsa.key" }]
[[site]]
hosts = ["put.test"]
kind = "http"
upstreams = ["http://127.0.0.1:5000"]
[[site]]
hosts = ["reg.test"]
upstreams = ["http://127.0.0.1:5003"]
[[site]]
upstreams = ["http://127.0.0.1:5000"]
[auth]
htpasswd = "/tmp/users"
TOML
    mkdir -p /run/tls
    chmod 777 /run/tls
    : >/run/tls/access.log
    chmod 666 /run/tls/access.log
    portcullis serve --config /tmp/tls.toml 2>/tmp/tls.log &
    GATE=$!
    for _ in $(seq 60); do
        grep -q 'ready:' /tmp/tls.log && break
        sleep 1
    done
    cat /tmp/tls.log
    grep -q 'ready:' /tmp/tls.log
}
sealed_by() { grep "sealed by $1" /tmp/tls.log; }

metrics() { curl -s -m 60 http://127.0.0.1:9180/metrics | grep -v '^#' >/tmp/metrics; }
told() { grep -F "$1" /tmp/metrics | sed 's/.* //'; }
metric() { metrics && told "$1"; }
body_bytes() { metrics && echo "$(told 'response_bytes_total{path="ktls"}') $(told 'response_bytes_total{path="copy"}')"; }
tls_curl() {
    curl -sS -m 120 --cacert /tmp/both.pem --user $USER --resolve '*':$PORT:127.0.0.1 "$@"
}

# From the upstream into the encrypted connection without a byte in user space.
download() { # HOST CURL-OPTIONS…
    local host=$1 before after
    shift
    before=$(body_bytes)
    tls_curl "$@" -o /tmp/got "https://$host:$PORT$BLOB" || return 1
    [ "$(sha256sum </tmp/got | cut -d' ' -f1)" = "$DIGEST" ] || return 1
    after=$(body_bytes)
    echo "ktls and copied bytes: $before, then $after"
    [ $((${after% *} - ${before% *})) = $BLOB_BYTES ] && [ "${after#* }" = "${before#* }" ]
}
upload() { # HOST CURL-OPTIONS…
    local host=$1 said
    shift
    said=$(tls_curl "$@" -H 'Host: put.test' -H 'Content-Type: application/octet-stream' --data-binary @/tmp/blob \
        "https://$host:$PORT/cgi-bin/put") || return 1
    echo "$said"
    [ "${said%% *}" = "$DIGEST" ]
}
several_on_one_connection() {
    tls_curl "$GATE_URL$BLOB" "$GATE_URL$BLOB" "$GATE_URL$BLOB" -w '%{num_connects} ' \
        -o /tmp/got1 -o /tmp/got2 -o /tmp/got3 >/tmp/connects || return 1
    cat /tmp/connects
    [ "$(cat /tmp/connects)" = '1 0 0 ' ] && cmp /tmp/got1 /tmp/blob && cmp /tmp/got2 /tmp/blob && cmp /tmp/got3 /tmp/blob
}

# Go's TLS: what docker, podman and skopeo have in common. Layers go up and come down as they are.
skopeo_pushes_and_pulls() {
    local image=docker://reg.test:$PORT/team/app:1 args=(--preserve-digests)
    timeout 100 skopeo copy "${args[@]}" --dest-cert-dir /tmp/trust --dest-creds $USER oci:/image:latest $image &&
        timeout 100 skopeo copy "${args[@]}" --src-cert-dir /tmp/trust --src-creds $USER $image oci:/tmp/pulled:latest ||
        return 1
    local blob count=0
    for blob in /image/blobs/sha256/*; do
        cmp "$blob" "/tmp/pulled/blobs/sha256/${blob##*/}" || return 1
        count=$((count + 1))
    done
    echo "$count blobs are the same"
    [ $count = 4 ]
}
gnutls() { # PRIORITY
    (
        request /lines 'Range: bytes=0-139999'$'\r\n''Connection: close'$'\r\n'
        sleep 4
    ) | timeout 40 gnutls-cli --x509cafile /tmp/both.pem --sni-hostname ec.test --verify-hostname ec.test --priority "$1" \
        -p $PORT 127.0.0.1 >/tmp/hand 2>&1
    tail -n 3 /tmp/hand
    [ "$(grep -c '^LINE' /tmp/hand)" -ge 9999 ]
}

# Speaks HTTP by hand: LINES of input with a rest after each, and the whole conversation on standard output.
by_hand() { # S_CLIENT-OPTIONS… ; input on standard input
    timeout 40 openssl s_client -connect 127.0.0.1:$PORT -servername ec.test "$@" 2>&1
}
login() { printf %s $USER | openssl base64; }
request() { # PATH [FIELD]
    printf 'GET %s HTTP/1.1\r\nHost: put.test\r\nAuthorization: Basic %s\r\n%s\r\n' "$1" \
        "$(login)" "$2"
}
old_kernel() { [ "$(cut -d. -f1 </proc/sys/kernel/osrelease)" -lt 6 ] || [[ $(cut -d. -f1,2 </proc/sys/kernel/osrelease) =~ ^6\.([0-9]|1[0-3])$ ]]; }

# A client that changes its keys between two requests: a new kernel follows, an old one's connection ends, none stalls.
key_update() { # k or K, which asks for ours in return
    (
        request /small
        sleep 3
        echo "$1"
        sleep 2
        request /small 'Connection: close'$'\r\n'
        sleep 4
    ) | by_hand >/tmp/hand
    local status=$? answers
    answers=$(grep -c '^small' /tmp/hand)
    tail -n 40 /tmp/hand
    echo "status $status, $answers answers, $(metric 'portcullis_connections ') connections left"
    [ $status != 124 ] && if old_kernel; then [ "$answers" = 1 ]; else [ "$answers" = 2 ]; fi
}
# In the middle of a download the answer goes on to its end.
key_update_in_a_download() {
    (
        request /lines 'Connection: close'$'\r\n'
        sleep 0.2
        echo "$1"
        sleep 9
    ) | by_hand >/tmp/hand
    echo "status $?, $(grep -c '^LINE' /tmp/hand) lines"
    [ "$(grep -c '^LINE' /tmp/hand)" -ge 399999 ] && grep -q '^LINE 00400000' /tmp/hand
}
renegotiation_is_refused() {
    (
        request /small
        sleep 2
        echo R
        sleep 2
        request /small 'Connection: close'$'\r\n'
        sleep 5
    ) | by_hand -tls1_2 >/tmp/hand
    echo "status $?"
    tail -n 20 /tmp/hand
    [ "$(grep -c '^small' /tmp/hand)" = 1 ]
}

# The first eight bytes of a TLS 1.2 record under AES-GCM are its nonce: two alike would give the key away.
nonces_differ() {
    (
        for _ in 1 2 3 4 5; do
            request /small
            sleep 1
        done
        sleep 2
    ) | by_hand -tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256 -debug >/tmp/hand
    # Records come as five bytes of header, then the rest; behind the change of cipher they are encrypted.
    awk '/^read from/ { inbound = 1; next } /^write to/ { inbound = 0; next }
        inbound && /^0000 - / {
            if ($3 == "14" && $4 == "03") { sealed = 1; next }
            if (sealed && ($3 == "16" || $3 == "17") && $4 == "03" && $5 == "03") { due = 1; next }
            if (due) { split($10, eighth, "-"); print $3 $4 $5 $6 $7 $8 $9 eighth[1]; due = 0 }
        }' /tmp/hand >/tmp/nonces
    cat /tmp/nonces
    [ "$(wc -l </tmp/nonces)" -ge 6 ] && [ -z "$(sort /tmp/nonces | uniq -d)" ]
}

a_cut_upstream_is_a_cut() {
    tls_curl -H 'Host: put.test' -o /tmp/got "$GATE_URL/cgi-bin/cut"
    local status=$?
    echo "curl says $status"
    [ $status = 18 ] || [ $status = 56 ]
}
cut_clients_leave_nothing() {
    local fds before
    before=$(ls /proc/$GATE/fd | wc -l)
    for _ in 1 2 3 4 5; do
        tls_curl -m 1 --limit-rate 200k -o /tmp/got "$GATE_URL$BLOB"
        tls_curl -m 1 --limit-rate 200k -H 'Host: put.test' --data-binary @/tmp/blob "$GATE_URL/cgi-bin/put"
    done >/dev/null 2>&1
    for _ in $(seq 20); do
        fds=$(ls /proc/$GATE/fd | wc -l)
        [ "$fds" -le $((before + 8)) ] && break
        sleep 1
    done
    echo "$before descriptors before, $fds after, $(metric 'portcullis_connections ') connections"
    [ "$fds" -le $((before + 8)) ] && [ "$(metric 'portcullis_connections ')" = 0 ]
}
# close_notify, not a bare end.
an_end_is_announced() {
    (
        request /small 'Connection: close'$'\r\n'
        sleep 3
    ) | by_hand -msg >/tmp/hand
    tail -n 20 /tmp/hand
    grep -q '<<<.*Alert.*warning close_notify\|<<<.*Alert.*close notify' /tmp/hand
}
everyone_was_in_the_kernel() {
    local kernel process
    kernel=$(metric 'tls_connections_total{by="kernel"}')
    process=$(metric 'tls_connections_total{by="process"}')
    echo "$kernel by the kernel, $process by the process"
    [ "$kernel" -gt 20 ] && [ "$process" = 0 ]
}
in_this_process_it_works_as_well() {
    tls_gate off && sealed_by 'this process' && tls_curl -o /tmp/got "$GATE_URL$BLOB" && cmp /tmp/got /tmp/blob &&
        [ "$(metric 'tls_connections_total{by="process"}')" = 1 ] && gate_ends
}
the_log_says_so() { grep -m 1 '"relay":"ktls"' /run/tls/access.log; }

# Hours are no failure here: an emulator moves some megabytes a second.
PATIENCE=5400
# The same blob again and again.
pattern() { for _ in $(seq "$1"); do cat /tmp/blob; done; }
expect_pattern() {
    rm -f /tmp/expected
    mkfifo /tmp/expected && { pattern 520 >/tmp/expected & }
}
# A little below 2 GiB, which is as much as this upstream takes.
are_all_there() { # ANSWER
    echo "$1"
    [[ $1 = *"$(pattern 500 | sha256sum | cut -d' ' -f1)"* ]]
}
UP=(-X POST -H 'Transfer-Encoding:' -H "Content-Length: $((500 * BLOB_BYTES))" -H 'Content-Type: application/octet-stream')

gigabytes_down_to_curl() {
    expect_pattern && tls_curl -m $PATIENCE -H 'Host: put.test' "$GATE_URL/cgi-bin/many" | cmp - /tmp/expected
}
gigabytes_up_from_curl() {
    are_all_there "$(pattern 500 | tls_curl -m $PATIENCE -H 'Host: put.test' "${UP[@]}" -T - "$GATE_URL/cgi-bin/put")"
}

PYTHON='
import http.client, shutil, ssl, sys
port, login, target, size = sys.argv[1:]
context = ssl.create_default_context(cafile="/tmp/both.pem")
connection = http.client.HTTPSConnection("put.test", int(port), context=context)
headers = {"Authorization": "Basic " + login, "Content-Type": "application/octet-stream"}
if size == "0":
    connection.request("GET", target, headers=headers)
else:
    connection.request("POST", target, body=sys.stdin.buffer, headers=headers | {"Content-Length": size})
answer = connection.getresponse()
print(answer.status, connection.sock and connection.sock.cipher(), file=sys.stderr)
shutil.copyfileobj(answer, sys.stdout.buffer, 1 << 16)
'
python() { timeout $PATIENCE python3 -S -c "$PYTHON" $PORT "$(login)" "$@"; }
gigabytes_down_to_python() {
    expect_pattern && python /cgi-bin/many 0 | cmp - /tmp/expected
}
gigabytes_up_from_python() {
    are_all_there "$(pattern 500 | python /cgi-bin/put $((500 * BLOB_BYTES)))"
}

# Clients that speak no HTTP are told it. The end of their input would be the end of the talk, and some never end by
# themselves: they are stopped when the answer is there.
talk() { # WORDS READER CLIENT…
    local words=$1 reader=$2
    shift 2
    rm -f /tmp/answered
    {
        "$words"
        until [ -e /tmp/answered ]; do sleep 1; done
    } | {
        timeout $PATIENCE "$@" <&0 2>/tmp/client.log &
        echo $! >/tmp/client.pid
    } | {
        "$reader"
        local status=$?
        : >/tmp/answered
        kill "$(cat /tmp/client.pid)"
        return $status
    }
}
OPENSSL=(openssl s_client -quiet -connect "127.0.0.1:$PORT" -servername ec.test -CAfile /tmp/both.pem -verify_return_error)
NSS=(tstclnt -4 -D -o -h 127.0.0.1 -p "$PORT" -a ec.test)
ask_for_many() { request /cgi-bin/many 'Connection: close'$'\r\n'; }
send_many() {
    printf 'POST /cgi-bin/put HTTP/1.1\r\nHost: put.test\r\nAuthorization: Basic %s\r\nContent-Length: %d\r\n' \
        "$(login)" $((500 * BLOB_BYTES))
    printf 'Content-Type: application/octet-stream\r\nConnection: close\r\n\r\n'
    pattern 500
}
# The body is what is left on standard input: of a pipe, the shell reads no byte behind the line.
reads_many() {
    local line
    while IFS= read -r line && [ "$line" != $'\r' ]; do :; done
    head -c $((520 * BLOB_BYTES)) | cmp - /tmp/expected
}
reads_sum() { grep -m 1 "$(pattern 500 | sha256sum | cut -d' ' -f1)"; }
gigabytes_down_to() { # CLIENT…
    expect_pattern && talk ask_for_many reads_many "$@"
}
gigabytes_up_from() { talk send_many reads_sum "$@"; } # CLIENT…

oci_blob() { # FILE ; says how a descriptor names it
    local digest size
    digest=$(sha256sum <"$1" | cut -d' ' -f1)
    size=$(wc -c <"$1")
    mv "$1" "/tmp/big/blobs/sha256/$digest"
    printf '"digest":"sha256:%s","size":%d' "$digest" "$size"
}
# An image of one layer of 2.2 GB, which is more than 31 bits can count.
big_image() {
    mkdir -p /tmp/big/blobs/sha256
    pattern 520 >/tmp/layer
    local kind=application/vnd.oci.image layer config manifest
    layer=$(oci_blob /tmp/layer)
    printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["%s"]}}' \
        "$(printf %s "$layer" | cut -d'"' -f4)" >/tmp/config
    config=$(oci_blob /tmp/config)
    printf '{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"%s",%s},"layers":[{"mediaType":"%s",%s}]}' \
        $kind.manifest.v1+json $kind.config.v1+json "$config" $kind.layer.v1.tar "$layer" >/tmp/manifest
    manifest=$(oci_blob /tmp/manifest)
    printf '{"schemaVersion":2,"manifests":[{"mediaType":"%s",%s,"annotations":{"org.opencontainers.image.ref.name":"big"}}]}' \
        $kind.manifest.v1+json "$manifest" >/tmp/big/index.json
    echo '{"imageLayoutVersion":"1.0.0"}' >/tmp/big/oci-layout
}
# What was pushed makes room for what is pulled.
skopeo_pushes_and_pulls_gigabytes() {
    local image=docker://reg.test:$PORT/team/big:1 args=(--preserve-digests) bytes=$((520 * BLOB_BYTES)) layer
    big_image
    layer=$(ls -S /tmp/big/blobs/sha256 | head -n 1)
    timeout $PATIENCE skopeo copy "${args[@]}" --dest-cert-dir /tmp/trust --dest-creds $USER oci:/tmp/big:big $image || return 1
    rm -r /tmp/big
    timeout $PATIENCE skopeo copy "${args[@]}" --src-cert-dir /tmp/trust --src-creds $USER $image dir:/tmp/pulled-big || return 1
    wc -c "/tmp/pulled-big/$layer"
    [ "$(sha256sum <"/tmp/pulled-big/$layer" | cut -d' ' -f1)" = "$layer" ] && [ "$(wc -c <"/tmp/pulled-big/$layer")" = $bytes ]
}

ktls_checks() {
    upstream_files
    check 'ktls: certificates' certificates
    check 'ktls: the registry starts' registry
    check 'ktls: in this process it works as well' in_this_process_it_works_as_well
    check 'ktls: the gate insists on the kernel' tls_gate require
    check 'ktls: and says so' sealed_by 'the kernel'
    local suite host
    for suite in TLS_AES_128_GCM_SHA256 TLS_AES_256_GCM_SHA384 TLS_CHACHA20_POLY1305_SHA256; do
        check "ktls: 1.3 $suite down" download ec.test --tlsv1.3 --tls13-ciphers $suite
        check "ktls: 1.3 $suite up" upload ec.test --tlsv1.3 --tls13-ciphers $suite
    done
    for host in ec rsa; do
        for suite in AES128-GCM-SHA256 AES256-GCM-SHA384 CHACHA20-POLY1305; do
            suite=ECDHE-$([ $host = ec ] && echo ECDSA || echo RSA)-$suite
            check "ktls: 1.2 $suite down" download $host.test --tls-max 1.2 --ciphers $suite
            check "ktls: 1.2 $suite up" upload $host.test --tls-max 1.2 --ciphers $suite
        done
    done
    check 'ktls: several on one connection' several_on_one_connection
    check 'ktls: a slow reader gets all' download ec.test --limit-rate 4M
    check 'ktls: skopeo pushes and pulls' skopeo_pushes_and_pulls
    check 'ktls: GnuTLS 1.3' gnutls NORMAL:-VERS-ALL:+VERS-TLS1.3
    check 'ktls: GnuTLS 1.2' gnutls NORMAL:-VERS-ALL:+VERS-TLS1.2
    check 'ktls: nonces of TLS 1.2 differ' nonces_differ
    check 'ktls: keys that the client changes' key_update k
    check 'ktls: keys that both change' key_update K
    check 'ktls: keys changed in a download' key_update_in_a_download k
    check 'ktls: keys of both changed in a download' key_update_in_a_download K
    check 'ktls: a renegotiation is refused' renegotiation_is_refused
    check 'ktls: an end is announced' an_end_is_announced
    check 'ktls: a cut upstream is a cut' a_cut_upstream_is_a_cut
    check 'ktls: cut clients leave nothing' cut_clients_leave_nothing
    if [ "$LONG" = 1 ]; then
        check 'ktls: 2.2 GB down to curl' gigabytes_down_to_curl
        check 'ktls: 2.1 GB up from curl' gigabytes_up_from_curl
        check 'ktls: 2.2 GB down to OpenSSL' gigabytes_down_to "${OPENSSL[@]}"
        check 'ktls: 2.1 GB up from OpenSSL' gigabytes_up_from "${OPENSSL[@]}"
        check 'ktls: 2.2 GB down to NSS' gigabytes_down_to "${NSS[@]}"
        check 'ktls: 2.1 GB up from NSS' gigabytes_up_from "${NSS[@]}"
        check 'ktls: 2.2 GB down to Python' gigabytes_down_to_python
        check 'ktls: 2.1 GB up from Python' gigabytes_up_from_python
        check 'ktls: skopeo pushes and pulls 2.2 GB' skopeo_pushes_and_pulls_gigabytes
    fi
    check 'ktls: everyone was in the kernel' everyone_was_in_the_kernel
    check 'ktls: the access log says so' the_log_says_so
    check 'ktls: the gate ends with 0' gate_ends
}
