//! A request's head in memory, and out of it again.

use std::cell::Cell;

use zeroize::Zeroize as _;

/// The bytes of a head. Its credentials are wiped when the exchange ends, however it does.
pub struct Heard {
    bytes: Vec<u8>,
    secret: Cell<(usize, usize)>,
}

impl Heard {
    /// As long as nobody knows where its credentials are, all of it is one.
    pub fn new(bytes: Vec<u8>) -> Self {
        let secret = Cell::new((0, bytes.len()));
        Self { bytes, secret }
    }

    /// The head as it came.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// `value`, a part of the bytes, is all that is secret.
    pub fn holds(&self, value: &[u8]) {
        let from = (value.as_ptr() as usize).saturating_sub(self.bytes.as_ptr() as usize);
        self.secret.set(if value.is_empty() { (0, 0) } else { (from, from + value.len()) });
    }

    fn wipe(&mut self) {
        let (from, to) = self.secret.get();
        if let Some(secret) = self.bytes.get_mut(from..to) {
            secret.zeroize();
        }
    }
}

/// Wiping a whole buffer would cost more than reading what is in it.
impl Drop for Heard {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_wiped_and_what_cannot_be_read_is_wiped_whole() {
        let mut heard = Heard::new(b"A: Basic c2VjcmV0\r\n\r\n".to_vec());
        heard.holds(&heard.bytes()[3..17]);
        heard.wipe();
        assert_eq!(heard.bytes(), b"A: \0\0\0\0\0\0\0\0\0\0\0\0\0\0\r\n\r\n");
        heard.holds(&[]);
        heard.wipe();
        assert!(heard.bytes().starts_with(b"A: "));
        let mut broken = Heard::new(b"A Basic c2VjcmV0".to_vec());
        broken.wipe();
        assert!(broken.bytes().iter().all(|byte| *byte == 0));
    }
}
