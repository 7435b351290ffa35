//! What a request needs: a repository and an action on it.

use std::fmt;

use super::name::RepositoryName;

/// What is done. No action implies another: a client that pushes also asks whether blobs exist, which is a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Reading manifests, blobs, tags, referrers.
    Pull,
    /// Writing manifests and blobs, and everything about uploads, their status and cancelling included.
    Push,
    /// Removing manifests and blobs.
    Delete,
    /// Listing the names of all repositories.
    Catalog,
}

impl Action {
    /// All of them, in the order of the documentation.
    pub const ALL: [Action; 4] = [Action::Pull, Action::Push, Action::Delete, Action::Catalog];

    /// The word used in configuration, logs and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Pull => "pull",
            Action::Push => "push",
            Action::Delete => "delete",
            Action::Catalog => "catalog",
        }
    }

    /// The reverse of [`Action::as_str`].
    pub fn parse(word: &str) -> Option<Action> {
        Action::ALL.into_iter().find(|action| action.as_str() == word)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One thing that a principal must be allowed for a request to pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// `None` when the whole registry is meant, as for the catalogue.
    pub repository: Option<RepositoryName>,
    /// What is done to it.
    pub action: Action,
}

impl Access {
    /// `action` on one repository.
    pub fn on(repository: &RepositoryName, action: Action) -> Access {
        Access { repository: Some(repository.clone()), action }
    }

    /// Listing the catalogue.
    pub fn catalog() -> Access {
        Access { repository: None, action: Action::Catalog }
    }
}

/// The scope notation of the registry token protocol: `repository:team/app:pull`, `registry:catalog:*`.
impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.repository {
            Some(name) => write!(f, "repository:{name}:{}", self.action),
            None => write!(f, "registry:{}:*", self.action),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_a_scope() {
        let name = RepositoryName::parse("team/app").unwrap();
        assert_eq!(Access::on(&name, Action::Pull).to_string(), "repository:team/app:pull");
        assert_eq!(Access::catalog().to_string(), "registry:catalog:*");
        for action in Action::ALL {
            assert_eq!(Action::parse(action.as_str()), Some(action));
        }
        assert_eq!(Action::parse("Pull"), None);
    }
}
