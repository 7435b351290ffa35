//! Who may come in: authentication, groups and rules.

use std::collections::BTreeMap;

use super::Resolver;
use crate::config::error::{Fault, Place};
use crate::config::file::{self, File};
use crate::config::origin::Origin;
use crate::config::overrides::{self, Given};
use crate::config::{Auth, AuthBackend, Rule, suggest};
use crate::http::fields::{is_hop_by_hop, is_rewritten_by_gate};

/// The principal that a request without credentials has.
const ANONYMOUS: &str = "anonymous";
const ACTIONS: [(&str, ()); 4] = [("pull", ()), ("push", ()), ("delete", ()), ("catalog", ())];
const DEFAULT_REALM: &str = "Registry";
/// What nginx asks in the recipe's `location = /auth`.
const DEFAULT_AUTH_PATH: &str = "/auth";

/// Whether a text can stand as the realm of a challenge: printable ASCII without `"` and `\`, not empty.
#[must_use]
pub fn is_realm(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\')
}

impl Resolver<'_> {
    pub(super) fn auth(&mut self, file: &File, rules: &[Rule]) -> Auth {
        let auth = &file.auth;
        let htpasswd =
            self.one(&overrides::HTPASSWD, self.flags.htpasswd.as_ref(), auth.htpasswd.as_ref(), "auth.htpasswd");
        let backend =
            self.one(&overrides::AUTH_BACKEND, self.flags.auth_backend.as_ref(), auth.backend.as_ref(), "auth.backend");
        let anonymous = rules.iter().any(|rule| rule.who.iter().any(|who| who == ANONYMOUS));
        if htpasswd.is_none() && backend.is_none() && !anonymous {
            let remedy = "give --htpasswd FILE or --auth-backend URL (variable AUTH_BACKEND, section [auth]), or \
                          write a [[rule]] for who = [\"anonymous\"]";
            self.missing.push(Fault::new("nobody could log in", remedy).at(&Place::Nowhere));
        }
        Auth {
            htpasswd: htpasswd.map(|given| self.checked_path(&given)),
            backend: backend.and_then(|given| self.auth_backend(&given)),
            realm: self.realm(&auth.realm),
            copy_headers: self.copy_headers(&auth.copy_headers),
        }
    }

    fn auth_backend(&mut self, given: &Given) -> Option<AuthBackend> {
        let fault = match Origin::parse_with_path(&given.text) {
            Ok((origin, path)) => {
                return Some(AuthBackend { origin, path: path.unwrap_or(DEFAULT_AUTH_PATH).to_owned() });
            }
            Err(fault) => fault,
        };
        self.fail(fault, &given.place);
        None
    }

    /// Names that a backend may set. Those that frame a message, or that the gate itself vouches for, are not its to set.
    fn copy_headers(&mut self, list: &file::Strings) -> Vec<String> {
        let mut names = Vec::new();
        for given in self.strings(list, "auth.copy_headers") {
            let name = given.text.to_ascii_lowercase();
            let token = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            let taken = is_hop_by_hop(&name)
                || is_rewritten_by_gate(&name)
                || ["x-forwarded-", "x-portcullis-", "content-"].iter().any(|start| name.starts_with(start))
                || ["forwarded", "x-real-ip", "cookie", "set-cookie"].contains(&name.as_str());
            if !token || taken {
                let problem = format!("{:?} cannot be copied from the backend's reply", given.text);
                self.fail(Fault::new(problem, "name a field of its own, for example \"X-Auth-User\""), &given.place);
            } else {
                names.push(name);
            }
        }
        names
    }

    fn realm(&mut self, realm: &file::Maybe<String>) -> String {
        let Some(realm) = realm else { return DEFAULT_REALM.to_owned() };
        let text = realm.get_ref();
        if !is_realm(text) {
            let place = self.place(realm, "auth.realm");
            let fault =
                Fault::new(format!("{text:?} cannot stand in a challenge"), "use plain ASCII without \" and \\");
            self.fail(fault, &place);
        }
        text.clone()
    }

    pub(super) fn groups(&mut self, file: &File) -> BTreeMap<String, Vec<String>> {
        let mut groups = BTreeMap::new();
        for (name, members) in &file.groups {
            let key = format!("groups.{}", name.get_ref());
            let members: Vec<Given> = members.get_ref().iter().map(|member| self.given(member, &key)).collect();
            for member in &members {
                let remedy = match member.text.as_str() {
                    "" => "write a user name",
                    ANONYMOUS => "name \"anonymous\" in the rule itself",
                    text if text.starts_with('@') => "groups do not nest: list the users",
                    text if text.contains([':', '\r', '\n', '\0']) => "a user name has no colon and no line break",
                    _ => continue,
                };
                let problem = format!("{:?} is not a user name", member.text);
                self.fail(Fault::new(problem, remedy), &member.place);
            }
            groups.insert(name.get_ref().clone(), members.into_iter().map(|member| member.text).collect());
        }
        groups
    }

    pub(super) fn rules(&mut self, file: &File, groups: &BTreeMap<String, Vec<String>>) -> Vec<Rule> {
        let mut rules = Vec::new();
        for entry in &file.rule {
            let rule = entry.get_ref();
            let who = self.strings(&rule.who, "rule.who");
            let repositories = self.strings(&rule.repositories, "rule.repositories");
            let actions = self.strings(&rule.actions, "rule.actions");
            let catalog_only = !actions.is_empty() && actions.iter().all(|action| action.text == "catalog");
            for (key, empty, example) in [
                ("who", who.is_empty(), "who = [\"alice\", \"@ci\"]"),
                ("repositories", repositories.is_empty() && !catalog_only, "repositories = [\"team-a/**\"]"),
                ("actions", actions.is_empty(), "actions = [\"pull\", \"push\"]"),
            ] {
                if empty {
                    let place = self.place(entry, "rule");
                    self.missing.push(Fault::new(format!("no {key}"), format!("add {example}")).at(&place));
                }
            }
            for given in &who {
                self.check_who(given, groups);
            }
            for given in repositories.iter().filter(|given| given.text.is_empty()) {
                self.fail(Fault::new("the pattern is empty", "write \"**\" for every repository"), &given.place);
            }
            for given in &actions {
                self.choice(given, &ACTIONS);
            }
            let texts = |list: Vec<Given>| list.into_iter().map(|given| given.text).collect();
            rules.push(Rule { who: texts(who), repositories: texts(repositories), actions: texts(actions) });
        }
        rules
    }

    fn check_who(&mut self, given: &Given, groups: &BTreeMap<String, Vec<String>>) {
        if given.text.is_empty() {
            self.fail(Fault::new("the name is empty", "write a user, \"@group\" or \"anonymous\""), &given.place);
        }
        let Some(group) = given.text.strip_prefix('@').filter(|group| !groups.contains_key(*group)) else { return };
        let remedy = match suggest::nearest(group, groups.keys().map(String::as_str)) {
            Some(similar) => format!("did you mean \"@{similar}\"?"),
            None => "add it to [groups]".to_owned(),
        };
        self.fail(Fault::new(format!("there is no group {group:?}"), remedy), &given.place);
    }
}
