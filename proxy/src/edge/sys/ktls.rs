//! TLS records in the kernel (kTLS): a socket that is given its keys encrypts what is sent and decrypts what arrives.
//!
//! Sending since Linux 4.13, receiving since 4.17, TLS 1.3 since 5.1, ChaCha20-Poly1305 since 5.11, other keys for a running
//! TLS 1.3 connection since 6.14. `include/uapi/linux/tls.h` has the layouts.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustls::ConnectionTrafficSecrets;
use zeroize::Zeroizing;

use super::socket::set_option;

/// What a record holds (RFC 8446 §5.1).
pub const ALERT: u8 = 21;
/// See [`ALERT`].
pub const HANDSHAKE: u8 = 22;
/// See [`ALERT`].
pub const DATA: u8 = 23;

/// The versions that the kernel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// TLS 1.2
    Tls12,
    /// TLS 1.3
    Tls13,
}

/// The ciphers that rustls and the kernel have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// AES-128-GCM
    Aes128Gcm,
    /// AES-256-GCM
    Aes256Gcm,
    /// ChaCha20-Poly1305
    ChaCha20Poly1305,
}

/// Which way keys are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the peer.
    Send,
    /// From the peer.
    Receive,
}

/// The keys of one direction.
#[derive(Clone, Copy)]
pub struct Keys<'k> {
    /// What they are for.
    pub cipher: Cipher,
    /// 16 or 32 bytes.
    pub key: &'k [u8],
    /// 12 bytes.
    pub iv: &'k [u8],
}

impl<'k> Keys<'k> {
    /// Those of a finished handshake; none for a cipher that the kernel does not know.
    pub fn of(secrets: &'k ConnectionTrafficSecrets) -> Option<Self> {
        let (cipher, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Cipher::ChaCha20Poly1305, key, iv),
            _ => return None,
        };
        Some(Self { cipher, key: key.as_ref(), iv: iv.as_ref() })
    }
}

/// Makes a connected TCP socket one that can be given keys. Until it is, it works as before.
///
/// # Errors
/// `NotFound` where the kernel has no TLS module, or this process may not have it loaded; `NotConnected` where the peer has
/// closed already.
pub fn attach(socket: impl AsFd) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls")
}

/// Gives the socket the keys of one direction; `sequence` is the number of the next record under them.
///
/// # Errors
/// `InvalidInput` for what this kernel does not know; `ResourceBusy` where it takes no second keys.
pub fn install(
    socket: impl AsFd,
    direction: Direction,
    version: Version,
    keys: &Keys<'_>,
    sequence: u64,
) -> io::Result<()> {
    let option = match direction {
        Direction::Send => libc::TLS_TX,
        Direction::Receive => libc::TLS_RX,
    };
    set_option(socket, libc::SOL_TLS, option, &crypto_info(direction, version, keys, sequence)?)
}

/// The bytes of a `struct tls12_crypto_info_…`.
fn crypto_info(
    direction: Direction,
    version: Version,
    keys: &Keys<'_>,
    sequence: u64,
) -> io::Result<Zeroizing<Vec<u8>>> {
    let version_word = match version {
        Version::Tls12 => libc::TLS_1_2_VERSION,
        Version::Tls13 => libc::TLS_1_3_VERSION,
    };
    let (cipher_word, key_len) = match keys.cipher {
        Cipher::Aes128Gcm => (libc::TLS_CIPHER_AES_GCM_128, 16),
        Cipher::Aes256Gcm => (libc::TLS_CIPHER_AES_GCM_256, 32),
        Cipher::ChaCha20Poly1305 => (libc::TLS_CIPHER_CHACHA20_POLY1305, 32),
    };
    let (Some((salt, explicit)), true) = (keys.iv.split_first_chunk::<4>(), keys.key.len() == key_len) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let explicit: [u8; 8] = explicit.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut info = Zeroizing::new(Vec::with_capacity(64));
    info.extend_from_slice(&version_word.to_ne_bytes());
    info.extend_from_slice(&cipher_word.to_ne_bytes());
    if keys.cipher == Cipher::ChaCha20Poly1305 {
        info.extend_from_slice(keys.iv);
        info.extend_from_slice(keys.key);
    } else {
        let nonces_are_sent = version == Version::Tls12 && direction == Direction::Send;
        info.extend_from_slice(&if nonces_are_sent { unused_nonces(explicit) } else { explicit });
        info.extend_from_slice(keys.key);
        info.extend_from_slice(salt);
    }
    info.extend_from_slice(&sequence.to_be_bytes());
    Ok(info)
}

/// Where the kernel begins to count the nonces of AES-GCM in TLS 1.2, which are the sender's to choose (RFC 5288 §3).
///
/// rustls has sealed its n-th record of the handshake under `explicit XOR n`. The kernel counts up from where it is told
/// to, so from `explicit` it would begin with a nonce that was used: two records under one nonce give both away, and the
/// key that authenticates all others. These begin in the other half of all numbers, and far from its end.
fn unused_nonces(explicit: [u8; 8]) -> [u8; 8] {
    const OTHER_HALF: u64 = 1 << 63;
    const LOW: u64 = u32::MAX as u64;
    ((u64::from_be_bytes(explicit) ^ OTHER_HALF) & !LOW).to_be_bytes()
}

/// Room for one control message of one byte, aligned as its header wants it.
#[repr(C, align(8))]
struct Control([u8; 32]);

