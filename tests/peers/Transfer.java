import java.io.*;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.*;

/** One body over Java's own TLS: up from standard input, or down to standard output. */
public class Transfer {
    public static void main(String[] args) throws Exception {
        int port = Integer.parseInt(args[0]);
        String authority = args[1], version = args[2], suite = args[3], target = args[4], authorization = args[6];
        long size = Long.parseLong(args[5]);

        SSLSocket socket = (SSLSocket) trusting(authority).getSocketFactory().createSocket("localhost", port);
        SSLParameters terms = socket.getSSLParameters();
        terms.setProtocols(new String[] {version});
        terms.setCipherSuites(new String[] {suite});
        terms.setApplicationProtocols(new String[] {"http/1.1"});
        terms.setEndpointIdentificationAlgorithm("HTTPS");
        socket.setSSLParameters(terms);
        socket.setSoTimeout(60_000);

        OutputStream out = socket.getOutputStream();
        String method = size == 0 ? "GET" : "PATCH";
        String length = size == 0 ? "" : "Content-Length: " + size + "\r\nContent-Type: application/octet-stream\r\n";
        out.write((method + " " + target + " HTTP/1.1\r\nHost: localhost\r\nAuthorization: " + authorization + "\r\n"
            + length + "Connection: close\r\n\r\n").getBytes(StandardCharsets.US_ASCII));
        if (size > 0) {
            copy(System.in, out, size);
        }
        InputStream in = new BufferedInputStream(socket.getInputStream(), 1 << 16);
        String status = line(in);
        if (!status.startsWith("HTTP/1.1 20")) {
            throw new IOException(status);
        }
        long expected = -1;
        for (String field = line(in); !field.isEmpty(); field = line(in)) {
            if (field.toLowerCase().startsWith("content-length:")) {
                expected = Long.parseLong(field.substring(15).trim());
            }
        }
        copy(in, System.out, expected);
        System.out.flush();
        // Java says by an exception that a peer went without a close_notify.
        if (in.read() != -1) {
            throw new IOException("something behind the body");
        }
    }

    private static SSLContext trusting(String authority) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (InputStream file = Files.newInputStream(Path.of(authority))) {
            store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(file));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        return context;
    }

    private static String line(InputStream in) throws IOException {
        StringBuilder line = new StringBuilder();
        for (int c = in.read(); c != '\n'; c = in.read()) {
            if (c == -1) {
                throw new EOFException("in the head");
            }
            line.append((char) c);
        }
        return line.toString().trim();
    }

    private static void copy(InputStream from, OutputStream to, long size) throws IOException {
        byte[] piece = new byte[1 << 16];
        for (long left = size; left > 0;) {
            int read = from.read(piece, 0, (int) Math.min(left, piece.length));
            if (read < 0) {
                throw new EOFException(left + " bytes are missing");
            }
            to.write(piece, 0, read);
            left -= read;
        }
    }
}
