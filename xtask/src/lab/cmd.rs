//! Running a command so that its failure explains itself: the whole command line and the tail of its output.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use super::interrupt;
use super::ui::Step;

const TAIL_LINES: usize = 30;

/// How long a command may take that shows nothing meanwhile: one that hangs must not hold up all that comes after it.
const SILENT_LIMIT: Duration = Duration::from_secs(600);

/// A line, and whether it came from standard output.
type Line = (bool, Vec<u8>);

/// A command to run.
#[derive(Debug)]
pub struct Cmd {
    command: Command,
    input: Vec<u8>,
    log: Option<PathBuf>,
    uninterruptible: bool,
    one_pipe: bool,
    limit: Option<Duration>,
    secret: Vec<String>,
}

/// What a command left behind.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// Both outputs as they came.
    pub merged: Vec<u8>,
    /// The command as a person would type it.
    pub shown: String,
}

impl Output {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Both outputs as text.
    #[must_use]
    pub fn everything(&self) -> String {
        String::from_utf8_lossy(&self.merged).into_owned()
    }

    /// Itself if the command ended with 0.
    ///
    /// # Errors
    /// When it did not: with the command and the tail of its output.
    pub fn ok(self) -> anyhow::Result<Self> {
        if !self.status.success() {
            bail!("`{}` failed ({}):\n{}", self.shown, self.status, tail(&self.everything()));
        }
        Ok(self)
    }
}

impl Cmd {
    /// A command without arguments.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(program),
            input: Vec::new(),
            log: None,
            uninterruptible: false,
            one_pipe: false,
            limit: None,
            secret: Vec::new(),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds an argument that no message may show.
    #[must_use]
    pub fn secret_arg(mut self, arg: impl Into<String>) -> Self {
        let arg = arg.into();
        self.command.arg(&arg);
        self.secret.push(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes a variable from its environment.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Where it runs.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// The same command, started by another one that takes it as its last words (`nsenter … --`).
    #[must_use]
    pub fn by(mut self, prefix: &[String]) -> Self {
        self.command = prefixed(&self.command, prefix);
        self
    }

    /// What it reads from its standard input; without this it reads nothing.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// A file that keeps its whole output.
    #[must_use]
    pub fn log(mut self, log: impl Into<PathBuf>) -> Self {
        self.log = Some(log.into());
        self
    }

    /// Ctrl-C waits for it: a package manager stopped half-way would leave a broken system.
    #[must_use]
    pub fn uninterruptible(mut self) -> Self {
        self.uninterruptible = true;
        self
    }

    /// After this long it is stopped, which is a failure.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Both outputs through one pipe, so that their lines stay in order; all of it counts as standard output.
    #[must_use]
    pub fn one_pipe(mut self) -> Self {
        self.one_pipe = true;
        self
    }

    /// The command as a person would type it.
    #[must_use]
    pub fn shown(&self) -> String {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        let words: Vec<String> = words
            .map(|word| {
                let word = word.to_string_lossy();
                if self.secret.iter().any(|secret| *secret == word) { "…".into() } else { quoted(&word) }
            })
            .collect();
        words.join(" ")
    }

    /// The program, its arguments and its environment, as `std` has them.
    #[must_use]
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Runs it and hands back what it left, whatever its exit code. It has ten minutes if no other limit was set.
    ///
    /// # Errors
    /// When it cannot be started, does not end in time or the person asked for the end meanwhile.
    pub fn output(mut self) -> anyhow::Result<Output> {
        self.limit.get_or_insert(SILENT_LIMIT);
        self.watched(&mut |_| ())
    }

    /// Runs it, which must succeed, and hands back its standard output. Its time is limited as in [`Cmd::output`].
    ///
    /// # Errors
    /// When it cannot be started, fails or does not end in time.
    pub fn run(self) -> anyhow::Result<String> {
        Ok(self.output()?.ok()?.text())
    }

    /// Runs it as a step with progress; it must succeed.
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn step(self, label: &str) -> anyhow::Result<Output> {
        let log = self.log.clone();
        let mut step = Step::begin(label);
        let output = self.watched(&mut |line| step.note(line))?.ok();
        match output {
            Ok(output) => {
                step.done("");
                Ok(output)
            }
            Err(error) => Err(match log {
                Some(log) => error.context(format!("{label}: the whole output is in {}", log.display())),
                None => error.context(label.to_owned()),
            }),
        }
    }

    /// Runs it and shows each line of its output to `seen` as it comes.
    ///
    /// # Errors
    /// When it cannot be started or the person asked for the end meanwhile.
    pub fn watched(mut self, seen: &mut dyn FnMut(&str)) -> anyhow::Result<Output> {
        let shown = self.shown();
        let mut log = match &self.log {
            Some(path) => Some(begin_log(path, &shown)?),
            None => None,
        };
        let (mut child, lines) = self.spawn().with_context(|| format!("cannot start `{shown}`"))?;
        let mut output = Output { status: ExitStatus::default(), stdout: vec![], merged: vec![], shown };
        let begun = Instant::now();
        let mut exited_at: Option<Instant> = None;
        loop {
            match lines.recv_timeout(Duration::from_millis(100)) {
                Ok((is_stdout, line)) => {
                    if is_stdout {
                        output.stdout.extend_from_slice(&line);
                    }
                    output.merged.extend_from_slice(&line);
                    if let Some(log) = &mut log {
                        log.write_all(&line).context("cannot write the log")?;
                    }
                    seen(String::from_utf8_lossy(&line).trim_end());
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if interrupt::requested() && !self.uninterruptible {
                end_group(&mut child, Duration::from_secs(5));
                bail!("interrupted: `{}` was stopped", output.shown);
            }
            if self.limit.is_some_and(|limit| begun.elapsed() > limit) {
                end_group(&mut child, Duration::from_secs(5));
                let (seconds, said) = (begun.elapsed().as_secs(), tail(&output.everything()));
                bail!("`{}` was stopped after {seconds} s:\n{said}", output.shown);
            }
            // Something that the command left running may hold its output open for ever.
            if exited_at.is_none() && matches!(child.try_wait(), Ok(Some(_))) {
                exited_at = Some(Instant::now());
            }
            if exited_at.is_some_and(|at| at.elapsed() > Duration::from_secs(2)) {
                break;
            }
        }
        output.status = child.wait().with_context(|| format!("cannot wait for `{}`", output.shown))?;
        Ok(output)
    }
}

impl Cmd {
    fn spawn(&mut self) -> io::Result<(Child, Receiver<Line>)> {
        let input = std::mem::take(&mut self.input);
        let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
        let (out, out_end) = io::pipe()?;
        let (err, err_end) = if self.one_pipe { (None, out_end.try_clone()?) } else { separate(io::pipe()?) };
        let mut child = self.command.stdin(stdin).stdout(out_end).stderr(err_end).process_group(0).spawn()?;
        // The command holds our copies of the writing ends; while they are open no reader sees an end.
        self.command.stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(mut stdin) = child.stdin.take() {
            // A command that ends before it has read everything is no failure of ours.
            thread::spawn(move || drop(stdin.write_all(&input)));
        }
        let (sender, receiver) = channel();
        read_lines(true, out, sender.clone());
        if let Some(err) = err {
            read_lines(false, err, sender);
        }
        Ok((child, receiver))
    }
}

/// `command` as the last words of another one, in the same directory and environment.
pub(crate) fn prefixed(command: &Command, prefix: &[impl AsRef<OsStr>]) -> Command {
    let mut words = prefix.iter().map(AsRef::as_ref).chain([command.get_program()]).chain(command.get_args());
    let mut wrapped = Command::new(words.next().unwrap_or_default());
    wrapped.args(words);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        wrapped.current_dir(dir);
    }
    wrapped
}

fn separate((read, write): (PipeReader, PipeWriter)) -> (Option<PipeReader>, PipeWriter) {
    (Some(read), write)
}

fn begin_log(path: &Path, shown: &str) -> anyhow::Result<File> {
    let opened = OpenOptions::new().create(true).write(true).truncate(true).open(path);
    let mut file = opened.with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(file, "$ {shown}").with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file)
}

fn read_lines(is_stdout: bool, from: impl Read + Send + 'static, to: Sender<Line>) {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            if to.send((is_stdout, std::mem::take(&mut line))).is_err() {
                break;
            }
        }
    });
}

