//! One password hash: which scheme, with what parameters, and whether a password fits.

use std::fmt;

use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use base64::engine::{DecodePaddingMode, Engine as _};
use sha_crypt::{PasswordVerifier as _, ShaCrypt};
use sha1::{Digest as _, Sha1};
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::auth::apr1;

/// The lowest bcrypt cost there is.
pub const MIN_BCRYPT_COST: u32 = 4;
/// The highest bcrypt cost accepted: about three seconds of one core. A file must not be able to hang the gate.
pub const MAX_BCRYPT_COST: u32 = 16;
/// The cost of new passwords: about 50 ms of one core.
pub const DEFAULT_BCRYPT_COST: u32 = 10;
/// bcrypt reads no more of a password than this, in bytes.
pub const MAX_BCRYPT_PASSWORD_BYTES: usize = 72;

/// SHA-crypt's default, lowest and highest rounds; its specification allows up to 999,999,999.
const SHA_CRYPT_ROUNDS: (u32, u32, u32) = (5_000, 1_000, 1_000_000);

/// Unused low bits of the last character differ between implementations, so they are not looked at.
const BCRYPT_BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::BCRYPT,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// The family of a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `$2a$`, `$2b$`, `$2y$`.
    Bcrypt,
    /// `$apr1$`.
    Apr1,
    /// `{SHA}`.
    Sha1,
    /// `$5$`.
    Sha256Crypt,
    /// `$6$`.
    Sha512Crypt,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Scheme::Bcrypt => "bcrypt",
            Scheme::Apr1 => "apr1",
            Scheme::Sha1 => "sha1",
            Scheme::Sha256Crypt => "sha256-crypt",
            Scheme::Sha512Crypt => "sha512-crypt",
        })
    }
}

/// What one verification costs: an estimate that orders schemes and parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cost(u64);

impl Cost {
    /// In microseconds of one core.
    pub(super) fn micros(self) -> u64 {
        self.0 / 1_000
    }
}

/// A parsed hash. `Debug` shows the scheme only.
#[derive(Clone)]
pub struct Hash(Parsed);

#[derive(Clone)]
enum Parsed {
    Bcrypt { cost: u32, salt: [u8; 16], digest: [u8; 23] },
    Apr1 { salt: String, digest: [u8; apr1::HASH_CHARS] },
    Sha1 { digest: [u8; 20] },
    ShaCrypt { scheme: Scheme, rounds: u32, text: String },
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({})", self.scheme())
    }
}

impl Hash {
    /// Parses the second field of an htpasswd line.
    ///
    /// # Errors
    /// What it seems to be instead, without showing any of it.
    pub fn parse(text: &str) -> Result<Hash, HashError> {
        let parsed = if let Some(rest) = text.strip_prefix("{SHA}") {
            parse_sha1(rest)
        } else if let Some(rest) = text.strip_prefix("$apr1$") {
            parse_apr1(rest)
        } else if ["$2a$", "$2b$", "$2y$"].iter().any(|prefix| text.starts_with(prefix)) {
            return parse_bcrypt(&text[4..]).map(Hash);
        } else if let Some(rest) = text.strip_prefix("$5$") {
            return parse_sha_crypt(Scheme::Sha256Crypt, rest, text).map(Hash);
        } else if let Some(rest) = text.strip_prefix("$6$") {
            return parse_sha_crypt(Scheme::Sha512Crypt, rest, text).map(Hash);
        } else {
            return Err(foreign(text));
        };
        parsed.map(Hash).ok_or(HashError::Damaged)
    }

    /// Which scheme.
    pub fn scheme(&self) -> Scheme {
        match &self.0 {
            Parsed::Bcrypt { .. } => Scheme::Bcrypt,
            Parsed::Apr1 { .. } => Scheme::Apr1,
            Parsed::Sha1 { .. } => Scheme::Sha1,
            Parsed::ShaCrypt { scheme, .. } => *scheme,
        }
    }

