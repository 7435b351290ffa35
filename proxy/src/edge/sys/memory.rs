//! How the allocator keeps memory.

use std::alloc::{GlobalAlloc, Layout, System};

/// The page that one entry of a processor's address cache covers, where the kernel gives such a page (x86-64, arm64 with
/// pages of 4 KiB).
const HUGE_PAGE: usize = 2 << 20;

/// Allocations from this size on ask for huge pages. Only tables of many entries are as large, and of those all pages get used.
const LARGE: usize = 2 * HUGE_PAGE;

/// The system's allocator, and huge pages for what is large: a verdict among a million is met at random, and to find its
/// page costs more than to find it there.
#[derive(Debug)]
pub struct LargeOnHugePages;

/// Asks for huge pages within an allocation (madvise(2), `MADV_HUGEPAGE`). Where the kernel has none to give, or is told to
/// give none, nothing changes.
fn advise(start: *mut u8, size: usize) -> *mut u8 {
    if size >= LARGE && !start.is_null() {
        let lead = start.align_offset(HUGE_PAGE);
        let length = size.saturating_sub(lead) / HUGE_PAGE * HUGE_PAGE;
        // SAFETY: the range is within an allocation that its owner has not got yet, and the advice changes no byte of it.
        unsafe { libc::madvise(start.wrapping_add(lead).cast(), length, libc::MADV_HUGEPAGE) };
    }
    start
}

// SAFETY: every call is passed on as it is to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for LargeOnHugePages {
    /// # Safety
    /// As for the trait.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: what the caller promises is what the system's allocator asks for.
        advise(unsafe { System.alloc(layout) }, layout.size())
    }

    /// # Safety
    /// As for the trait.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        advise(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    /// # Safety
    /// As for the trait.
    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        advise(unsafe { System.realloc(start, layout, size) }, size)
    }

    /// # Safety
    /// As for the trait.
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }
}

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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Whether the mapping around an address is one that asked for huge pages ("hg" in proc_pid_smaps(5)).
    fn asked(address: usize) -> bool {
        let mut inside = false;
        for line in std::fs::read_to_string("/proc/self/smaps").expect("the mappings").lines() {
            let first = line.split(' ').next().unwrap_or_default();
            let ends = first.split_once('-').map(|ends| [ends.0, ends.1].map(|end| usize::from_str_radix(end, 16)));
            if let Some([Ok(start), Ok(end)]) = ends {
                inside = (start..end).contains(&address);
            } else if inside && first == "VmFlags:" {
                return line.split(' ').any(|flag| flag == "hg");
            }
        }
        false
    }

    #[test]
    fn what_is_large_asks_for_huge_pages_and_stays_what_it_is() {
        let has_any = Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        let layout = |size| Layout::from_size_align(size, 64).expect("a layout");
        // SAFETY: each piece is given back once, with the layout that it has; what is read was written.
        unsafe {
            let small = LargeOnHugePages.alloc(layout(1 << 20));
            assert!(!small.is_null() && !asked(small as usize + (1 << 19)));
            let piece = LargeOnHugePages.realloc(small, layout(1 << 20), 16 << 20);
            assert!(!piece.is_null() && asked(piece as usize + (8 << 20)) == has_any);
            for at in (0..16 << 20).step_by(4096) {
                piece.add(at).write((at >> 12) as u8);
            }
            let larger = LargeOnHugePages.realloc(piece, layout(16 << 20), 64 << 20);
            assert!(!larger.is_null() && asked(larger as usize + (40 << 20)) == has_any);
            assert!((0..16 << 20).step_by(4096).all(|at| larger.add(at).read() == (at >> 12) as u8));
            LargeOnHugePages.dealloc(larger, layout(64 << 20));
            let zeroed = LargeOnHugePages.alloc_zeroed(layout(8 << 20));
            assert!(!zeroed.is_null() && asked(zeroed as usize + (4 << 20)) == has_any);
            assert!((0..8 << 20).step_by(4096).all(|at| zeroed.add(at).read() == 0));
            LargeOnHugePages.dealloc(zeroed, layout(8 << 20));
        }
    }
}
