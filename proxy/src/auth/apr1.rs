//! Apache's MD5 password hash, `$apr1$salt$hash`: the scheme of most htpasswd files since the 1990s.
//!
//! Source: Apache Portable Runtime's documentation of `apr_md5_encode`; it is FreeBSD's MD5-crypt with another magic.
//! Kept for the files that exist. At about 130 µs a guess it is weak: new passwords are hashed with bcrypt.

use md5::{Digest as _, Md5};
use zeroize::Zeroizing;

const MAGIC: &[u8] = b"$apr1$";
const ROUNDS: usize = 1000;

/// Length of the encoded digest.
pub const HASH_CHARS: usize = 22;
/// Longest salt; the algorithm ignores what follows.
pub const MAX_SALT_BYTES: usize = 8;

/// The alphabet of crypt(3)'s base64, in the order of its values.
pub const CRYPT_ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The 22 characters that follow the salt. Of `salt` at most [`MAX_SALT_BYTES`] are used.
pub fn hash(password: &[u8], salt: &[u8]) -> [u8; HASH_CHARS] {
    let salt = &salt[..salt.len().min(MAX_SALT_BYTES)];
    let mut state = initial(password, salt);
    for round in 0..ROUNDS {
        let mut md5 = Md5::new();
        let odd = round % 2 == 1;
        md5.update(if odd { password } else { &state[..] });
        if round % 3 != 0 {
            md5.update(salt);
        }
        if round % 7 != 0 {
            md5.update(password);
        }
        md5.update(if odd { &state[..] } else { password });
        *state = md5.finalize().into();
    }
    encode(&state)
}

fn initial(password: &[u8], salt: &[u8]) -> Zeroizing<[u8; 16]> {
    let inner = Md5::new().chain_update(password).chain_update(salt).chain_update(password).finalize();
    let mut md5 = Md5::new().chain_update(password).chain_update(MAGIC).chain_update(salt);
    for chunk in password.chunks(16) {
        md5.update(&inner[..chunk.len()]);
    }
    // One byte for each bit of the length, lowest first: NUL for a set bit, else the password's first byte. A quirk of
    // the original that every implementation has to repeat.
    let mut bits = password.len();
    while bits != 0 {
        let byte = if bits & 1 == 1 { 0 } else { password.first().copied().unwrap_or(0) };
        md5.update([byte]);
        bits >>= 1;
    }
    Zeroizing::new(md5.finalize().into())
}

/// Six bits a character, lowest first, over the digest's bytes in the scheme's own order.
fn encode(digest: &[u8; 16]) -> [u8; HASH_CHARS] {
    const ORDER: [[usize; 3]; 5] = [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]];
    let mut out = [0; HASH_CHARS];
    for (chars, [high, middle, low]) in out.chunks_exact_mut(4).zip(ORDER) {
        let word = [digest[high], digest[middle], digest[low]].iter().fold(0u32, |w, &b| w << 8 | u32::from(b));
        put(chars, word);
    }
    put(&mut out[20..], u32::from(digest[11]));
    out
}

fn put(chars: &mut [u8], mut word: u32) {
    for c in chars {
        *c = CRYPT_ALPHABET[(word & 63) as usize];
        word >>= 6;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with `openssl passwd -apr1 -salt …`, except the first, which is a 2014 file's line.
    #[test]
    fn vectors() {
        for (password, salt, expected) in [
            ("testpassword", "2tC1rkEu", "X7QF44CjhNYFqyiqPjedA."),
            ("", "abcdefgh", "L.PT565ESX4Tp2bqNs7Ie."),
            ("", "x", "tMwYqBfQwi3FYAr0aJc8M/"),
            ("a", "abcdefgh", "G8IsPsylW5ROvIKsQMRG61"),
            ("a", "x", "16j9.5e7KiXmuYFAYpPJM/"),
            ("pass word", "abcdefgh", "NriZ3KceyQFy368Ufp8U./"),
            ("pass word", "x", "9m2R/RC3gLdtQ052yMbGc."),
            ("sixteen-bytes-ok", "abcdefgh", "lYN0wpx9Z8qZYqCcdy9n90"),
            ("sixteen-bytes-ok", "x", "PqVgi5pIomoEUv3KtBdyJ0"),
            ("seventeen-bytes-x", "abcdefgh", "4OKLrP/FQtZNgi64/G01T1"),
            ("seventeen-bytes-x", "x", "jXNANB5anoyRp6lp0rYjL."),
            ("zoë ü", "abcdefgh", "XSj67gEcmVedbcQAvgqmZ."),
            ("zoë ü", "x", "yL5ZPa42oXNFgqGJAqrnm1"),
            (
                "long-long-long-long-long-long-long-long-long-long-long-long-long-long-long-long-long-long-long-long-long-long-long-long-long-long-long-long-long-long-",
                "./09AZaz",
                "ereDH85WoIDsfqPBGTTSd.",
            ),
        ] {
            assert_eq!(
                std::str::from_utf8(&hash(password.as_bytes(), salt.as_bytes())).unwrap(),
                expected,
                "{password}"
            );
        }
    }

    #[test]
    fn a_longer_salt_is_cut() {
        assert_eq!(hash(b"x", b"12345678"), hash(b"x", b"123456789"));
    }
}
