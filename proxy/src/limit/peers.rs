//! How many connections each peer has open: nobody alone may use up the places of all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::throttle::Source;

const SHARDS: usize = 16;

/// Open connections by source: an IPv4 address, or an IPv6 /64, of which one subscriber has all addresses to himself.
/// Loopback is a peer like any other. Shared by all workers; as large as the number of open connections at the most.
#[derive(Debug)]
pub struct Peers {
    /// 0: any number.
    most: AtomicUsize,
    shards: [Mutex<HashMap<Source, usize>>; SHARDS],
}

/// One of a peer's places, free again when this is dropped.
#[derive(Debug)]
pub struct Place<'p> {
    peers: &'p Peers,
    source: Option<Source>,
}

impl Peers {
    /// At most `most` connections for each peer; 0: any number.
    pub fn new(most: usize) -> Self {
        Self { most: AtomicUsize::new(most), shards: Default::default() }
    }

    /// Changes the limit; who has more than that keeps it. Places taken while there was no limit are not counted.
    pub fn set_most(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// A place for a new connection, if the peer has one left.
    pub fn enter(&self, peer: IpAddr) -> Option<Place<'_>> {
        let most = self.most.load(Ordering::Relaxed);
        if most == 0 {
            return Some(Place { peers: self, source: None });
        }
        let source = Source::from(peer);
        let mut shard = self.shard(source).lock().unwrap_or_else(PoisonError::into_inner);
        let open = shard.entry(source).or_default();
        if *open >= most {
            return None;
        }
        *open += 1;
        Some(Place { peers: self, source: Some(source) })
    }

    fn shard(&self, source: Source) -> &Mutex<HashMap<Source, usize>> {
        let mixed = source.bytes().iter().fold(0_usize, |sum, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        &self.shards[mixed % SHARDS]
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(source) = self.source else { return };
        let mut shard = self.peers.shard(source).lock().unwrap_or_else(PoisonError::into_inner);
        match shard.get_mut(&source) {
            Some(open) if *open > 1 => *open -= 1,
            _ => drop(shard.remove(&source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_its_places_and_leaves_nothing_behind() {
        let peers = Peers::new(2);
        let peer = |text: &str| peers.enter(text.parse().expect(text));
        let first = (peer("192.0.2.1"), peer("::ffff:192.0.2.1"));
        assert!(first.0.is_some() && first.1.is_some() && peer("192.0.2.1").is_none());
        assert!(peer("192.0.2.2").is_some(), "another address");
        let network = (peer("2001:db8::1"), peer("2001:db8::2"));
        assert!(peer("2001:db8::ffff:0:3").is_none() && peer("2001:db8:0:1::1").is_some(), "a /64 is one peer");
        drop(first.0);
        assert!(peer("192.0.2.1").is_some());
        drop((first.1, network));
        assert!(peers.shards.iter().all(|shard| shard.lock().expect("a shard").is_empty()));
    }

    #[test]
    fn without_a_limit_nothing_is_counted() {
        let peers = Peers::new(0);
        let many: Vec<_> = (0..1000).map(|_| peers.enter([127, 0, 0, 1].into()).expect("a place")).collect();
        assert!(peers.shards.iter().all(|shard| shard.lock().expect("a shard").is_empty()));
        drop(many);
    }
}
