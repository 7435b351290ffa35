//! What a decision costs as rules grow: `cargo bench -p portcullis --bench rules`.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use portcullis::auth::Principal;
use portcullis::policy::{Policy, RuleText};
use portcullis::registry::access::{Access, Action};
use portcullis::registry::name::RepositoryName;

/// One team for each rule, which pulls and pushes below its own name; the last is ours.
fn policy(rules: usize) -> Policy {
    let text = |number: usize| RuleText {
        who: vec![format!("user-{number}"), "@ci".to_owned()],
        repositories: vec![format!("team-{number}/**")],
        actions: vec!["pull".to_owned(), "push".to_owned()],
    };
    let texts: Vec<RuleText> = (0..rules).map(text).collect();
    let groups = BTreeMap::from([("ci".to_owned(), vec!["builder-1".to_owned()])]);
    Policy::new(&texts, &groups).unwrap_or_else(|errors| unreachable!("{errors:?}"))
}

fn decide(c: &mut Criterion) {
    let mut group = c.benchmark_group("decide");
    group.throughput(Throughput::Elements(1));
    for rules in [10, 1_000, 10_000] {
        let policy = policy(rules);
        let name = RepositoryName::parse(&format!("team-{}/backend/api", rules - 1));
        let access = Access::on(&name.unwrap_or_else(|| unreachable!("a valid name")), Action::Pull);
        let [own, group_member, stranger] =
            [format!("user-{}", rules - 1), "builder-1".to_owned(), "nobody".to_owned()].map(Principal::user);
        assert!(policy.decide(&own, &access).is_allowed() && !policy.decide(&stranger, &access).is_allowed());
        for (who, principal) in [("by the last rule", &own), ("by a group", &group_member), ("denied", &stranger)] {
            group.bench_with_input(BenchmarkId::new(who, rules), &access, |b, access| {
                b.iter(|| policy.decide(black_box(principal), black_box(access)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
