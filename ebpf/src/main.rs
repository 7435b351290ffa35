//! The guard's eBPF programs; on the host only a stub, so that the workspace builds everywhere.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[allow(unsafe_code)]
// The macros and maps of aya-ebpf make items that the outside world knows by section and symbol only.
#[allow(unreachable_pub)]
mod programs {
    use core::ptr::{addr_of, null_mut, read_volatile};

    use aya_ebpf::{
        bindings::{
            __sk_buff, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
            xdp_action,
        },
        btf_maps::{
            Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, SkStorage, lpm_trie::Key,
        },
        helpers::{
            bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
            generated::{bpf_get_netns_cookie, bpf_ktime_get_boot_ns, bpf_ktime_get_coarse_ns, bpf_sk_storage_get},
        },
        macros::{btf_map, cgroup_skb, cgroup_sock_addr, sock_ops, xdp},
        programs::{SkBuffContext, SockAddrContext, SockOpsContext, XdpContext},
    };
    use portcullis_ebpf::{
        Address, EVENTS_A_SECOND, Event, FLOW_LEN, Header, Reason, Ring, Tally, Verdict, capacity,
        decide::{self, Ends, Outcome, Packet, Tables},
        flow, flow_key,
    };

    const AF_INET: u32 = 2;
    const LOOPBACK: u32 = 1;
    const SECOND: u64 = 1_000_000_000;
    const IPPROTO_TCP: u32 = 6;
    const IPPROTO_MPTCP: u32 = 262;
    const ALLOW: i32 = 1;
    const REFUSE: i32 = 0;
    const RINGS: usize = Ring::ALL.len();

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
    static COUNTERS: PerCpuHashMap<[u8; Tally::LEN], u64, { capacity::COUNTERS }> = PerCpuHashMap::new();
    #[btf_map]
    static EVENTS: RingBuf<[u8; Event::LEN], { capacity::EVENTS }> = RingBuf::new();
    #[btf_map]
    static RATES: PerCpuArray<Rate, RINGS> = PerCpuArray::new();
    #[btf_map]
    static FLOWS: LruHashMap<[u8; FLOW_LEN], u8, { capacity::FLOWS }> = LruHashMap::new();
    #[btf_map]
    static VOUCHED: SkStorage<u32> = SkStorage::new();

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    /// What one ring has told on one processor.
    struct Rate {
        /// When this second began.
        since: u64,
        told: u64,
        suppressed: u64,
    }

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

