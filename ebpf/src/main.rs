//! The guard's eBPF programs; on the host only a stub, so that the workspace builds everywhere.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[allow(unsafe_code)]
// The macros and maps of aya-ebpf make items that the outside world knows by section and symbol only.
#[allow(unreachable_pub)]
mod programs {
    use core::ptr::{addr_of, read_volatile};

    use aya_ebpf::{
        bindings::{bpf_sock_addr, xdp_action},
        btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, SkStorage, lpm_trie::Key},
        helpers::generated::bpf_get_netns_cookie,
        macros::{btf_map, cgroup_sock_addr, xdp},
        programs::{SockAddrContext, XdpContext},
    };
    use portcullis_ebpf::{
        Address, Counter, Header, Mode, capacity,
        decide::{self, Outcome, Packet, Tables},
    };

    const COUNTERS_LEN: usize = Counter::ALL.len();
    const IPPROTO_TCP: u32 = 6;
    const IPPROTO_MPTCP: u32 = 262;
    const ALLOW: i32 = 1;
    const REFUSE: i32 = 0;

    #[btf_map]
    static POLICY: Array<[u8; Header::LEN], 1> = Array::new();
    #[btf_map]
    static PORTS: HashMap<[u8; 2], u8, { capacity::PORTS }> = HashMap::new();
    #[btf_map]
    static TARGETS: HashMap<[u8; Address::LEN + 2], u8, { capacity::TARGETS }> = HashMap::new();
    #[btf_map]
    static LOCAL: LpmTrie<[u8; Address::LEN], u8, { capacity::LOCAL }> = LpmTrie::new();
    #[btf_map]
    static ALLOWED: LpmTrie<[u8; Address::LEN], u8, { capacity::ALLOWED }> = LpmTrie::new();
    #[btf_map]
    static COUNTERS: PerCpuArray<u64, COUNTERS_LEN> = PerCpuArray::new();
    #[btf_map]
    static VOUCHED: SkStorage<u32> = SkStorage::new();

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    struct Maps;

    impl Tables for Maps {
        #[inline(always)]
        fn port(&self, port: &[u8; 2]) -> u8 {
            // SAFETY: the value is a single byte that nobody changes while a policy is in force.
            unsafe { PORTS.get(port) }.map_or(0, |flags| *flags)
        }

        #[inline(always)]
        fn local(&self, address: &Address) -> u8 {
            LOCAL.get(&Key::new(Address::ALL_BITS, address.0)).map_or(0, |kind| *kind)
        }

        #[inline(always)]
        fn target(&self, key: &[u8; Address::LEN + 2]) -> u8 {
            // SAFETY: as for `port`.
            unsafe { TARGETS.get(key) }.map_or(0, |kind| *kind)
        }

        #[inline(always)]
        fn allowed(&self, source: &Address) -> bool {
            ALLOWED.get(&Key::new(Address::ALL_BITS, source.0)).is_some()
        }
    }

    struct Frame {
        start: usize,
        end: usize,
    }

    impl Packet for Frame {
        #[inline(always)]
        fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            let from = self.start + offset;
            if from + N > self.end {
                return None;
            }
            // SAFETY: [from, from + N) was just found to lie before the end of the frame; an array of bytes has no
            // alignment.
            Some(unsafe { *(from as *const [u8; N]) })
        }
    }

    #[inline(always)]
    fn header() -> Header {
        match POLICY.get(0) {
            Some(bytes) => Header::from_bytes(bytes),
            None => Header::from_bytes(&[0xff; Header::LEN]),
        }
    }

    #[inline(always)]
    fn count(counter: Counter) {
        if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
            // SAFETY: the slot belongs to this CPU, and programs of this CPU do not run at once.
            unsafe { *value += 1 };
        }
    }

    /// Drops frames to protected ports that do not come from an allowed source.
    #[xdp]
    pub fn guard_xdp(ctx: XdpContext) -> u32 {
        let frame = Frame { start: ctx.data(), end: ctx.data_end() };
        match decide::packet(&frame, &Maps) {
            Outcome::Untouched => xdp_action::XDP_PASS,
            Outcome::Admitted => {
                count(Counter::Admitted);
                xdp_action::XDP_PASS
            }
            Outcome::Dropped(why) => {
                count(why);
                match header().mode {
                    Mode::Enforce => xdp_action::XDP_DROP,
                    Mode::Audit => xdp_action::XDP_PASS,
                }
            }
        }
    }

    /// Refuses connect(2) to a protected IPv4 address from a socket that nobody vouched for.
    #[cgroup_sock_addr(connect4)]
    pub fn guard_connect4(ctx: SockAddrContext) -> i32 {
        // SAFETY: the kernel hands every program a valid context.
        let octets = unsafe { read_volatile(addr_of!((*ctx.sock_addr).user_ip4)) }.to_ne_bytes();
        connect(&ctx, &Address::v4(octets))
    }

    /// The same for IPv6 sockets, whose destination may be an IPv4 address in disguise.
    #[cgroup_sock_addr(connect6)]
    pub fn guard_connect6(ctx: SockAddrContext) -> i32 {
        connect(&ctx, &Address::socket_v6(destination_v6(ctx.sock_addr)))
    }

    /// Reads word by word: the verifier does not take every wider access into this context.
    #[inline(always)]
    fn destination_v6(ctx: *mut bpf_sock_addr) -> [u8; 16] {
        let mut octets = [0; 16];
        let mut index = 0;
        while index < 4 {
            // SAFETY: the kernel hands every program a valid context, and `index` stays inside the array.
            let word = unsafe { read_volatile(addr_of!((*ctx).user_ip6[index])) }.to_ne_bytes();
            octets[4 * index..4 * index + 4].copy_from_slice(&word);
            index += 1;
        }
        octets
    }

    #[inline(always)]
    fn connect(ctx: &SockAddrContext, destination: &Address) -> i32 {
        // SAFETY: the kernel hands every program a valid context.
        let (protocol, port) = unsafe {
            (read_volatile(addr_of!((*ctx.sock_addr).protocol)), read_volatile(addr_of!((*ctx.sock_addr).user_port)))
        };
        if protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP {
            return ALLOW;
        }
        let policy = header();
        // SAFETY: the helper takes the context of this very program.
        let inside = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) } == policy.netns;
        // The port stands in the first two bytes, in network order.
        if !decide::protects(&Maps, destination, (port as u16).to_ne_bytes(), inside) {
            return ALLOW;
        }
        // SAFETY: the context's socket lives for as long as its connect(2).
        if !unsafe { VOUCHED.get_ptr_mut(ctx) }.is_null() {
            count(Counter::Vouched);
            return ALLOW;
        }
        count(Counter::Unvouched);
        match policy.mode {
            Mode::Enforce => REFUSE,
            Mode::Audit => ALLOW,
        }
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}
