//! `guard allow`: another allow list, as a whole and at once.
//!
//! The list is part of a policy, and a policy is never edited: a new one with the new list is filled and put in the
//! place of the old one, link by link. Each packet is judged by the old list or by the new one, never by a mixture, so
//! that a source in both of them is never kept out and one in neither never let in.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::bail;
use serde_json::json;

use super::enforce::amend;
use super::host;
use super::options::{AllowArgs, AllowChange, Cidr};
use super::pins::Pins;
use super::policy::Prefix;
use super::status::ABSENT;
use super::table::list;

/// `guard allow add|remove|replace`.
pub(super) fn allow(args: &AllowArgs) -> anyhow::Result<ExitCode> {
    host::require_privileges("allow")?;
    let read = match &args.change {
        AllowChange::Add(flags) | AllowChange::Remove(flags) => &flags.read,
        AllowChange::Replace(flags) => &flags.read,
    };
    let pins = Pins::at(&read.pin.resolve()?.dir);
    if !pins.dir().exists() {
        eprintln!("portcullis: no guard is pinned in {}", pins.dir().display());
        return Ok(ExitCode::from(ABSENT));
    }
    let policy = amend(&pins, |policy| {
        policy.allowed = changed(&policy.allowed, &args.change)?;
        Ok(())
    })?;
    let allowed: Vec<String> = policy.allowed.iter().map(|prefix| prefix.to_text()).collect();
    let mut out = io::stdout().lock();
    if read.json {
        writeln!(out, "{}", json!({"generation": policy.header.generation, "allowed": allowed}))?;
    } else {
        writeln!(out, "allowed (policy {}): {}", policy.header.generation, list(&allowed, "nobody from outside"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn changed(now: &[Prefix], change: &AllowChange) -> anyhow::Result<Vec<Prefix>> {
    let mut next: Vec<Prefix> = match change {
        AllowChange::Replace(_) => Vec::new(),
        _ => now.to_vec(),
    };
    match change {
        AllowChange::Add(flags) => add(&mut next, &flags.blocks),
        AllowChange::Replace(flags) => add(&mut next, &flags.blocks),
        AllowChange::Remove(flags) => {
            for block in &flags.blocks {
                let prefix = of(block);
                if !next.contains(&prefix) {
                    let has: Vec<String> = now.iter().map(|prefix| prefix.to_text()).collect();
                    bail!("{block} is not in the allow list, which has {}", list(&has, "nobody"));
                }
                next.retain(|other| *other != prefix);
            }
        }
    }
    Ok(next)
}

fn add(list: &mut Vec<Prefix>, blocks: &[Cidr]) {
    for prefix in blocks.iter().map(of) {
        if !list.contains(&prefix) {
            list.push(prefix);
        }
    }
}

fn of(block: &Cidr) -> Prefix {
    Prefix::new(block.address, block.bits, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::guard::options::{AllowFlags, PinFlags, ReadFlags, ReplaceFlags};

    fn blocks(text: &str) -> Vec<Cidr> {
        text.split_whitespace().map(|block| block.parse().unwrap()).collect()
    }

    fn after(now: &str, change: impl Fn(Vec<Cidr>, ReadFlags) -> AllowChange, words: &str) -> Result<String, String> {
        let now: Vec<Prefix> = blocks(now).iter().map(of).collect();
        let read = ReadFlags { json: false, pin: PinFlags::default() };
        let next = changed(&now, &change(blocks(words), read)).map_err(|error| error.to_string())?;
        Ok(next.iter().map(|prefix| prefix.to_text()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_list_becomes_what_is_asked_for() {
        let add = |blocks, read| AllowChange::Add(AllowFlags { blocks, read });
        let remove = |blocks, read| AllowChange::Remove(AllowFlags { blocks, read });
        let replace = |blocks, read| AllowChange::Replace(ReplaceFlags { blocks, read });
        let now = "10.0.0.0/8 192.0.2.7";
        assert_eq!(after(now, add, "::/0 10.0.0.0/8").unwrap(), "10.0.0.0/8 192.0.2.7/32 ::/0");
        assert_eq!(after(now, remove, "192.0.2.7").unwrap(), "10.0.0.0/8");
        assert_eq!(after(now, replace, "192.0.2.8").unwrap(), "192.0.2.8/32");
        assert_eq!(after(now, replace, "").unwrap(), "");
        assert!(after(now, remove, "10.1.0.0/16").unwrap_err().contains("which has 10.0.0.0/8, 192.0.2.7/32"));
    }
}
