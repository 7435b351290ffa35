//! htpasswd files: one `user:hash` a line, as Apache and nginx read them.
//!
//! ```text
//! # comments and empty lines are kept
//! alice:$2y$10$…          bcrypt (2a, 2b, 2y), cost 4–16
//! bob:$apr1$salt$…        Apache's MD5
//! carol:{SHA}…            SHA-1, unsalted
//! dave:$5$rounds=9000$…   SHA-256-crypt; $6$ is SHA-512-crypt; at most 1,000,000 rounds
//! ```
//!
//! Plain text and DES crypt are refused: DES reads eight characters only, and a file of plain text is a leak in waiting.

mod edit;
mod hash;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;

use super::principal;

pub use edit::{with_user, without_user};
pub use hash::{
    DEFAULT_BCRYPT_COST, Hash, HashError, MAX_BCRYPT_COST, MAX_BCRYPT_PASSWORD_BYTES, MIN_BCRYPT_COST, Scheme,
    hash_bcrypt,
};

/// The longest password that is hashed at all, in bytes (the limit of crypt(3)). SHA-crypt's cost grows with the
/// password's length, so an unbounded one would be a way to hang the gate.
pub const MAX_PASSWORD_BYTES: usize = 512;

/// A file whose every line was understood.
#[derive(Clone, Debug)]
pub struct Htpasswd {
    entries: Vec<Entry>,
    by_user: HashMap<String, usize>,
    /// The entry that costs most to verify: unknown users are hashed against it.
    dearest: Option<usize>,
}

#[derive(Clone, Debug)]
struct Entry {
    user: String,
    hash: Hash,
}

/// What is wrong with one line, with the remedy. Never shows the hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineError {
    /// Counted from 1.
    pub line: usize,
    /// A sentence for the operator.
    pub reason: String,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl std::error::Error for LineError {}

impl Htpasswd {
    /// Reads a whole file. CRLF line ends, comments (`#` first), empty lines and a third field are tolerated.
    ///
    /// # Errors
    /// Every broken line at once, in order: half a user list is never used.
    pub fn parse(text: &str) -> Result<Htpasswd, Vec<LineError>> {
        let mut file = Htpasswd { entries: Vec::new(), by_user: HashMap::new(), dearest: None };
        let mut first_lines = Vec::new();
        let mut errors = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            match parse_line(line) {
                Ok(None) => {}
                Ok(Some(entry)) => match file.by_user.get(&entry.user) {
                    Some(&earlier) => {
                        errors.push(LineError { line: number, reason: duplicate(&entry.user, first_lines[earlier]) });
                    }
                    None => {
                        file.by_user.insert(entry.user.clone(), file.entries.len());
                        file.entries.push(entry);
                        first_lines.push(number);
                    }
                },
                Err(reason) => errors.push(LineError { line: number, reason }),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        file.dearest = (0..file.entries.len()).max_by_key(|&at| file.entries[at].hash.cost());
        Ok(file)
    }

    /// Whether `password` is `user`'s.
    ///
    /// Takes about the same time whoever asks: an unknown user is hashed against the dearest entry, and a user whose
    /// own hash is cheaper than that is charged the difference by hashing against it too. Otherwise a quick answer would
    /// betray which names exist. Blocks the thread for as long as that takes (see [`Htpasswd::dearest_cost_micros`]).
    pub fn verify(&self, user: &str, password: &[u8]) -> bool {
        // Every C implementation ends a password at NUL: `x\0anything` would pass for `x`. Decided before the user is
        // looked up, so that it tells nothing about them.
        if password.len() > MAX_PASSWORD_BYTES || password.contains(&0) {
            return false;
        }
        let (own, decoy) = self.work(user);
        let matches = own.is_some_and(|hash| hash.verify(password));
        if let Some(decoy) = decoy {
            std::hint::black_box(decoy.verify(password));
        }
        matches
    }

    /// The hashes that a password is run through: the user's own, which decides, and the one that evens out the cost.
    fn work(&self, user: &str) -> (Option<&Hash>, Option<&Hash>) {
        let own = self.by_user.get(user).map(|&at| &self.entries[at].hash);
        let dearest = self.dearest.map(|at| &self.entries[at].hash);
        let decoy = dearest.filter(|dearest| own.is_none_or(|own| own.cost() < dearest.cost()));
        (own, decoy)
    }

    /// The users with their schemes, in the order of the file.
    pub fn users(&self) -> impl Iterator<Item = (&str, Scheme)> {
        self.entries.iter().map(|entry| (entry.user.as_str(), entry.hash.scheme()))
    }

    /// Whether the file names this user.
    pub fn contains(&self, user: &str) -> bool {
        self.by_user.contains_key(user)
    }

    /// How many users.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No users: nobody can log in.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A rough estimate of what one [`Htpasswd::verify`] costs, in microseconds of one core: for a warning when it is
    /// seconds, and for sizing a queue.
    pub fn dearest_cost_micros(&self) -> u64 {
        self.dearest.map_or(0, |at| self.entries[at].hash.cost().micros())
    }
}

fn parse_line(line: &str) -> Result<Option<Entry>, String> {
    let line = line.trim_end();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    // The text before the colon is not repeated here: a line without one may be a bare password.
    let (user, rest) = line.split_once(':').ok_or("no colon; a line is user:hash, made with `portcullis user add`")?;
    principal::check_name(user).map_err(|why| format!("the user name {why}; correct or delete the line"))?;
    let (hash, _comment) = rest.split_once(':').unwrap_or((rest, ""));
    match Hash::parse(hash) {
        Ok(hash) => Ok(Some(Entry { user: user.to_owned(), hash })),
        Err(why) => {
            Err(format!("user {user:?}: {why}; set a new password with `portcullis user add`, or delete the line"))
        }
    }
}

fn duplicate(user: &str, first: usize) -> String {
    format!("user {user:?} is already on line {first}; delete one of the two lines")
}
