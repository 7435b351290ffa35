//! All rules as one tree, so that a decision costs the depth of a name and not the number of rules.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::pattern::{Component, matches};
use super::rule::{Rule, Who};
use crate::auth::Principal;
use crate::registry::{Access, Action};

/// Rules by what they cover: a level of the tree for each component of a pattern, and at its end who is granted what. What
/// is walked for a name is the branches that cover it: literal ones by one look each, those with a `*` one after the other.
#[derive(Clone, Debug)]
pub(super) struct Index {
    nodes: Vec<Node>,
    /// What is asked for without a repository.
    registry: Grants,
    /// The groups of each user who is in one.
    groups: HashMap<Arc<str>, Vec<Arc<str>>>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    literal: HashMap<Box<str>, usize>,
    wild: HashMap<Box<str>, usize>,
    /// Behind `**`.
    any: Option<usize>,
    /// Whether this is behind `**`, and stays whatever components come.
    stays: bool,
    grants: Grants,
}

/// For each action, the first rule that grants it.
type Firsts = [Option<usize>; Action::ALL.len()];

#[derive(Clone, Debug, Default)]
struct Grants {
    everybody: Firsts,
    logged_in: Firsts,
    users: HashMap<Arc<str>, Firsts>,
    groups: HashMap<Arc<str>, Firsts>,
}

impl Index {
    pub(super) fn new(rules: &[Rule], groups: &BTreeMap<String, Vec<String>>) -> Self {
        let mut index = Self { nodes: vec![Node::default()], registry: Grants::default(), groups: members(groups) };
        for (number, rule) in rules.iter().enumerate() {
            index.registry.add(rule, number);
            for pattern in &rule.repositories {
                let end = pattern.components().iter().fold(0, |node, component| index.child(node, component));
                index.nodes[end].grants.add(rule, number);
            }
        }
        index
    }

    /// The first rule that grants an access, counted from 0.
    pub(super) fn first(&self, principal: &Principal, access: &Access) -> Option<usize> {
        let grants = |grants: &Grants| grants.first(principal, &self.groups, access.action);
        let Some(name) = &access.repository else { return grants(&self.registry) };
        let (mut here, mut next) = (Vec::with_capacity(8), Vec::with_capacity(8));
        self.enter(0, &mut here);
        for part in name.as_str().split('/') {
            next.clear();
            for &node in &here {
                self.step(node, part, &mut next);
            }
            std::mem::swap(&mut here, &mut next);
        }
        here.iter().filter_map(|&node| grants(&self.nodes[node].grants)).min()
    }

    fn step(&self, from: usize, part: &str, next: &mut Vec<usize>) {
        let node = &self.nodes[from];
        if node.stays {
            self.enter(from, next);
        }
        if let Some(&child) = node.literal.get(part) {
            self.enter(child, next);
        }
        for (text, &child) in &node.wild {
            if matches(text, part) {
                self.enter(child, next);
            }
        }
    }

    /// `**` may also be no component at all: whoever is before it is behind it, too. That is the only way to a node
    /// that is there already.
    fn enter(&self, node: usize, nodes: &mut Vec<usize>) {
        if self.nodes[node].stays && nodes.contains(&node) {
            return;
        }
        nodes.push(node);
        if let Some(any) = self.nodes[node].any {
            self.enter(any, nodes);
        }
    }

    fn child(&mut self, of: usize, component: &Component) -> usize {
        let new = self.nodes.len();
        let node = &mut self.nodes[of];
        let child = match component {
            Component::Any => *node.any.get_or_insert(new),
            Component::One(text) if text.contains('*') => *node.wild.entry(text.as_str().into()).or_insert(new),
            Component::One(text) => *node.literal.entry(text.as_str().into()).or_insert(new),
        };
        if child == new {
            self.nodes.push(Node { stays: *component == Component::Any, ..Node::default() });
        }
        child
    }
}

impl Grants {
    fn add(&mut self, rule: &Rule, number: usize) {
        let Who { everybody, logged_in, users, groups } = &rule.who;
        let all = everybody.then_some(&mut self.everybody).into_iter();
        let all = all.chain(logged_in.then_some(&mut self.logged_in));
        for firsts in all {
            add(firsts, rule, number);
        }
        for user in users {
            add(self.users.entry(user.clone()).or_default(), rule, number);
        }
        for group in groups {
            add(self.groups.entry(group.clone()).or_default(), rule, number);
        }
    }

    fn first(&self, principal: &Principal, groups: &HashMap<Arc<str>, Vec<Arc<str>>>, action: Action) -> Option<usize> {
        let of = |firsts: &Firsts| firsts[action as usize];
        let everybody = of(&self.everybody);
        let Principal::User(name) = principal else { return everybody };
        let user = self.users.get(name).and_then(of);
        let all = [everybody, of(&self.logged_in), user].into_iter().flatten();
        if self.groups.is_empty() {
            return all.min();
        }
        let own = groups.get(name).into_iter().flatten();
        all.chain(own.filter_map(|group| self.groups.get(group).and_then(of))).min()
    }
}

fn add(firsts: &mut Firsts, rule: &Rule, number: usize) {
    for &action in &rule.actions {
        firsts[action as usize].get_or_insert(number);
    }
}

fn members(groups: &BTreeMap<String, Vec<String>>) -> HashMap<Arc<str>, Vec<Arc<str>>> {
    let mut of: HashMap<Arc<str>, Vec<Arc<str>>> = HashMap::new();
    for (group, members) in groups {
        let group: Arc<str> = group.as_str().into();
        for member in members {
            of.entry(member.as_str().into()).or_default().push(group.clone());
        }
    }
    of
}
