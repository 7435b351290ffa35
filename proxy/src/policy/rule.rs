//! One rule: from the words of the configuration to something that can be asked.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::Deserialize;

use super::pattern::Pattern;
use crate::auth::principal;
use crate::registry::Action;

/// A `[[rule]]` as it stands in the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleText {
    /// User names, `@group`, `anonymous` (everybody, logged in or not), `*` (everybody who logged in).
    #[serde(default)]
    pub who: Vec<String>,
    /// [`Pattern`]s. May be left out of a rule about the catalogue only.
    #[serde(default)]
    pub repositories: Vec<String>,
    /// `pull`, `push`, `delete`, `catalog`.
    #[serde(default)]
    pub actions: Vec<String>,
}

/// A checked rule.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) who: Who,
    pub(super) repositories: Vec<Pattern>,
    pub(super) actions: Vec<Action>,
}

/// Whom a rule is for.
#[derive(Clone, Debug, Default)]
pub(super) struct Who {
    pub(super) everybody: bool,
    pub(super) logged_in: bool,
    pub(super) users: HashSet<Arc<str>>,
    pub(super) groups: HashSet<Arc<str>>,
}

impl Rule {
    /// # Errors
    /// Everything wrong with the rule, each text complete but for its number.
    pub(super) fn new(text: &RuleText, groups: &BTreeMap<String, Vec<String>>) -> Result<Rule, Vec<String>> {
        let mut errors = Vec::new();
        let who = parse_who(&text.who, groups, &mut errors);
        let actions = parse_actions(&text.actions, &mut errors);
        let repositories = parse_repositories(&text.repositories, &mut errors);
        if text.repositories.is_empty() && actions.iter().any(|&action| action != Action::Catalog) {
            errors.push("repositories is empty, so the rule grants nothing; [\"**\"] is every repository".to_owned());
        }
        // The catalogue names every repository, so a grant of it must not look like one for a few.
        let covers_all = repositories.is_empty() || repositories.iter().any(Pattern::is_everything);
        if actions.contains(&Action::Catalog) && !covers_all {
            errors.push(
                "catalog lists the names of all repositories, not of these only; give it a rule of its own, without repositories"
                    .to_owned(),
            );
        }
        if errors.is_empty() { Ok(Rule { who, repositories, actions }) } else { Err(errors) }
    }
}

fn parse_who(words: &[String], groups: &BTreeMap<String, Vec<String>>, errors: &mut Vec<String>) -> Who {
    let mut who = Who::default();
    if words.is_empty() {
        errors.push(
            "who is empty, so the rule grants nothing; name users, \"@group\", \"*\" or \"anonymous\"".to_owned(),
        );
    }
    for word in words {
        match word.as_str() {
            "anonymous" => who.everybody = true,
            "*" => who.logged_in = true,
            _ => match word.strip_prefix('@') {
                Some(group) if groups.contains_key(group) => drop(who.groups.insert(Arc::from(group))),
                Some(_) => {
                    errors.push(format!("who names the group {word:?}, which is not in [groups]; add it there"));
                }
                None => match principal::check_principal(word) {
                    Ok(()) => {
                        who.users.insert(Arc::from(word.as_str()));
                    }
                    Err(why) => errors.push(format!("who: the user name {word:?} {why}, so nobody can have it")),
                },
            },
        }
    }
    who
}

fn parse_actions(words: &[String], errors: &mut Vec<String>) -> Vec<Action> {
    if words.is_empty() {
        errors
            .push("actions is empty, so the rule grants nothing; name some of pull, push, delete, catalog".to_owned());
    }
    let mut actions = Vec::new();
    for word in words {
        match Action::parse(word) {
            Some(action) => actions.push(action),
            None => errors.push(format!("the action {word:?} does not exist; there are pull, push, delete, catalog")),
        }
    }
    actions
}

fn parse_repositories(words: &[String], errors: &mut Vec<String>) -> Vec<Pattern> {
    let mut patterns = Vec::new();
    for word in words {
        match Pattern::parse(word) {
            Ok(pattern) => patterns.push(pattern),
            Err(why) => errors.push(format!("the repository pattern {word:?} {why}")),
        }
    }
    patterns
}

/// Checks `[groups]` itself: members are users, not groups.
pub(super) fn check_groups(groups: &BTreeMap<String, Vec<String>>, errors: &mut Vec<String>) {
    for (group, members) in groups {
        if group.is_empty() || group.starts_with('@') {
            errors.push(format!("group {group:?}: write the name without @ here, and with it in a rule"));
        }
        for member in members {
            if member.starts_with('@') || member == "anonymous" || member == "*" {
                errors.push(format!("group {group:?}: {member:?} is no user; a group holds user names only"));
            } else if let Err(why) = principal::check_principal(member) {
                errors.push(format!("group {group:?}: the user name {member:?} {why}, so nobody can have it"));
            }
        }
    }
}
