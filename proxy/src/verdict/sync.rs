//! What the flights are built on: a lock, a shared pointer and a map by key. Under `--cfg loom` the tests get loom's lock
//! and pointer and a map that loom can follow, so that it explores the flights' own steps in every order.

#[cfg(all(test, loom))]
pub(super) use loom::sync::{Arc, Mutex, MutexGuard};
#[cfg(not(all(test, loom)))]
pub(super) use std::sync::{Arc, Mutex, MutexGuard};

use super::key::Key;

#[cfg(all(test, loom))]
type Map<V> = Mutex<std::collections::BTreeMap<Key, V>>;
#[cfg(not(all(test, loom)))]
type Map<V> = dashmap::DashMap<Key, V>;

/// A map whose two operations each hold the key's lock from beginning to end.
#[derive(Debug)]
pub(super) struct Board<V>(Map<V>);

impl<V> Default for Board<V> {
    fn default() -> Self {
        Self(Map::default())
    }
}

#[cfg(not(all(test, loom)))]
impl<V: Clone> Board<V> {
    /// What is under `key`, after `met` has seen it; or nothing, and then `new` is there.
    pub(super) fn meet(&self, key: Key, new: &V, met: impl FnOnce(&V)) -> Option<V> {
        match self.0.entry(key) {
            dashmap::Entry::Occupied(entry) => {
                met(entry.get());
                Some(entry.get().clone())
            }
            dashmap::Entry::Vacant(entry) => {
                entry.insert(new.clone());
                None
            }
        }
    }

    /// Takes away what is under `key`, if `wanted` says so.
    pub(super) fn remove_if(&self, key: &Key, wanted: impl FnOnce(&V) -> bool) {
        self.0.remove_if(key, |_, value| wanted(value));
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(all(test, loom))]
impl<V: Clone> Board<V> {
    pub(super) fn meet(&self, key: Key, new: &V, met: impl FnOnce(&V)) -> Option<V> {
        let mut map = self.0.lock().unwrap();
        if let Some(value) = map.get(&key) {
            met(value);
            return Some(value.clone());
        }
        map.insert(key, new.clone());
        None
    }

    pub(super) fn remove_if(&self, key: &Key, wanted: impl FnOnce(&V) -> bool) {
        let mut map = self.0.lock().unwrap();
        if map.get(key).is_some_and(wanted) {
            map.remove(key);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}