        #[inline(always)]
        fn flow(&self, key: &[u8; FLOW_LEN]) -> u8 {
            // SAFETY: the value is a single byte; whichever of two states it is read in, it was true just now.
            unsafe { FLOWS.get(key) }.map_or(0, |state| *state)
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
    fn count(ring: Ring, reason: Reason, interface: u32) {
        let mut key = Tally { ring, reason, interface }.to_bytes();
        let mut slot = COUNTERS.get_ptr_mut(key);
        if slot.is_none() {
            // Another processor may be first, and the map may be full: interface 0 is always there.
            if COUNTERS.insert(key, 0, 0).is_err() {
                key = Tally { ring, reason, interface: 0 }.to_bytes();
            }
            slot = COUNTERS.get_ptr_mut(key);
        }
        if let Some(value) = slot {
            // SAFETY: the slot belongs to this CPU, and programs of this CPU do not run at once.
            unsafe { *value += 1 };
        }
    }

    /// Counts and tells a refusal; whether it is to be carried out.
    #[inline(always)]
    fn refused(ring: Ring, reason: Reason, interface: u32, ends: &Ends, policy: &Header) -> bool {
        count(ring, reason, interface);
        // SAFETY: the helper takes nothing and reads a clock.
        let acts = policy.refuses(|| unsafe { bpf_ktime_get_boot_ns() });
        let Some(suppressed) = may_tell(ring) else {
            return acts;
        };
        let Some(mut entry) = EVENTS.reserve(0) else {
            return acts;
        };
        let mut event = Event {
            // SAFETY: the helper has no preconditions.
            time: unsafe { bpf_ktime_get_boot_ns() },
            ring,
            reason,
            verdict: if acts { Verdict::Refused } else { Verdict::Audited },
            interface,
            source: ends.source,
            destination: ends.destination,
            source_port: u16::from_be_bytes(ends.source_port),
            port: u16::from_be_bytes(ends.port),
            pid: 0,
            uid: 0,
            command: [0; 16],
            suppressed,
        };
        if matches!(ring, Ring::Connect) {
            event.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
            event.uid = bpf_get_current_uid_gid() as u32;
            event.command = bpf_get_current_comm().unwrap_or_default();
        }
        entry.write(event.to_bytes());
        entry.submit(0);
        acts
    }

    /// Whether this ring may tell one more event in this second; if so, how many it has kept to itself before.
    #[inline(always)]
    fn may_tell(ring: Ring) -> Option<u64> {
        let rate = RATES.get_ptr_mut(ring as u32)?;
        // SAFETY: the helper has no preconditions; the slot belongs to this CPU.
        unsafe {
            let now = bpf_ktime_get_coarse_ns();
            if now - (*rate).since >= SECOND {
                (*rate).since = now;
                (*rate).told = 0;
            }
            if (*rate).told >= EVENTS_A_SECOND {
                (*rate).suppressed += 1;
                return None;
            }
            (*rate).told += 1;
            let suppressed = (*rate).suppressed;
            (*rate).suppressed = 0;
            Some(suppressed)
        }
    }

    /// Drops frames to protected ports that do not come from an allowed source.
    #[xdp]
    pub fn guard_xdp(ctx: XdpContext) -> u32 {
        let frame = Frame { start: ctx.data(), end: ctx.data_end() };
        match decide::packet(&frame, &Maps) {
            Outcome::Untouched => xdp_action::XDP_PASS,
            Outcome::Passed(why) => {
                count(Ring::Xdp, why, ctx.ingress_ifindex() as u32);
                xdp_action::XDP_PASS
            }
            Outcome::Refused(why, ends) => {
                if refused(Ring::Xdp, why, ctx.ingress_ifindex() as u32, &ends, &header()) {
                    xdp_action::XDP_DROP
                } else {
                    xdp_action::XDP_PASS
                }
            }
        }
    }

    /// Drops segments to protected ports before their socket sees them, whatever way they came.
    #[cgroup_skb(ingress)]
    pub fn guard_ingress(ctx: SkBuffContext) -> i32 {
        let skb: *const __sk_buff = ctx.skb.skb;
        // SAFETY: the kernel hands every program a valid context.
        let interface = unsafe { (*skb).ifindex };
        if interface == LOOPBACK {
            return ALLOW;
        }
        let policy = header();
        // SAFETY: as above. These two are not numbers to the verifier: they must go to the registers as they are.
        let packet = unsafe { Frame { start: (*skb).data as usize, end: (*skb).data_end as usize } };
        match decide::delivered(&packet, &Maps, policy.connect_ring) {
            Outcome::Untouched => ALLOW,
            Outcome::Passed(why) => {
                count(Ring::Ingress, why, interface);
                ALLOW
            }
            Outcome::Refused(why, ends) => {
                if refused(Ring::Ingress, why, interface, &ends, &policy) {
                    REFUSE
                } else {
                    ALLOW
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
        // SAFETY: the kernel hands every program a valid context.
        let octets = unsafe { octets(addr_of!((*ctx.sock_addr).user_ip6)) };
        connect(&ctx, &Address::socket_v6(octets))
    }

    /// Reads an address of a context word by word: the verifier does not take every wider access.
    ///
    /// # Safety
    /// `words` must lie in the context of the running program.
    #[inline(always)]
    unsafe fn octets(words: *const [u32; 4]) -> [u8; 16] {
        let mut octets = [0; 16];
        let mut index = 0;
        while index < 4 {
            // SAFETY: `index` stays inside the array, which the caller vouches for.
            let word = unsafe { read_volatile(words.cast::<u32>().add(index)) }.to_ne_bytes();
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
            count(Ring::Connect, Reason::Vouched, 0);
            return ALLOW;
        }
        let ends = Ends { destination: *destination, port: (port as u16).to_ne_bytes(), ..Ends::UNKNOWN };
        if refused(Ring::Connect, Reason::Unvouched, 0, &ends, &policy) { REFUSE } else { ALLOW }
    }

    /// Writes down the connections of vouched sockets while they live, so that the ingress ring knows their segments
    /// in another network namespace of this host.
    #[sock_ops]
    pub fn guard_flows(ctx: SockOpsContext) -> u32 {
        const NEXT: u32 = 1;
        match ctx.op() {
            BPF_SOCK_OPS_TCP_CONNECT_CB if is_vouched(&ctx) => {
                if FLOWS.insert(flow_of(&ctx), flow::OPEN, 0).is_ok() {
                    ctx.set_cb_flags(ctx.cb_flags() as i32 | BPF_SOCK_OPS_STATE_CB_FLAG as i32).ok();
                }
            }
            BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => {
                if let Some(state) = FLOWS.get_ptr_mut(flow_of(&ctx)) {
                    // SAFETY: a single byte, which only the socket of this very connection changes.
                    unsafe { *state = flow::CLOSED };
                }
            }
            _ => {}
        }
        NEXT
    }

    #[inline(always)]
    fn is_vouched(ctx: &SockOpsContext) -> bool {
        // SAFETY: the kernel hands every program a valid context; the helper takes the socket that was checked, and
        // the map is one of sockets.
        unsafe {
            let socket = read_volatile(addr_of!((*ctx.ops).__bindgen_anon_2.sk));
            !socket.is_null()
                && !bpf_sk_storage_get(addr_of!(VOUCHED).cast_mut().cast(), socket.cast(), null_mut(), 0).is_null()
        }
    }

    #[inline(always)]
    fn flow_of(ctx: &SockOpsContext) -> [u8; FLOW_LEN] {
        let (source, destination) = if ctx.family() == AF_INET {
            (Address::v4(ctx.local_ip4().to_ne_bytes()), Address::v4(ctx.remote_ip4().to_ne_bytes()))
        } else {
            // SAFETY: the kernel hands every program a valid context.
            let (local, remote) =
                unsafe { (octets(addr_of!((*ctx.ops).local_ip6)), octets(addr_of!((*ctx.ops).remote_ip6))) };
            (Address::socket_v6(local), Address::socket_v6(remote))
        };
        // The context has the socket's own port in host order, and the other one in network order and shifted.
        let (source_port, port) = (ctx.local_port() as u16, (ctx.remote_port() >> 16) as u16);
        flow_key(&source, source_port.to_be_bytes(), &destination, port.to_ne_bytes())
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}
