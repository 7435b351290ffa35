//! The system calls that a running gate never makes, refused by the kernel for as long as the process lives (seccomp).
//!
//! A list of what is refused, not of what is allowed: which calls a C library or a resolver's module makes changes from
//! year to year, and a gate that stops for that protects nobody. What takes over a machine, or this process's secrets,
//! does not change. The systemd unit puts systemd's own list of allowed calls on top. Operations of io_uring are no
//! system calls and pass by any such list; none of them does what is refused here, but opening, renaming and removing
//! files, where Landlock is in the way.

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// What takes no argument into account. Other programs and their memory; other users; the machine; namespaces and mounts;
/// names of files.
const NEVER: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_personality,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_fanotify_init,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_mknodat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_truncate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_renameat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
];

/// Commands of bpf(2) that are left: reading the guard's counters, and vouching for a socket.
const BPF_LEFT: [u64; 3] = [1, 2, 4];

/// Kinds of sockets that are left.
const FAMILIES_LEFT: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Refuses these calls to the calling thread and to all that it will start.
///
/// # Errors
/// When the kernel has no such filters.
pub fn forbid() -> io::Result<()> {
    let threads = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    // Its flags are in memory, where a filter cannot look: without it the C library takes clone(2), whose flags it can.
    apply(threads, libc::ENOSYS)?;
    apply(refused().map_err(io::Error::other)?, libc::EPERM)
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn refused() -> Result<Rules, seccompiler::BackendError> {
    use SeccompCmpOp::{MaskedEq, Ne};
    let mut rules: Rules = NEVER.iter().map(|call| (*call, Vec::new())).collect();
    // All of the conditions of a rule hold, or it does not.
    let mut refuse = |call, conditions: &[(u8, SeccompCmpOp, u64)]| {
        let conditions = conditions.iter().map(|(argument, operator, value)| {
            SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator.clone(), *value)
        });
        rules.insert(call, vec![SeccompRule::new(conditions.collect::<Result<_, _>>()?)?]);
        Ok(())
    };
    refuse(libc::SYS_bpf, &BPF_LEFT.map(|command| (0, Ne, command)))?;
    refuse(libc::SYS_socket, &FAMILIES_LEFT.map(|family| (0, Ne, u64::from(family.unsigned_abs()))))?;
    // A thread, and no process of its own.
    refuse(libc::SYS_clone, &[(0, MaskedEq(bits(libc::CLONE_THREAD)), 0)])?;
    // Memory is never both written and executed. Code comes from files: modules of the resolver.
    let (write, execute) = (bits(libc::PROT_WRITE), bits(libc::PROT_EXEC));
    refuse(libc::SYS_mmap, &[(2, MaskedEq(write | execute), write | execute)])?;
    refuse(libc::SYS_mprotect, &[(2, MaskedEq(execute), execute)])?;
    refuse(libc::SYS_pkey_mprotect, &[(2, MaskedEq(execute), execute)])?;
    Ok(rules)
}

fn bits(flags: i32) -> u64 {
    u64::from(flags.cast_unsigned())
}

fn apply(rules: Rules, errno: i32) -> io::Result<()> {
    let compile = || {
        let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
        let action = SeccompAction::Errno(errno.unsigned_abs());
        BpfProgram::try_from(SeccompFilter::new(rules, SeccompAction::Allow, action, architecture)?)
    };
    let mut program = compile().map_err(io::Error::other)?;
    if cfg!(target_arch = "x86_64") {
        program.splice(0..0, without_x32());
    }
    seccompiler::apply_filter(&program).map_err(|error| match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        error => io::Error::other(error),
    })
}

/// The other numbers that x86-64 kernels may have for the same calls are all refused: load the number; from `X32` on, no.
fn without_x32() -> [sock_filter; 3] {
    const X32: u32 = 0x4000_0000;
    let step = |code, jf, k| sock_filter { code, jt: 0, jf, k };
    let (load, at_least, give) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    let code = |code: u32| u16::try_from(code).unwrap_or(u16::MAX);
    let no = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    [step(code(load), 0, 0), step(code(at_least), 1, X32), step(code(give), 0, no)]
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use super::*;

    /// What a call with only zeros for arguments, but these, says on a thread of its own with the filter on.
    fn errno(call: c_long, arguments: [u64; 4]) -> i32 {
        let [a, b, c, d] = arguments;
        // SAFETY: each call here is refused before it looks at its arguments, or fails on a null pointer or bad descriptor.
        let done = unsafe { libc::syscall(call, a, b, c, d, 0, 0) };
        if done < 0 { io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
    }

    fn inside<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
        let confined = thread::spawn(|| {
            forbid().unwrap();
            what()
        });
        confined.join().unwrap()
    }

    #[test]
    fn what_a_gate_never_does_is_refused() {
        let refused = inside(|| NEVER.iter().filter(|call| errno(**call, [0; 4]) != libc::EPERM).count());
        assert_eq!(refused, 0);
        inside(|| {
            const PROGRAM_LOAD: u64 = 5;
            const OBJECT_GET: u64 = 7;
            for command in [0, PROGRAM_LOAD, OBJECT_GET, 28, 29] {
                assert_eq!(errno(libc::SYS_bpf, [command, 0, 0, 0]), libc::EPERM, "bpf {command}");
            }
            assert_ne!(errno(libc::SYS_bpf, [1, 0, 0, 0]), libc::EPERM, "looking up in a map is left");
            for family in [libc::AF_PACKET, libc::AF_ALG, libc::AF_VSOCK, libc::AF_KEY] {
                assert_eq!(errno(libc::SYS_socket, [bits(family), 1, 0, 0]), libc::EPERM, "socket {family}");
            }
            assert_eq!(errno(libc::SYS_clone, [bits(libc::SIGCHLD), 0, 0, 0]), libc::EPERM);
            assert_eq!(errno(libc::SYS_clone3, [0; 4]), libc::ENOSYS);
            let both = bits(libc::PROT_WRITE | libc::PROT_EXEC);
            assert_eq!(errno(libc::SYS_mmap, [0, 4096, both, bits(libc::MAP_PRIVATE | libc::MAP_ANON)]), libc::EPERM);
            assert_eq!(errno(libc::SYS_mprotect, [0, 0, bits(libc::PROT_EXEC), 0]), libc::EPERM);
            if cfg!(target_arch = "x86_64") {
                assert_eq!(errno(0x4000_0000 + 520, [0; 4]), libc::ENOSYS, "execve by its other number");
            }
        });
    }

    #[test]
    fn no_program_is_started_and_threads_and_sockets_are() {
        let started = inside(|| Command::new("/bin/true").status());
        assert_eq!(started.unwrap_err().raw_os_error(), Some(libc::EPERM));
        inside(|| {
            thread::spawn(|| {
                assert!(std::net::TcpListener::bind("127.0.0.1:0").is_ok());
                assert_eq!(errno(libc::SYS_unshare, [bits(libc::CLONE_NEWNET), 0, 0, 0]), libc::EPERM, "inherited");
            })
            .join()
            .unwrap();
            assert!(std::fs::read("/proc/self/status").is_ok());
        });
    }
}