fn header(piece: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr: null pointers with lengths of zero.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = piece;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    header
}

/// Reads at most `most` bytes of records of one kind, behind what is in `buffer`: the kind and the number. Nothing at the
/// end of the stream.
///
/// # Errors
/// `WouldBlock` when no whole record is there; `EBADMSG` for one that its key does not open; else as recvmsg(2).
pub fn try_recv(socket: impl AsFd, buffer: &mut Vec<u8>, most: usize) -> io::Result<Option<(u8, usize)>> {
    buffer.reserve(most);
    let spare = buffer.spare_capacity_mut();
    let mut piece = libc::iovec { iov_base: spare.as_mut_ptr().cast(), iov_len: most.min(spare.len()) };
    let mut control = Control([0; 32]);
    let mut header = header(&mut piece, &mut control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to the spare capacity and to `control`, both with their true lengths, and both outlive the call.
    let n = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) };
    let Ok(n) = usize::try_from(n) else { return Err(io::Error::last_os_error()) };
    // SAFETY: the kernel filled the first `n` bytes of the spare capacity.
    unsafe { buffer.set_len(buffer.len() + n) };
    match kind(&header) {
        Some(kind) => Ok(Some((kind, n))),
        None if n == 0 => Ok(None),
        None => Ok(Some((DATA, n))),
    }
}

/// The kind of record that the kernel tells beside the data.
fn kind(header: &libc::msghdr) -> Option<u8> {
    // SAFETY: the header is one that recvmsg(2) has just filled, and its control buffer is alive.
    let message = unsafe { libc::CMSG_FIRSTHDR(header).as_ref() }?;
    let ours = message.cmsg_level == libc::SOL_TLS && message.cmsg_type == libc::TLS_GET_RECORD_TYPE;
    // SAFETY: the kernel wrote one byte behind the header of a message of this type.
    ours.then(|| unsafe { *libc::CMSG_DATA(message) })
}

/// Sends one record of another kind than data, whole or not at all.
///
/// # Errors
/// `WouldBlock` when there is no room; else as sendmsg(2).
pub fn try_send_record(socket: impl AsFd, kind: u8, payload: &[u8]) -> io::Result<()> {
    let mut piece = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let mut control = Control([0; 32]);
    let mut header = header(&mut piece, &mut control);
    // SAFETY: `control` has room for a message of one byte (24 bytes on all 64-bit Linux), and CMSG_FIRSTHDR, CMSG_DATA point
    // into it.
    unsafe {
        header.msg_controllen = libc::CMSG_SPACE(1) as _;
        let message = libc::CMSG_FIRSTHDR(&raw const header);
        (*message).cmsg_level = libc::SOL_TLS;
        (*message).cmsg_type = libc::TLS_SET_RECORD_TYPE;
        (*message).cmsg_len = libc::CMSG_LEN(1) as _;
        *libc::CMSG_DATA(message) = kind;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the header points to `payload`, which is only read, and to `control`; both outlive the call.
    let n = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, flags) };
    match usize::try_from(n) {
        Ok(n) if n == payload.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_is_given_has_its_layout() {
        let sizes = [
            (Cipher::Aes128Gcm, 16, size_of::<libc::tls12_crypto_info_aes_gcm_128>()),
            (Cipher::Aes256Gcm, 32, size_of::<libc::tls12_crypto_info_aes_gcm_256>()),
            (Cipher::ChaCha20Poly1305, 32, size_of::<libc::tls12_crypto_info_chacha20_poly1305>()),
        ];
        for (cipher, len, size) in sizes {
            let keys = Keys { cipher, key: &vec![7; len], iv: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] };
            let info = crypto_info(Direction::Send, Version::Tls13, &keys, 0x0102).unwrap();
            assert_eq!(info.len(), size, "{cipher:?}");
            assert!(info.ends_with(&[0, 0, 0, 0, 0, 0, 1, 2]), "{cipher:?}");
            let wrong = Keys { key: &[7; 20], ..keys };
            assert!(crypto_info(Direction::Send, Version::Tls13, &wrong, 0).is_err());
        }
    }

    #[test]
    fn no_nonce_of_tls_1_2_is_used_twice() {
        for explicit in [0, 1, u64::MAX, 1 << 63, (1 << 63) - 1, 0x0123_4567_89ab_cdef] {
            let first = u64::from_be_bytes(unused_nonces(explicit.to_be_bytes()));
            let handshake: Vec<u64> = (0..1000).map(|n| explicit ^ n).collect();
            assert!((0..1 << 12).all(|n| !handshake.contains(&first.wrapping_add(n))), "{explicit:x}");
            let last = first.wrapping_add(u64::from(u32::MAX));
            assert_eq!(last >> 63, first >> 63, "it does not run into the half that rustls used");
            assert_ne!(first >> 63, explicit >> 63);
        }
    }

    #[test]
    fn keys_to_receive_with_and_all_of_tls_1_3_stay_as_they_are() {
        let keys = Keys { cipher: Cipher::Aes128Gcm, key: &[7; 16], iv: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] };
        for (direction, version) in [(Direction::Receive, Version::Tls12), (Direction::Send, Version::Tls13)] {
            let info = crypto_info(direction, version, &keys, 1).unwrap();
            assert_eq!(&info[4..12], &keys.iv[4..]);
        }
        let info = crypto_info(Direction::Send, Version::Tls12, &keys, 1).unwrap();
        assert_ne!(&info[4..12], &keys.iv[4..]);
    }
}
