//! Lines for a file that may take only some of them: whole lines or none, whatever the disk does.

use std::io::{self, ErrorKind, Write};

/// Bytes that wait for one write.
const FULL: usize = 64 << 10;

/// Collects lines and writes them together.
pub(super) struct Lines {
    out: Box<dyn Write + Send>,
    buffer: Vec<u8>,
    /// The file ends within a line, whose rest is the start of the buffer.
    torn: bool,
    failed: bool,
}

impl Lines {
    pub(super) fn new(out: Box<dyn Write + Send>) -> Self {
        Self { out, buffer: Vec::new(), torn: false, failed: false }
    }

    /// Adds whole lines, each with its end.
    pub(super) fn push(&mut self, lines: Vec<u8>) {
        if self.buffer.is_empty() {
            self.buffer = lines;
        } else {
            self.buffer.extend_from_slice(&lines);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.buffer.len() >= FULL
    }

    /// Whether the last write failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Writes what is there. On an error, the number of lines that are lost: those of which nothing is in the file. The
    /// rest of one that was begun stays, so that the next line begins on its own.
    pub(super) fn flush(&mut self) -> Result<(), (u64, io::Error)> {
        let (done, outcome) = self.write();
        self.failed = outcome.is_err();
        if done > 0 {
            self.torn = self.buffer[done - 1] != b'\n';
        }
        let rest = self.buffer.split_off(done);
        let kept = if self.torn { rest.iter().position(|&b| b == b'\n').map_or(rest.len(), |end| end + 1) } else { 0 };
        self.buffer = rest[..kept].to_vec();
        outcome.map_err(|error| (count(&rest[kept..]), error))
    }

    /// How many bytes were taken, and what stopped it.
    fn write(&mut self) -> (usize, io::Result<()>) {
        let mut done = 0;
        while done < self.buffer.len() {
            match self.out.write(&self.buffer[done..]) {
                Ok(0) => return (done, Err(ErrorKind::WriteZero.into())),
                Ok(n) => done += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return (done, Err(error)),
            }
        }
        (done, self.out.flush())
    }
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|&&b| b == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A disk with room for so many bytes.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let n = bytes.len().min(disk.1);
            if n == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            disk.0.extend_from_slice(&bytes[..n]);
            disk.1 -= n;
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn wherever_the_disk_is_full_no_line_is_torn_and_each_lost_one_is_counted() {
        for room in 0..60 {
            let disk = Disk::default();
            let mut lines = Lines::new(Box::new(disk.clone()));
            let (mut lost, mut begun) = (0, 0);
            for step in 0..6 {
                disk.0.lock().unwrap().1 += if step == 3 { 1000 } else { room / 4 };
                for _ in 0..2 {
                    lines.push(format!("line {begun}\n").into_bytes());
                    begun += 1;
                }
                if let Err((more, _)) = lines.flush() {
                    lost += more;
                    assert!(lines.has_failed());
                }
            }
            disk.0.lock().unwrap().1 = 1000;
            lines.flush().unwrap();
            let text = String::from_utf8(disk.0.lock().unwrap().0.clone()).unwrap();
            assert!(text.ends_with('\n'), "{text:?}");
            let whole = |line: &str| line.strip_prefix("line ").is_some_and(|n| n.parse::<u64>().is_ok());
            assert!(text.lines().all(whole), "room for {room}: {text:?}");
            assert_eq!(text.lines().count() as u64 + lost, begun, "room for {room}");
        }
    }

    #[test]
    fn a_buffer_does_not_grow_on_a_full_disk() {
        let mut lines = Lines::new(Box::new(Disk::default()));
        for _ in 0..1000 {
            lines.push(b"a line\n".to_vec());
            assert!(lines.flush().is_err());
        }
        assert!(lines.buffer.is_empty());
    }
}
