"""python-oras, as its documentation has it: `oras_client.py REGISTRY CA NAME:PASSWORD push|chunked|pull|tags|delete …`."""

import sys

import oras.client

registry, authority, login, command, *words = sys.argv[1:]
client = oras.client.OrasClient(hostname=registry, tls_verify=authority, auth_backend="basic")
if login:
    name, password = login.split(":")
    client.login(name, password, hostname=registry, tls_verify=authority)
try:
    if command in ("push", "chunked"):
        target, *files = words
        client.push(target, files=files, do_chunked=command == "chunked", chunk_size=1 << 20)
    elif command == "pull":
        target, directory = words
        client.pull(target, outdir=directory)
    elif command == "tags":
        print("\n".join(client.get_tags(words[0])))
    elif command == "delete":
        target, tag = words
        client.delete_tag(target, tag)
    else:
        sys.exit(f"no such command: {command}")
except Exception as error:
    sys.exit(f"Error: {error}")
