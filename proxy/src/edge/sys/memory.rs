//! How the allocator keeps memory.

/// Lets the allocator keep a few megabytes between two pieces of a body. A piece that is encrypted takes a quarter of a
/// megabyte in records and gives it back once they are sent; handed to the kernel each time, it comes back as page faults,
/// which cost a tenth of an encrypted download.
pub fn keep_working_memory() {
    #[cfg(target_env = "gnu")]
    {
        const KEPT: libc::c_int = 4 << 20;
        const MAPPED: libc::c_int = 1 << 20;
        // SAFETY: mallopt(3) takes numbers and touches the allocator's own settings only.
        unsafe {
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
            libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
        }
    }
}
