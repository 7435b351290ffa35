//! The decision: the first rule that grants, or nothing.

use std::collections::BTreeMap;

use super::index::Index;
use super::rule::{self, Rule, RuleText};
use crate::auth::Principal;
use crate::registry::Access;

/// All rules, checked.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// `None`: no rules at all.
    rules: Option<Index>,
}

/// What the policy says about one access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// It may pass.
    Allow {
        /// The rule that granted it, counted from 1 in the order of the configuration; `None` when there are no rules
        /// at all and a login is enough.
        rule: Option<usize>,
    },
    /// No rule grants it. Rules cannot forbid, so there is no rule to name.
    Deny,
}

impl Decision {
    /// Whether it is an allowance.
    pub fn is_allowed(self) -> bool {
        matches!(self, Decision::Allow { .. })
    }
}

impl Policy {
    /// Checks all rules and groups.
    ///
    /// # Errors
    /// Every error at once, each a sentence that names the rule (counted from 1) or group and the remedy.
    pub fn new(rules: &[RuleText], groups: &BTreeMap<String, Vec<String>>) -> Result<Policy, Vec<String>> {
        let mut errors = Vec::new();
        rule::check_groups(groups, &mut errors);
        let mut checked = Vec::with_capacity(rules.len());
        for (index, text) in rules.iter().enumerate() {
            match Rule::new(text, groups) {
                Ok(rule) => checked.push(rule),
                Err(found) => errors.extend(found.into_iter().map(|error| format!("rule {}: {error}", index + 1))),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let rules = (!checked.is_empty()).then(|| Index::new(&checked, groups));
        Ok(Policy { rules })
    }

    /// No rules: a login is enough for everything.
    pub fn is_open(&self) -> bool {
        self.rules.is_none()
    }

    /// Decides one access. A request that needs several needs each of them.
    pub fn decide(&self, principal: &Principal, access: &Access) -> Decision {
        let Some(rules) = &self.rules else {
            return match principal {
                Principal::User(_) => Decision::Allow { rule: None },
                Principal::Anonymous => Decision::Deny,
            };
        };
        match rules.first(principal, access) {
            Some(index) => Decision::Allow { rule: Some(index + 1) },
            None => Decision::Deny,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::Pattern;
    use crate::registry::{Action, RepositoryName};

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn rule(who: &str, repositories: &str, actions: &str) -> RuleText {
        RuleText { who: words(who), repositories: words(repositories), actions: words(actions) }
    }

    fn groups() -> BTreeMap<String, Vec<String>> {
        BTreeMap::from([("ci".to_owned(), words("builder-1 builder-2")), ("none".to_owned(), Vec::new())])
    }

    fn access(name: &str, action: Action) -> Access {
        match action {
            Action::Catalog => Access::catalog(),
            _ => Access::on(&RepositoryName::parse(name).unwrap(), action),
        }
    }

    fn who(name: &str) -> Principal {
        if name == "-" { Principal::Anonymous } else { Principal::user(name) }
    }

    #[test]
    fn without_rules_a_login_is_enough() {
        let open = Policy::new(&[], &groups()).unwrap();
        assert!(open.is_open());
        for action in Action::ALL {
            assert_eq!(open.decide(&who("alice"), &access("a", action)), Decision::Allow { rule: None });
            assert_eq!(open.decide(&who("-"), &access("a", action)), Decision::Deny);
        }
    }

    #[test]
    fn the_first_rule_that_grants() {
        use Action::*;
        let policy = Policy::new(
            &[
                rule("alice @ci", "team-a/**", "pull push"),
                rule("anonymous", "public/* team-a/docs", "pull"),
                rule("root", "**", "pull push delete catalog"),
                rule("alice", "team-a/app", "pull delete"),
                rule("*", "shared", "pull"),
                rule("bob @none", "", "catalog"),
            ],
            &groups(),
        )
        .unwrap();
        for (name, repository, action, decision) in [
            ("alice", "team-a/app", Pull, Some(1)),
            ("alice", "team-a/app", Push, Some(1)),
            ("alice", "team-a/app", Delete, Some(4)),
            ("alice", "team-a/other", Delete, None),
            ("alice", "team-a", Pull, None),
            ("alice", "team-b/app", Pull, None),
            ("alice", "", Catalog, None),
            ("Alice", "team-a/app", Pull, None),
            ("builder-2", "team-a/x/y", Push, Some(1)),
            ("builder-3", "team-a/x", Push, None),
            ("@ci", "team-a/x", Push, None),
            ("ci", "team-a/x", Push, None),
            ("-", "public/x", Pull, Some(2)),
            ("-", "public/x/y", Pull, None),
            ("-", "public/x", Push, None),
            ("-", "team-a/docs", Pull, Some(2)),
            ("-", "shared", Pull, None),
            ("-", "", Catalog, None),
            // What everybody may, one who logged in may too; and nobody gains by the name.
            ("zoe", "public/x", Pull, Some(2)),
            ("anonymous", "public/x", Pull, Some(2)),
            ("anonymous", "team-a/app", Pull, None),
            ("*", "shared", Pull, Some(5)),
            ("zoe", "shared", Pull, Some(5)),
            ("root", "any/thing", Delete, Some(3)),
            ("root", "", Catalog, Some(3)),
            ("bob", "", Catalog, Some(6)),
            ("bob", "x", Pull, None),
        ] {
            let expected = decision.map_or(Decision::Deny, |n| Decision::Allow { rule: Some(n) });
            assert_eq!(
                policy.decide(&who(name), &access(repository, action)),
                expected,
                "{name} {repository} {action}"
            );
            assert_eq!(expected.is_allowed(), decision.is_some());
        }
    }

    #[test]
    fn every_error_at_once() {
        let mut groups = groups();
        groups.insert("@x".to_owned(), words("@ci a:b anonymous"));
        let errors = Policy::new(
            &[
                rule("", "", ""),
                rule("@nobody a:b", "Team/** a**", "pull read"),
                rule("alice", "", "pull"),
                rule("alice", "team/**", "pull catalog"),
                rule("alice", "**", "pull"),
            ],
            &groups,
        )
        .unwrap_err()
        .join("\n");
        for part in [
            "group \"@x\": write the name without @",
            "group \"@x\": \"@ci\" is no user",
            "group \"@x\": \"anonymous\" is no user",
            "\"a:b\" contains a colon",
            "rule 1: who is empty",
            "rule 1: actions is empty",
            "rule 2: who names the group \"@nobody\"",
            "rule 2: who: the user name \"a:b\" contains a colon",
            "rule 2: the action \"read\" does not exist",
            "rule 2: the repository pattern \"Team/**\" has capitals",
            "rule 2: the repository pattern \"a**\"",
            "rule 3: repositories is empty",
            "rule 4: catalog lists the names of all",
        ] {
            assert!(errors.contains(part), "{part}\n{errors}");
        }
        assert!(!errors.contains("rule 5"));
    }

    #[test]
    fn the_shape_of_the_configuration() {
        #[derive(serde::Deserialize)]
        struct File {
            rule: Vec<RuleText>,
        }
        let file: File =
            toml::from_str("[[rule]]\nwho = [\"alice\"]\nrepositories = [\"a/**\"]\nactions = [\"pull\"]\n").unwrap();
        assert_eq!(file.rule, [rule("alice", "a/**", "pull")]);
        assert!(toml::from_str::<File>("[[rule]]\nwho = []\nrepository = []\n").is_err());
    }

    /// Trying every way in which wildcards can share a name out would not end.
    #[test]
    fn no_pattern_takes_long() {
        let (hard, deep) = (format!("{}b", "*a".repeat(120)), format!("{}b", "**/a/".repeat(50)));
        let wild = format!("{}b", "**/*/".repeat(50));
        let policy = Policy::new(&[rule("*", &format!("{hard} {deep} {wild}"), "pull")], &groups()).unwrap();
        for name in ["a".repeat(255), ["a"; 127].join("/")] {
            assert_eq!(policy.decide(&who("zoe"), &access(&name, Action::Pull)), Decision::Deny);
        }
    }

    /// What the tree has to agree with: every rule asked in turn.
    fn by_scanning(rules: &[RuleText], principal: &Principal, access: &Access) -> Option<usize> {
        let groups = groups();
        let includes = |who: &str| match (who, principal) {
            ("anonymous", _) => true,
            (_, Principal::Anonymous) => false,
            ("*", _) => true,
            (who, Principal::User(name)) => match who.strip_prefix('@') {
                Some(group) => groups[group].iter().any(|member| **member == **name),
                None => *who == **name,
            },
        };
        let covers = |pattern: &str, name: &str| Pattern::parse(pattern).unwrap().covers(name);
        rules.iter().position(|rule| {
            rule.actions.iter().any(|action| action == access.action.as_str())
                && rule.who.iter().any(|who| includes(who))
                && access
                    .repository
                    .as_ref()
                    .is_none_or(|name| rule.repositories.iter().any(|pattern| covers(pattern, name.as_str())))
        })
    }

    const PATTERNS: [&str; 16] = [
        "**",
        "**/**",
        "*",
        "a",
        "a/b",
        "a/*",
        "a/**",
        "**/b",
        "a/**/b",
        "**/a/**",
        "*/b",
        "a*/*b",
        "**/*b*/**",
        "b/**/**/a",
        "*a",
        "aa/**",
    ];

    proptest! {
        #[test]
        fn the_tree_decides_as_the_rules_do_in_turn(
            picks in prop::collection::vec((
                prop::sample::subsequence(vec!["alice", "bob", "@ci", "@none", "*", "anonymous"], 1..4),
                prop::sample::subsequence(PATTERNS.to_vec(), 1..4),
                prop::sample::subsequence(vec!["pull", "push", "delete"], 1..3),
                prop::bool::weighted(0.1),
            ), 1..12),
            names in prop::collection::vec("(a|b|ab|aa|aab)(/(a|b|ab|aa)){0,4}", 1..6),
            name in prop::sample::select(vec!["alice", "bob", "builder-1", "zoe", "-"]),
        ) {
            let rules: Vec<RuleText> = picks
                .iter()
                .map(|(who, repositories, actions, lists)| match lists {
                    true => rule(&who.join(" "), "", "catalog"),
                    false => rule(&who.join(" "), &repositories.join(" "), &actions.join(" ")),
                })
                .collect();
            let policy = Policy::new(&rules, &groups()).unwrap();
            let accesses = names.iter().flat_map(|name| Action::ALL.map(|action| access(name, action)));
            for access in accesses {
                let expected = by_scanning(&rules, &who(name), &access)
                    .map_or(Decision::Deny, |index| Decision::Allow { rule: Some(index + 1) });
                prop_assert_eq!(policy.decide(&who(name), &access), expected, "{} {:?}", access, rules);
            }
        }

        // More rules never take anything away.
        #[test]
        fn rules_only_grant(
            picks in prop::collection::vec((0..4usize, 0..4usize, 0..3usize), 1..6),
            name in prop::sample::select(vec!["alice", "bob", "builder-1", "-"]),
            repository in prop::sample::select(vec!["a", "team/x", "team/x/y"]),
            action in prop::sample::select(vec![Action::Pull, Action::Push, Action::Delete]),
        ) {
            let rules: Vec<RuleText> = picks
                .iter()
                .map(|&(w, r, a)| rule(["alice", "@ci", "*", "anonymous"][w], ["**", "team/**", "a", "*/x"][r], ["pull", "push", "pull delete"][a]))
                .collect();
            let asked = access(repository, action);
            let mut before = false;
            for count in 1..=rules.len() {
                let now = Policy::new(&rules[..count], &groups()).unwrap().decide(&who(name), &asked);
                prop_assert!(!before || now.is_allowed());
                before = now.is_allowed();
                if let Decision::Allow { rule } = now {
                    prop_assert!(rule.is_some_and(|n| (1..=count).contains(&n)));
                }
            }
        }
    }
}