/// Ends a child and all that it started: SIGTERM, and SIGKILL when the time is up.
pub(crate) fn end_group(child: &mut Child, grace: Duration) {
    let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return;
    };
    let end = Instant::now() + grace;
    if !grace.is_zero() {
        let _ = kill_process_group(group, Signal::TERM);
        while Instant::now() < end && matches!(child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(10));
        }
    }
    let _ = kill_process_group(group, Signal::KILL);
    let _ = child.wait();
}

/// The last lines of a text, indented.
#[must_use]
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    let mut shown: Vec<String> = lines[from..].iter().map(|line| format!("    {line}")).collect();
    if from > 0 {
        shown.insert(0, format!("    … {from} lines before"));
    }
    if shown.is_empty() {
        shown.push("    (no output)".into());
    }
    shown.join("\n")
}

/// Where a program is, as a shell would find it; the sbin directories count, whoever runs this.
#[must_use]
pub fn which(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir: PathBuf| dir.join(program)).find(|path| path.is_file())
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_shows_its_last_words() {
        let error = Cmd::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]).run().unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("sh -c 'echo out; echo err >&2; exit 3'"), "{text}");
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(text.contains("    out") && text.contains("    err"), "{text}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Cmd::new("no-such-program-here").run().unwrap_err();
        assert!(format!("{error:#}").contains("cannot start `no-such-program-here`"), "{error:#}");
    }

    #[test]
    fn a_secret_is_not_shown() {
        let cmd = Cmd::new("true").arg("--creds").secret_arg("alice:hunter2");
        assert_eq!(cmd.shown(), "true --creds …");
    }

    #[test]
    fn input_is_read_and_output_comes_back() {
        let text = Cmd::new("cat").input("a\nb").run().unwrap();
        assert_eq!(text, "a\nb");
    }

    #[test]
    fn a_command_that_leaves_something_running_does_not_hold_us() {
        let begun = Instant::now();
        Cmd::new("sh").args(["-c", "sleep 20 & echo done"]).run().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_command_that_does_not_end_is_stopped_and_says_what_it_was_at() {
        let cmd = Cmd::new("sh").args(["-c", "echo working; sleep 60"]).limit(Duration::from_millis(300));
        let error = cmd.output().unwrap_err();
        assert!(format!("{error:#}").contains("was stopped after 0 s:\n    working"), "{error:#}");
    }

    #[test]
    fn only_the_tail_is_shown() {
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let tail = tail(&text);
        assert!(tail.contains("line 99") && !tail.contains("line 69\n"), "{tail}");
        assert!(tail.contains("70 lines before"), "{tail}");
    }
}
