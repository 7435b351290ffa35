//! The manual pages: all that the program knows, in a form that a reader of such pages takes without complaint.

use std::fs;

use crate::support::cmd::{Cmd, which};
use crate::support::{program, scratch};

#[test]
fn the_manual_has_every_command_and_every_key() {
    let dir = scratch("manual").unwrap();
    Cmd::new(program()).args(["man", "--out"]).arg(dir.path()).run().unwrap();
    let page = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_else(|_| panic!("no {name}"));
    let help = Cmd::new(program()).arg("--help").run().unwrap();
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let mut seen = 0;
    for command in commands.filter_map(|line| line.split_whitespace().next()).filter(|word| *word != "help") {
        let page = page(&format!("portcullis-{command}.1"));
        assert!(page.contains("portcullis.toml (5)") && !page.contains(".SH EXTRA"), "{command}");
        seen += 1;
    }
    assert!(seen >= 9, "{help}");
    let file = page("portcullis.toml.5");
    let reference = Cmd::new(program()).args(["check", "--reference"]).run().unwrap();
    for key in reference.lines().filter_map(|line| line.strip_prefix("# ")?.split(" = ").next()) {
        assert!(file.contains(&key.replace('-', "\\-").replace('\'', "\\(aq").replace('`', "\\`")), "{key}");
    }
    if which("groff").is_some() {
        for entry in fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let read = Cmd::new("groff").args(["-man", "-Tutf8", "-wall", "-z"]).arg(&path).output().unwrap();
            // Some lines are longer than a terminal is wide: the reference is shown as it is.
            let complaints: Vec<_> =
                read.everything().lines().filter(|line| !line.contains("break")).map(str::to_owned).collect();
            assert!(complaints.is_empty(), "{}: {complaints:?}", path.display());
        }
    }
}