    /// Nanoseconds, measured on one machine; only the order and the magnitude matter.
    pub(super) fn cost(&self) -> Cost {
        Cost(match &self.0 {
            Parsed::Bcrypt { cost, .. } => 49_000 << cost,
            Parsed::Apr1 { .. } => 130_000,
            Parsed::Sha1 { .. } => 300,
            Parsed::ShaCrypt { scheme: Scheme::Sha256Crypt, rounds, .. } => 280 * u64::from(*rounds),
            Parsed::ShaCrypt { rounds, .. } => 310 * u64::from(*rounds),
        })
    }

    /// Whether `password` fits, compared in constant time. A password that the scheme would cut short never fits, but
    /// costs the same.
    pub fn verify(&self, password: &[u8]) -> bool {
        match &self.0 {
            Parsed::Bcrypt { cost, salt, digest } => {
                let fits = password.len() <= MAX_BCRYPT_PASSWORD_BYTES && !password.contains(&0);
                let computed = bcrypt_raw(*cost, *salt, password);
                bool::from(computed[..23].ct_eq(digest)) && fits
            }
            Parsed::Apr1 { salt, digest } => apr1::hash(password, salt.as_bytes()).ct_eq(digest).into(),
            Parsed::Sha1 { digest } => Sha1::digest(password).as_slice().ct_eq(digest).into(),
            Parsed::ShaCrypt { text, .. } => ShaCrypt::default().verify_password(password, text.as_str()).is_ok(),
        }
    }
}

