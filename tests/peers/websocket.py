"""Both ends of a WebSocket (RFC 6455) from the standard library: `serve PORT`, `talk PORT AUTHORIZATION [CA]`."""

import base64, hashlib, os, socket, ssl, struct, sys, threading

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accept_of(key):
    return base64.b64encode(hashlib.sha1(key + GUID).digest())


def read_head(stream):
    lines = []
    while (line := stream.readline().strip()):
        lines.append(line)
    fields = dict(line.split(b": ", 1) for line in lines[1:])
    return lines[0], {name.lower(): value for name, value in fields.items()}


def send(stream, opcode, payload, mask):
    size = len(payload)
    head = bytes([0x80 | opcode])
    bit = 0x80 if mask else 0
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += bytes([bit | 126]) + struct.pack(">H", size)
    else:
        head += bytes([bit | 127]) + struct.pack(">Q", size)
    if mask:
        key = os.urandom(4)
        long = (key * (size // 4 + 1))[:size]
        masked = int.from_bytes(payload, "big") ^ int.from_bytes(long, "big")
        payload = key + masked.to_bytes(size, "big")
    stream.write(head + payload)
    stream.flush()


def receive(stream):
    first, second = stream.read(2)
    size = second & 127
    if size == 126:
        size = struct.unpack(">H", stream.read(2))[0]
    elif size == 127:
        size = struct.unpack(">Q", stream.read(8))[0]
    key = stream.read(4) if second & 128 else None
    payload = stream.read(size)
    if key:
        long = (key * (size // 4 + 1))[:size]
        payload = (int.from_bytes(payload, "big") ^ int.from_bytes(long, "big")).to_bytes(size, "big")
    return first & 15, payload


def echo(connection):
    stream = connection.makefile("rwb")
    try:
        _, fields = read_head(stream)
        assert fields[b"upgrade"].lower() == b"websocket" and fields[b"connection"].lower() == b"upgrade"
        answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        stream.write(answer + b"Sec-WebSocket-Accept: " + accept_of(fields[b"sec-websocket-key"]) + b"\r\n\r\n")
        stream.flush()
        opcode = 0
        while opcode != 8:
            opcode, payload = receive(stream)
            send(stream, opcode, payload, mask=False)
    except (KeyError, IndexError, ValueError, OSError):
        pass  # Somebody who only knocked.
    finally:
        stream.close()
        connection.close()


def serve(port):
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()


def talk(port, authorization, ca=None):
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    if ca:
        connection = ssl.create_default_context(cafile=ca).wrap_socket(connection, server_hostname="localhost")
    stream = connection.makefile("rwb")
    key = base64.b64encode(os.urandom(16))
    fields = [b"Host: localhost", b"Upgrade: websocket", b"Connection: keep-alive, Upgrade",
              b"Sec-WebSocket-Key: " + key, b"Sec-WebSocket-Version: 13", b"Authorization: " + authorization.encode()]
    stream.write(b"\r\n".join([b"GET /echo HTTP/1.1", *fields, b"", b""]))
    stream.flush()
    status, fields = read_head(stream)
    assert status.startswith(b"HTTP/1.1 101 ") and fields[b"sec-websocket-accept"] == accept_of(key), (status, fields)
    for n in range(200):
        message = os.urandom([0, 5, 125, 126, 3000, 70000, 300000][n % 7])
        send(stream, 2, message, mask=True)
        assert receive(stream) == (2, message), n
    send(stream, 8, b"\x03\xe8", mask=True)
    assert receive(stream) == (8, b"\x03\xe8")
    assert stream.read(1) == b"", "the end"
    print("200 messages")


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    talk(int(sys.argv[2]), *sys.argv[3:])
