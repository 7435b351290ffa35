//! The chunked transfer coding (RFC 9112 §7.1): decoded strictly, written anew.
//!
//! `httparse::parse_chunk_size` takes an empty line as a size of 0 and lets LF and NUL into extensions; both have
//! been smuggling holes elsewhere, so the decoder here is our own. Extensions and trailers are checked, bounded
//! and dropped: nothing that the sender wrote between the data bytes is relayed.

/// The sum of extension and trailer bytes that one body may carry; they are dropped anyway.
const OVERHEAD_LIMIT: usize = 16 * 1024;

/// A chunked body that breaks the grammar. The connection it came on has no agreed meaning any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The size line is not hexadecimal digits, an optional extension, CRLF.
    #[error("malformed chunk size")]
    Size,
    /// The chunk's data is not followed by CRLF.
    #[error("chunk data is not followed by CRLF")]
    DataEnd,
    /// An extension has a control character or is not ended by CRLF.
    #[error("malformed chunk extension")]
    Extension,
    /// The trailer section has a malformed line.
    #[error("malformed trailer section")]
    Trailer,
    /// Extensions and trailers are larger than any sane sender's.
    #[error("chunk extensions and trailers are too large")]
    Overhead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the size, with this many digits read.
    Size(u8),
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the first byte of a trailer line, or of the empty line that ends the body.
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

/// An incremental decoder: the same bytes give the same data however they are cut.
#[derive(Debug, Clone)]
pub struct Decoder {
    state: State,
    /// The size being read, then the bytes of data that are left.
    left: u64,
    overhead: usize,
}

/// What one call of [`Decoder::decode`] found.
#[derive(Debug, PartialEq, Eq)]
pub struct Decoded<'i> {
    /// Bytes of the input that are dealt with, `data` among them.
    pub consumed: usize,
    /// Body bytes; empty when the input held none.
    pub data: &'i [u8],
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the start of a body.
    pub fn new() -> Self {
        Self { state: State::Size(0), left: 0, overhead: 0 }
    }

    /// Whether the last chunk and the trailer section have been read; further bytes belong to the next message.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Reads on until the first run of data, the end of the body, or the end of `input`.
    ///
    /// # Errors
    /// [`ChunkError`] on the first byte that breaks the grammar; the decoder must not be used after it.
    pub fn decode<'i>(&mut self, input: &'i [u8]) -> Result<Decoded<'i>, ChunkError> {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            match self.state {
                State::Done => break,
                State::Data => {
                    let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len() - at);
                    self.left -= room as u64;
                    if self.left == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok(Decoded { consumed: at + room, data: &input[at..at + room] });
                }
                _ => self.step(byte)?,
            }
            at += 1;
        }
        Ok(Decoded { consumed: at, data: &[] })
    }

    /// Takes one byte that is not data.
    fn step(&mut self, byte: u8) -> Result<(), ChunkError> {
        self.state = match (self.state, byte) {
            (State::Size(digits), _) if byte.is_ascii_hexdigit() => self.digit(digits, byte)?,
            (State::Size(1..), b'\r') => State::SizeLf,
            (State::Size(1..), b';') => self.dropped(State::Extension)?,
            (State::Size(_), _) => return Err(ChunkError::Size),
            (State::Extension, b'\r') => State::SizeLf,
            (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => self.dropped(State::Extension)?,
            (State::Extension, _) => return Err(ChunkError::Extension),
            (State::SizeLf, b'\n') if self.left == 0 => State::TrailerStart,
            (State::SizeLf, b'\n') => State::Data,
            (State::SizeLf, _) => return Err(ChunkError::Size),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size(0),
            (State::DataCr | State::DataLf, _) => return Err(ChunkError::DataEnd),
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart, b'!'..=b'~') if byte != b':' => self.dropped(State::Trailer)?,
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::Trailer, b'\t' | b' '..=b'~' | 0x80..) => self.dropped(State::Trailer)?,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::Done,
            (State::TrailerStart | State::Trailer | State::TrailerLf | State::EndLf, _) => {
                return Err(ChunkError::Trailer);
            }
            (State::Data | State::Done, _) => self.state,
        };
        Ok(())
    }

    fn digit(&mut self, digits: u8, byte: u8) -> Result<State, ChunkError> {
        if digits == 0 {
            self.left = 0;
        }
        // 15 digits are an exbibyte: no real chunk, and no overflow on the way there.
        if digits >= 15 {
            return Err(ChunkError::Size);
        }
        let value = (byte as char).to_digit(16).ok_or(ChunkError::Size)?;
        self.left = self.left * 16 + u64::from(value);
        Ok(State::Size(digits + 1))
    }

    fn dropped(&mut self, next: State) -> Result<State, ChunkError> {
        self.overhead += 1;
        if self.overhead > OVERHEAD_LIMIT { Err(ChunkError::Overhead) } else { Ok(next) }
    }
}

