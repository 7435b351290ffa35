//! Becoming an ordinary user once everything that needs root is open.

use std::io;

use rustix::process::{Gid, Resource, Rlimit, Uid, geteuid, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// An account of the system, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// The user.
    pub uid: u32,
    /// Its primary group, the only one that is kept.
    pub gid: u32,
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Finds a user in the text of `/etc/passwd`.
pub fn account(passwd: &str, name: &str) -> Option<Account> {
    let mut fields = passwd
        .lines()
        .map(|line| line.split(':'))
        .find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(Account { uid, gid })
}

/// Becomes `account` for good: supplementary groups, group, user, in real, effective and saved form.
///
/// Credentials belong to a thread on Linux, and threads inherit them: call this while there is only one.
///
/// # Errors
/// When the kernel refuses, or when root could be had back afterwards. The caller must then stop.
pub fn become_account(account: Account) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    if !uid.is_root() && set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).is_ok() {
        return Err(io::Error::other("root could be had back after giving it up"));
    }
    Ok(())
}

/// Gives up every capability but the three that changing eBPF links and cutting connections take.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn keep_only_capabilities_for_bpf() -> io::Result<()> {
    let kept = CapabilitySet::NET_ADMIN | CapabilitySet::PERFMON | CapabilitySet::BPF;
    let held = capabilities(None)?;
    let kept = if held.effective.contains(kept) { kept } else { held.effective };
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })?;
    Ok(())
}

/// Raises the limit of open files to all that this process may have, and returns it.
pub fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = setrlimit(Resource::Nofile, all);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_by_their_whole_name() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nportcullis2:x:9:9::/:/\nportcullis:x:998:997::/nonexistent:/x\nodd:x:a:b\n";
        assert_eq!(account(passwd, "portcullis"), Some(Account { uid: 998, gid: 997 }));
        assert_eq!(account(passwd, "port"), None);
        assert_eq!(account(passwd, "odd"), None);
    }
}
