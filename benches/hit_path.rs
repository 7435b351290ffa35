//! What a request with a remembered verdict costs before it is forwarded: `cargo bench -p portcullis --bench hit_path`.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use portcullis::auth::{Principal, credentials};
use portcullis::policy::Policy;
use portcullis::registry::access::{Access, Action};
use portcullis::registry::name::RepositoryName;
use portcullis::verdict::cache::{Cache, Terms};
use portcullis::verdict::epoch::Epochs;
use portcullis::verdict::key::{BootKey, Key, Question, Scope};
use portcullis::verdict::{Answer, decide};

/// `builder-1:correct horse battery staple`
const AUTHORIZATION: &[u8] = b"Basic YnVpbGRlci0xOmNvcnJlY3QgaG9yc2UgYmF0dGVyeSBzdGFwbGU=";

struct World {
    boot: BootKey,
    epochs: Epochs,
    cache: Cache,
    policy: Policy,
    accesses: Vec<Access>,
}

impl World {
    fn new() -> Self {
        let name = RepositoryName::parse("team-a/backend/api").unwrap_or_else(|| unreachable!("a valid name"));
        let world = Self {
            boot: BootKey::new(&[7; 32]),
            epochs: Epochs::default(),
            cache: Cache::new(100_000),
            policy: Policy::default(),
            accesses: vec![Access::on(&name, Action::Pull)],
        };
        let terms = Terms { allow: Duration::from_secs(3600), ..Terms::default() };
        let known = Answer::Known(Principal::user("builder-1").into());
        world.cache.learn(world.key(), &known, None, &terms, 0);
        world
    }

    fn key(&self) -> Key {
        let authorization = Some(black_box(AUTHORIZATION));
        self.boot.key(&Question {
            epoch: self.epochs.of(|| Some("builder-1")),
            site: 0,
            secure: true,
            authorization,
            certificate: None,
            scope: Scope::Accesses(&self.accesses),
        })
    }

    /// From the Authorization field to the permit, as the gate goes.
    fn whole(&self) -> bool {
        let key = self.key();
        self.cache.get(&key, 1).is_some_and(|answer| decide(&answer, &self.policy, &self.accesses).is_ok())
    }
}

/// Runs `bench` while another thread does the same as hard as it can.
fn beside(act: impl Fn() + Send + 'static, bench: impl FnOnce()) {
    let ended = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&ended);
    let other = thread::spawn(move || {
        while !end.load(Ordering::Relaxed) {
            act();
        }
    });
    bench();
    ended.store(true, Ordering::Relaxed);
    drop(other.join());
}

fn hit_path(c: &mut Criterion) {
    let world = Arc::new(World::new());
    assert!(world.whole(), "the verdict is not in the cache");
    let key = world.key();
    let mut group = c.benchmark_group("hit path");
    group.throughput(Throughput::Elements(1));
    group.bench_function("parse credentials", |b| b.iter(|| credentials::parse(black_box(AUTHORIZATION))));
    group.bench_function("key", |b| b.iter(|| world.key()));
    group.bench_function("cache hit", |b| b.iter(|| world.cache.get(black_box(&key), 1)));
    group.bench_function("whole", |b| b.iter(|| world.whole()));
    let other = Arc::clone(&world);
    beside(
        move || drop(black_box(other.cache.get(&key, 1))),
        || {
            group.bench_function("cache hit, two threads on one key", |b| {
                b.iter(|| world.cache.get(black_box(&key), 1));
            });
        },
    );
    let other = Arc::clone(&world);
    beside(
        move || {
            black_box(other.whole());
        },
        || {
            group.bench_function("whole, two threads on one key", |b| b.iter(|| world.whole()));
        },
    );
    group.finish();
}

criterion_group!(benches, hit_path);
criterion_main!(benches);