/// The chunk that ends every body that the gate writes.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What stands behind a chunk's data.
pub const CHUNK_END: &[u8] = b"\r\n";

/// Appends `data` to `out` as one chunk; nothing for no data, since an empty chunk would end the body.
pub fn encode(data: &[u8], out: &mut Vec<u8>) {
    if data.is_empty() {
        return;
    }
    out.extend_from_slice(&size_line(data.len()));
    out.extend_from_slice(data);
    out.extend_from_slice(CHUNK_END);
}

/// What stands in front of a chunk's data.
pub fn size_line(bytes: usize) -> Vec<u8> {
    format!("{bytes:x}\r\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Decodes pieces one after the other: the data, and the bytes left over after the end.
    fn run(pieces: &[&[u8]]) -> Result<(Vec<u8>, Vec<u8>, bool), ChunkError> {
        let (mut decoder, mut data, mut rest) = (Decoder::new(), Vec::new(), Vec::new());
        for piece in pieces {
            let mut piece = *piece;
            while !piece.is_empty() && !decoder.is_done() {
                let step = decoder.decode(piece)?;
                data.extend_from_slice(step.data);
                piece = &piece[step.consumed..];
            }
            rest.extend_from_slice(piece);
        }
        Ok((data, rest, decoder.is_done()))
    }

    #[test]
    fn bodies_decode() {
        for (body, data, rest) in [
            ("0\r\n\r\n", "", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello", ""),
            ("5\r\nhello\r\n1\r\n!\r\n0\r\n\r\nGET /", "hello!", "GET /"),
            ("A;name=\"v\"\r\n0123456789\r\n000\r\nTrailer: x\r\n\r\n", "0123456789", ""),
        ] {
            let got = run(&[body.as_bytes()]).expect(body);
            assert_eq!(got, (data.into(), rest.into(), true), "{body:?}");
        }
    }

    #[test]
    fn what_other_parsers_took_is_refused() {
        use ChunkError::{DataEnd, Extension, Size, Trailer};
        for (body, error) in [
            ("\r\n\r\n", Size),
            (";ext\r\n\r\n", Size),
            (" 5\r\nhello\r\n", Size),
            ("5 \r\nhello\r\n", Size),
            ("0x5\r\nhello\r\n", Size),
            ("+5\r\nhello\r\n", Size),
            ("-1\r\n", Size),
            ("5\nhello\r\n", Size),
            ("5\r\rhello", Size),
            ("5;a\nhello\r\n0\r\n\r\n", Extension),
            ("5;a\0b\r\nhello\r\n0\r\n\r\n", Extension),
            ("ffffffffffffffff\r\n", Size),
            ("1000000000000000\r\n", Size),
            ("5\r\nhelloX\n0\r\n\r\n", DataEnd),
            ("5\r\nhello\n0\r\n\r\n", DataEnd),
            ("0\r\n\n", Trailer),
            ("0\r\n X: folded\r\n\r\n", Trailer),
            ("0\r\nX: a\nY: b\r\n\r\n", Trailer),
            ("0\r\n: no name\r\n\r\n", Trailer),
        ] {
            assert_eq!(run(&[body.as_bytes()]), Err(error), "{body:?}");
        }
    }

    #[test]
    fn overhead_is_bounded() {
        let body = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(OVERHEAD_LIMIT));
        assert_eq!(run(&[body.as_bytes()]), Err(ChunkError::Overhead));
        let body = format!("0\r\n{}\r\n", "a: b\r\n".repeat(OVERHEAD_LIMIT / 3));
        assert_eq!(run(&[body.as_bytes()]), Err(ChunkError::Overhead));
    }

    fn chunk_like() -> impl Strategy<Value = Vec<u8>> {
        let token = prop_oneof![
            Just(b"\r\n".to_vec()),
            Just(b"0\r\n\r\n".to_vec()),
            Just(b"5\r\nhello\r\n".to_vec()),
            Just(b"3;x=y\r\nabc\r\n".to_vec()),
            Just(b"T: v\r\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..4),
        ];
        proptest::collection::vec(token, 0..8).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn whole_equals_bytes_equals_any_cut(body in chunk_like(), cut in any::<prop::sample::Index>()) {
            let whole = run(&[&body]);
            let single: Vec<&[u8]> = body.chunks(1).collect();
            prop_assert_eq!(&whole, &run(&single));
            let at = cut.index(body.len() + 1);
            prop_assert_eq!(&whole, &run(&[&body[..at], &body[at..]]));
        }

        #[test]
        fn what_is_encoded_decodes(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..8)) {
            let mut wire = Vec::new();
            parts.iter().for_each(|part| encode(part, &mut wire));
            wire.extend_from_slice(LAST_CHUNK);
            prop_assert_eq!(run(&[&wire]), Ok((parts.concat(), Vec::new(), true)));
        }
    }
}
