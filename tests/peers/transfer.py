"""One body over Python's TLS: up from standard input, or down to standard output."""

import http.client
import shutil
import ssl
import sys

port, authority, version, suite, target, size, authorization = sys.argv[1:]

context = ssl.create_default_context(cafile=authority)
context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
if version == "TLSv1_2":
    context.set_ciphers(suite)

headers = {"Authorization": authorization}
connection = http.client.HTTPSConnection("localhost", int(port), context=context, timeout=60)
connection.connect()
# Of TLS 1.3's suites Python itself cannot choose one; OpenSSL's configuration does.
if connection.sock.cipher()[0] != suite:
    sys.exit(f"agreed on {connection.sock.cipher()}")
if size == "0":
    connection.request("GET", target, headers=headers)
else:
    headers |= {"Content-Length": size, "Content-Type": "application/octet-stream"}
    connection.request("PATCH", target, body=sys.stdin.buffer, headers=headers)
answer = connection.getresponse()
if answer.status not in (200, 202):
    sys.exit(f"{answer.status} {answer.reason}")
shutil.copyfileobj(answer, sys.stdout.buffer, 1 << 16)