/// Why a text is no usable hash. Completes "user "x": …".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HashError {
    /// Nothing there.
    #[error("the hash is missing")]
    Missing,
    /// Neither `$scheme$` nor `{SCHEME}`.
    #[error("the password is plain text or DES crypt, which are not accepted")]
    PlainOrDes,
    /// A scheme that is known by name, but not accepted.
    #[error("{0} hashes are not accepted (bcrypt, apr1, {{SHA}}, $5$ and $6$ are)")]
    Foreign(&'static str),
    /// A scheme nobody knows.
    #[error("the hash is of an unknown scheme (bcrypt, apr1, {{SHA}}, $5$ and $6$ are accepted)")]
    Unknown,
    /// The right beginning, but not what has to follow.
    #[error("the hash is damaged (cut short, or with characters that do not belong there)")]
    Damaged,
    /// A bcrypt cost out of bounds.
    #[error("the bcrypt cost must be 4 to 16")]
    Cost,
    /// SHA-crypt rounds out of bounds.
    #[error("the rounds must be 1000 to 1000000")]
    Rounds,
    /// A password that cannot be hashed.
    #[error("the password {0}")]
    Password(&'static str),
}

/// Hashes a new password with bcrypt: `$2y$…`, which Apache, nginx and distribution read too. `salt` is random.
///
/// # Errors
/// [`HashError::Password`] for an empty password, one over 72 bytes or one with a NUL; [`HashError::Cost`].
pub fn hash_bcrypt(password: &[u8], cost: u32, salt: [u8; 16]) -> Result<String, HashError> {
    if !(MIN_BCRYPT_COST..=MAX_BCRYPT_COST).contains(&cost) {
        return Err(HashError::Cost);
    }
    if password.is_empty() {
        return Err(HashError::Password("is empty"));
    }
    if password.len() > MAX_BCRYPT_PASSWORD_BYTES {
        return Err(HashError::Password("is longer than the 72 bytes that bcrypt can hash"));
    }
    if password.contains(&0) {
        return Err(HashError::Password("contains a NUL byte"));
    }
    let digest = bcrypt_raw(cost, salt, password);
    Ok(format!("$2y${cost:02}${}{}", BCRYPT_BASE64.encode(salt), BCRYPT_BASE64.encode(&digest[..23])))
}

/// The key is the password with its NUL, cut at 72 bytes; callers have to refuse what the cut would lose.
fn bcrypt_raw(cost: u32, salt: [u8; 16], password: &[u8]) -> [u8; 24] {
    let mut key = Zeroizing::new([0; MAX_BCRYPT_PASSWORD_BYTES]);
    let used = password.len().min(MAX_BCRYPT_PASSWORD_BYTES);
    key[..used].copy_from_slice(&password[..used]);
    bcrypt::bcrypt(cost, salt, &key[..(used + 1).min(MAX_BCRYPT_PASSWORD_BYTES)])
}

fn parse_bcrypt(rest: &str) -> Result<Parsed, HashError> {
    let (cost, tail) = rest.split_once('$').ok_or(HashError::Damaged)?;
    if cost.len() != 2 || !cost.bytes().all(|b| b.is_ascii_digit()) {
        return Err(HashError::Damaged);
    }
    let cost = cost.parse().map_err(|_| HashError::Damaged)?;
    if !(MIN_BCRYPT_COST..=MAX_BCRYPT_COST).contains(&cost) {
        return Err(HashError::Cost);
    }
    let (salt, digest) = tail.split_at_checked(22).ok_or(HashError::Damaged)?;
    match (exact(&BCRYPT_BASE64, salt), exact(&BCRYPT_BASE64, digest)) {
        (Some(salt), Some(digest)) => Ok(Parsed::Bcrypt { cost, salt, digest }),
        _ => Err(HashError::Damaged),
    }
}

fn parse_sha1(rest: &str) -> Option<Parsed> {
    exact(&STANDARD, rest).map(|digest| Parsed::Sha1 { digest })
}

fn parse_apr1(rest: &str) -> Option<Parsed> {
    let (salt, digest) = rest.split_once('$')?;
    let digest: [u8; apr1::HASH_CHARS] = digest.as_bytes().try_into().ok()?;
    let fits = salt.len() <= apr1::MAX_SALT_BYTES && is_crypt64(salt.as_bytes()) && is_crypt64(&digest);
    fits.then(|| Parsed::Apr1 { salt: salt.to_owned(), digest })
}

fn parse_sha_crypt(scheme: Scheme, rest: &str, text: &str) -> Result<Parsed, HashError> {
    let (default, lowest, highest) = SHA_CRYPT_ROUNDS;
    let (rounds, rest) = match rest.strip_prefix("rounds=") {
        None => (default, rest),
        Some(rest) => {
            let (number, rest) = rest.split_once('$').ok_or(HashError::Damaged)?;
            if number.starts_with('0') || !number.bytes().all(|b| b.is_ascii_digit()) {
                return Err(HashError::Damaged);
            }
            (number.parse().map_err(|_| HashError::Rounds)?, rest)
        }
    };
    if !(lowest..=highest).contains(&rounds) {
        return Err(HashError::Rounds);
    }
    let (salt, digest) = rest.split_once('$').ok_or(HashError::Damaged)?;
    let length = if scheme == Scheme::Sha256Crypt { 43 } else { 86 };
    let fits = (1..=16).contains(&salt.len()) && digest.len() == length;
    if !fits || !is_crypt64(salt.as_bytes()) || !is_crypt64(digest.as_bytes()) {
        return Err(HashError::Damaged);
    }
    Ok(Parsed::ShaCrypt { scheme, rounds, text: text.to_owned() })
}

fn foreign(text: &str) -> HashError {
    const NAMED: [(&str, &str); 12] = [
        ("$2x$", "bcrypt 2x (made by a broken implementation)"),
        ("$2$", "bcrypt 2 (made by a broken implementation)"),
        ("$1$", "MD5-crypt"),
        ("$y$", "yescrypt"),
        ("$gy$", "gost-yescrypt"),
        ("$7$", "scrypt"),
        ("$argon2", "argon2"),
        ("$pbkdf2", "PBKDF2"),
        ("$scrypt", "scrypt"),
        ("{SSHA", "salted {SSHA}"),
        ("{PLAIN}", "plain text"),
        ("{CRYPT}", "{CRYPT}"),
    ];
    if text.is_empty() {
        return HashError::Missing;
    }
    let upper = text.get(..9).unwrap_or(text).to_ascii_uppercase();
    match NAMED
        .iter()
        .find(|(prefix, _)| text.starts_with(prefix) || (prefix.starts_with('{') && upper.starts_with(prefix)))
    {
        Some((_, name)) => HashError::Foreign(name),
        None if text.starts_with('$') || text.starts_with('{') => HashError::Unknown,
        None => HashError::PlainOrDes,
    }
}

fn exact<const N: usize>(engine: &GeneralPurpose, text: &str) -> Option<[u8; N]> {
    engine.decode(text).ok()?.try_into().ok()
}

fn is_crypt64(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| apr1::CRYPT_ALPHABET.contains(b))
}
