//! Attempts to log in, named for the [throttle](crate::limit::throttle): whose place and which credential, as keyed
//! hashes, so that what is counted holds nobody's password.

use std::net::IpAddr;
use std::time::Duration;

use crate::auth::credentials;
use crate::limit::Millis;
use crate::limit::throttle::{self, Outcome, Source, Throttle};
use crate::verdict::Answer;
use crate::verdict::key::BootKey;

/// The throttle, and how attempts are named for it.
#[derive(Debug)]
pub struct Attempts {
    boot: BootKey,
    /// None: failures are not counted.
    throttle: Option<Throttle>,
}

/// An attempt that was let in. Dropped without an end, it counts for nothing: its client did not wait for the answer.
#[derive(Debug)]
pub struct Attempt<'a> {
    open: Option<(&'a Throttle, throttle::Attempt)>,
}

impl Attempts {
    /// `free` failures cost nothing (0: none ever does), the next one costs `base`.
    pub fn new(secret: &[u8; 32], free: usize, base: Duration) -> Self {
        let base = Millis::try_from(base.as_millis()).unwrap_or(Millis::MAX);
        let free = u32::try_from(free).unwrap_or(u32::MAX);
        Self { boot: BootKey::new(secret), throttle: (free > 0).then(|| Throttle::new(free, base)) }
    }

    /// Whether a remembered answer may be given now.
    ///
    /// # Errors
    /// The seconds for `Retry-After`.
    pub fn pass(&self, authorization: Option<&[u8]>, peer: IpAddr, answer: &Answer, now: Millis) -> Result<(), u32> {
        let (Some(throttle), Some(value)) = (&self.throttle, authorization) else { return Ok(()) };
        // A remembered no says again what was said before.
        let source = Source::from(peer);
        if !matches!(answer, Answer::Known(_)) || throttle.is_quiet(source, now) {
            return Ok(());
        }
        match self.name(source, value) {
            Some(attempt) => throttle.pass(&attempt, now).map_err(seconds),
            None => Ok(()),
        }
    }

    /// Begins an attempt that somebody will have to check. Without a credential there is nothing to guess.
    ///
    /// # Errors
    /// The seconds for `Retry-After`.
    pub fn begin(&self, authorization: Option<&[u8]>, peer: IpAddr, now: Millis) -> Result<Attempt<'_>, u32> {
        let (Some(throttle), Some(value)) = (&self.throttle, authorization) else { return Ok(Attempt { open: None }) };
        let Some(attempt) = self.name(Source::from(peer), value) else { return Ok(Attempt { open: None }) };
        throttle.begin(&attempt, now).map_err(seconds)?;
        Ok(Attempt { open: Some((throttle, attempt)) })
    }

    /// None for a token, which nobody guesses, and which expires on its holder without his doing anything wrong.
    fn name(&self, source: Source, value: &[u8]) -> Option<throttle::Attempt> {
        if value.len() > 7 && value[..7].eq_ignore_ascii_case(b"bearer ") {
            return None;
        }
        // A backend may take user names in any case, and may read what we call malformed: neither is a way round.
        let user = credentials::parse(value).map(|basic| basic.user.to_lowercase()).unwrap_or_default();
        Some(throttle::Attempt {
            source,
            place: self.boot.name("place", &[source.bytes(), user.as_bytes()]),
            credential: self.boot.name("credential", &[source.bytes(), value]),
        })
    }
}

impl Attempt<'_> {
    /// Tells how it ended.
    pub fn end(mut self, answer: &Answer, now: Millis) {
        let outcome = match answer {
            Answer::Known(_) => Outcome::Right,
            Answer::Unknown { .. } => Outcome::Wrong,
            // A backend's 403 may be about the request as well as about the credential.
            Answer::Forbidden | Answer::Throttled { .. } | Answer::Unavailable { .. } => Outcome::Unknown,
        };
        if let Some((throttle, attempt)) = self.open.take() {
            throttle.end(&attempt, outcome, now);
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some((throttle, attempt)) = self.open.take() {
            throttle.end(&attempt, Outcome::Unknown, 0);
        }
    }
}

fn seconds(wait: Millis) -> u32 {
    u32::try_from(wait.div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Principal;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn wrong(attempts: &Attempts, value: &[u8]) -> Result<(), u32> {
        attempts.begin(Some(value), PEER, 0)?.end(&Answer::Unknown { challenge: None }, 0);
        Ok(())
    }

    #[test]
    fn neither_case_nor_spelling_is_a_way_round() {
        for spellings in [
            // alice:a, Alice:b, ALICE:c, aLICE:d
            ["Basic YWxpY2U6YQ==", "Basic QWxpY2U6Yg==", "Basic QUxJQ0U6Yw==", "basic YUxJQ0U6ZA=="],
            // What a lenient backend might read as Basic.
            ["Basic YWxpY2U6YR==", "Basic\tYWxpY2U6YQ==", "Basic YWxpY2U6YQ", "Digest x"],
        ] {
            let attempts = Attempts::new(&[7; 32], 1, Duration::from_secs(1));
            let seen = spellings.iter().filter(|value| wrong(&attempts, value.as_bytes()).is_ok()).count();
            assert_eq!(seen, 2, "{spellings:?}");
        }
    }

    #[test]
    fn tokens_and_requests_without_a_credential_are_not_counted() {
        let attempts = Attempts::new(&[7; 32], 1, Duration::from_secs(1));
        for n in 0..10 {
            assert_eq!(wrong(&attempts, format!("Bearer {n}").as_bytes()), Ok(()));
            assert!(attempts.begin(None, PEER, 0).is_ok());
        }
        let off = Attempts::new(&[7; 32], 0, Duration::from_secs(1));
        assert!((0..100).all(|n| wrong(&off, format!("Basic {n}").as_bytes()).is_ok()));
    }

    #[test]
    fn the_free_attempts_of_others_and_unclear_answers_stay_free() {
        let attempts = Attempts::new(&[7; 32], 1, Duration::from_secs(3));
        for n in 0..9 {
            let value = format!("Basic {n}");
            let attempt = attempts.begin(Some(value.as_bytes()), PEER, 0).unwrap();
            match n % 3 {
                0 => attempt.end(&Answer::Unavailable { why: "down" }, 0),
                1 => attempt.end(&Answer::Forbidden, 0),
                _ => drop(attempt),
            }
        }
        for n in 0..2 {
            wrong(&attempts, format!("Basic x{n}").as_bytes()).unwrap();
        }
        let known = Answer::Known(Principal::user("a").into());
        assert_eq!(attempts.pass(Some(b"Basic y"), PEER, &known, 1), Err(3));
        assert_eq!(attempts.pass(Some(b"Basic y"), PEER, &Answer::Forbidden, 1), Ok(()));
        assert_eq!(attempts.pass(None, PEER, &known, 1), Ok(()));
        let other = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));
        assert_eq!(attempts.pass(Some(b"Basic y"), other, &known, 1), Ok(()));
    }
}
