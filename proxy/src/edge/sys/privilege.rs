//! Becoming an ordinary user once everything that needs root is open.

use std::io;

use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Uid, geteuid, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
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

/// Becomes `account` for good: supplementary groups, group, user, in real, effective and saved form. No program that it
/// would start, were it to start any, could have a capability either.
///
/// Credentials belong to a thread on Linux, and threads inherit them: call this while there is only one.
///
/// # Errors
/// When the kernel refuses, or when root could be had back afterwards. The caller must then stop.
pub fn become_account(account: Account) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    drop_bounding_set();
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    if !uid.is_root() && set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).is_ok() {
        return Err(io::Error::other("root could be had back after giving it up"));
    }
    Ok(())
}

/// Gives up every capability, in every set. Of the calling thread and those that it will start.
///
/// # Errors
/// When the kernel refuses.
pub fn drop_capabilities() -> io::Result<()> {
    drop_bounding_set();
    // Not there before Linux 4.3.
    let _ = clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(())
}

/// Empties the set of what could be had by starting programs. That takes a capability of its own: who does not have it
/// starts no program that could have one, for that is given up too.
fn drop_bounding_set() {
    const MORE_THAN_THERE_ARE: libc::c_ulong = 64;
    for capability in 0..MORE_THAN_THERE_ARE {
        // SAFETY: the call takes numbers and touches no memory of this process.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            return;
        }
    }
}

/// Keeps this process's memory, passwords and keys in it, from other processes of its user and out of core dumps. Changing
/// the user undoes it.
///
/// # Errors
/// When the kernel refuses.
pub fn hide_memory() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
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

/// Raises the limit of open files to all that this process may have.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = setrlimit(Resource::Nofile, all);
}

/// How many files this process may have open.
pub fn file_limit() -> u64 {
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
