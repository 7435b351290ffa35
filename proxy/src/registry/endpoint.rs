//! What a request line asks of a registry.
//!
//! | endpoint | path | methods | needs | query |
//! | --- | --- | --- | --- | --- |
//! | base | `/v2/`, `/v2` (distribution redirects it) | GET HEAD | a login | `ns` |
//! | ping | `/_ping`, `/v1/_ping` | GET HEAD | nothing | — |
//! | catalog | `/v2/_catalog` | GET HEAD | catalog | `n last ns` |
//! | tags | `/v2/<name>/tags/list` | GET HEAD | pull | `n last ns` |
//! | manifest | `/v2/<name>/manifests/<tag or digest>` | GET HEAD · PUT · DELETE | pull · push · delete | `ns` |
//! | blob | `/v2/<name>/blobs/<digest>` | GET HEAD · DELETE | pull · delete | `ns` |
//! | upload start | `/v2/<name>/blobs/uploads/` | POST | push, and pull on `from` | `mount from digest digest-algorithm ns` |
//! | upload | `/v2/<name>/blobs/uploads/<uuid>` | GET HEAD PATCH PUT DELETE | push | `_state digest ns` |
//! | referrers | `/v2/<name>/referrers/<digest>` | GET HEAD | pull | `artifactType n last ns` |
//!
//! Source: OCI distribution specification 1.1, "Endpoints"; distribution's route table for the upload identifier and
//! `_catalog`. Names may contain the words of the grammar (`a/manifests/b`): the last two segments decide, and because
//! neither of them can hold a slash there is one reading only.

use super::access::{Access, Action};
use super::error::Code;
use super::name::RepositoryName;
use super::query::{self, Key};
use super::reference::{Digest, Reference};

/// The longest upload identifier, in bytes; distribution's are 36.
const MAX_UPLOAD_ID_BYTES: usize = 512;

/// The endpoints of the table above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Is this a registry, and am I logged in?
    Base,
    /// The first registry's health check, open to all.
    Ping,
    /// The names of all repositories.
    Catalog,
    /// The tags of one repository.
    Tags {
        /// Of this one.
        name: RepositoryName,
    },
    /// A manifest.
    Manifest {
        /// In this repository.
        name: RepositoryName,
        /// By tag or digest.
        reference: Reference,
    },
    /// A blob.
    Blob {
        /// In this repository.
        name: RepositoryName,
        /// Which.
        digest: Digest,
    },
    /// Beginning an upload.
    UploadStart {
        /// In this repository.
        name: RepositoryName,
    },
    /// An upload that has begun.
    Upload {
        /// In this repository.
        name: RepositoryName,
        /// The registry's identifier.
        uuid: String,
    },
    /// The manifests that refer to one.
    Referrers {
        /// In this repository.
        name: RepositoryName,
        /// To this one.
        digest: Digest,
    },
}

impl Endpoint {
    /// One lower-case word, for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Endpoint::Base => "base",
            Endpoint::Ping => "ping",
            Endpoint::Catalog => "catalog",
            Endpoint::Tags { .. } => "tags",
            Endpoint::Manifest { .. } => "manifest",
            Endpoint::Blob { .. } => "blob",
            Endpoint::UploadStart { .. } => "upload-start",
            Endpoint::Upload { .. } => "upload",
            Endpoint::Referrers { .. } => "referrers",
        }
    }

    /// The repository, where there is one.
    pub fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Endpoint::Base | Endpoint::Ping | Endpoint::Catalog => None,
            Endpoint::Tags { name }
            | Endpoint::Manifest { name, .. }
            | Endpoint::Blob { name, .. }
            | Endpoint::UploadStart { name }
            | Endpoint::Upload { name, .. }
            | Endpoint::Referrers { name, .. } => Some(name),
        }
    }

    /// Passes without a login. Nothing else does, `/v2/` included, unless a rule says so.
    pub fn is_public(&self) -> bool {
        matches!(self, Endpoint::Ping)
    }

    /// An upload route, where [`super::media::forbidden_upload_type`] has to be asked.
    pub fn is_upload(&self) -> bool {
        matches!(self, Endpoint::UploadStart { .. } | Endpoint::Upload { .. })
    }

    /// The `Allow` list.
    pub fn allow(&self) -> &'static str {
        match self {
            Endpoint::Base
            | Endpoint::Ping
            | Endpoint::Catalog
            | Endpoint::Tags { .. }
            | Endpoint::Referrers { .. } => "GET, HEAD",
            Endpoint::Manifest { .. } => "GET, HEAD, PUT, DELETE",
            Endpoint::Blob { .. } => "GET, HEAD, DELETE",
            Endpoint::UploadStart { .. } => "POST",
            Endpoint::Upload { .. } => "GET, HEAD, PATCH, PUT, DELETE",
        }
    }

    fn keys(&self) -> &'static [Key] {
        match self {
            Endpoint::Ping => &[],
            Endpoint::Base | Endpoint::Manifest { .. } | Endpoint::Blob { .. } => &[Key::Ns],
            Endpoint::Catalog | Endpoint::Tags { .. } => &[Key::N, Key::Last, Key::Ns],
            Endpoint::UploadStart { .. } => &[Key::Mount, Key::From, Key::Digest, Key::DigestAlgorithm, Key::Ns],
            Endpoint::Upload { .. } => &[Key::State, Key::Digest, Key::Ns],
            Endpoint::Referrers { .. } => &[Key::ArtifactType, Key::N, Key::Last, Key::Ns],
        }
    }

    fn access(&self, method: &str) -> Option<Access> {
        let action = match (self, method) {
            (Endpoint::Base | Endpoint::Ping, _) => return None,
            (Endpoint::Catalog, _) => return Some(Access::catalog()),
            (Endpoint::UploadStart { .. } | Endpoint::Upload { .. }, _) => Action::Push,
            (_, "DELETE") => Action::Delete,
            (_, "GET" | "HEAD") => Action::Pull,
            _ => Action::Push,
        };
        self.repository().map(|name| Access::on(name, action))
    }
}

/// A blob to be linked from another repository instead of being uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Which blob.
    pub digest: Digest,
    /// Where it is.
    pub from: RepositoryName,
}

/// A request line that is in the grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classified {
    /// What it asks for.
    pub endpoint: Endpoint,
    /// The one string that policy, cache key, auth subrequest and upstream all see: as the client wrote it, except that
    /// an empty query, and a `mount` or `from` without the other, are left out.
    pub target: String,
    /// All that must be allowed. The first one is for the endpoint itself; with a mount, a pull on the other repository
    /// follows. Empty for base (a login is enough) and ping (nothing is needed).
    pub access: Vec<Access>,
    /// Both parameters were there.
    pub mount: Option<Mount>,
}

impl Classified {
    /// The target for a client that may push here but may not pull from the other repository: without `mount` and
    /// `from` the registry begins an ordinary upload, and the client goes on with that.
    pub fn target_without_mount(&self) -> String {
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let is_mount = |pair: &&str| pair.starts_with("mount=") || pair.starts_with("from=");
        serialise(path, query.split('&').filter(|pair| !pair.is_empty() && !is_mount(pair)))
    }
}

/// A request line that no registry endpoint takes. Nothing of it may be sent upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// 404: the path is not in the grammar.
    NotFound {
        /// The nearest code of the specification.
        code: Code,
        /// For the person who reads the client's output.
        message: &'static str,
    },
    /// 405: the path is, the method is not.
    MethodNotAllowed {
        /// The value of the `Allow` field.
        allow: &'static str,
    },
    /// 400: the query is not.
    Malformed {
        /// The nearest code of the specification.
        code: Code,
        /// For the person who reads the client's output.
        message: String,
    },
}

impl Unknown {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Unknown::NotFound { .. } => 404,
            Unknown::MethodNotAllowed { .. } => 405,
            Unknown::Malformed { .. } => 400,
        }
    }

    /// The code for [`super::error::body`].
    pub fn code(&self) -> Code {
        match self {
            Unknown::NotFound { code, .. } | Unknown::Malformed { code, .. } => *code,
            Unknown::MethodNotAllowed { .. } => Code::Unsupported,
        }
    }

    /// The message for [`super::error::body`]. Repeats nothing of the request.
    pub fn message(&self) -> &str {
        match self {
            Unknown::NotFound { message, .. } => message,
            Unknown::MethodNotAllowed { .. } => "this endpoint does not take this method; see the Allow field",
            Unknown::Malformed { message, .. } => message,
        }
    }
}

/// Reads a request line's method and target (RFC 9112 §3.2.1, origin-form), as they came.
///
/// # Errors
/// [`Unknown`], looked for in this order: path, method, query.
pub fn classify(method: &str, target: &str) -> Result<Classified, Unknown> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let endpoint = parse_path(path)?;
    let allow = endpoint.allow();
    if !allow.split(", ").any(|allowed| allowed == method) {
        return Err(Unknown::MethodNotAllowed { allow });
    }
    let mut pairs = query::parse(query, endpoint.keys())?;
    let value = |key| pairs.iter().find(|pair| pair.key == key).map(|pair| pair.value.as_str());
    let digest = value(Key::Mount).and_then(Digest::parse);
    let from = value(Key::From).and_then(RepositoryName::parse);
    let mount = digest.zip(from).map(|(digest, from)| Mount { digest, from });
    if mount.is_none() {
        // A mount without a source lets the registry choose one, from repositories that nobody judged.
        pairs.retain(|pair| !matches!(pair.key, Key::Mount | Key::From));
    }
    let target = serialise(path, pairs.iter().map(|pair| pair.raw));
    let mut access: Vec<Access> = endpoint.access(method).into_iter().collect();
    access.extend(mount.iter().map(|mount| Access::on(&mount.from, Action::Pull)));
    Ok(Classified { endpoint, target, access, mount })
}

fn parse_path(path: &str) -> Result<Endpoint, Unknown> {
    match path {
        "/v2/" | "/v2" => return Ok(Endpoint::Base),
        "/_ping" | "/v1/_ping" => return Ok(Endpoint::Ping),
        "/v2/_catalog" => return Ok(Endpoint::Catalog),
        _ => {}
    }
    let nothing = || not_found(Code::NameUnknown, "this path is no endpoint of a registry");
    let rest = path.strip_prefix("/v2/").ok_or_else(nothing)?;
    let (rest, last) = rest.rsplit_once('/').ok_or_else(nothing)?;
    let (name, word) = rest.rsplit_once('/').ok_or_else(nothing)?;
    match word {
        "tags" if last == "list" => Ok(Endpoint::Tags { name: parse_name(name)? }),
        "manifests" => {
            let bad = || {
                not_found(
                    Code::ManifestUnknown,
                    "a manifest is named by a tag or a sha256 or sha512 digest, and this is neither",
                )
            };
            Ok(Endpoint::Manifest { name: parse_name(name)?, reference: Reference::parse(last).ok_or_else(bad)? })
        }
        "blobs" => {
            let message = match last {
                "uploads" => "an upload begins at blobs/uploads/, with the slash at the end",
                _ => "a blob is named by a sha256 or sha512 digest, and this is none",
            };
            let bad = || not_found(Code::BlobUnknown, message);
            Ok(Endpoint::Blob { name: parse_name(name)?, digest: Digest::parse(last).ok_or_else(bad)? })
        }
        "referrers" => {
            let bad = || {
                not_found(Code::ManifestUnknown, "referrers are listed for a sha256 or sha512 digest, and this is none")
            };
            Ok(Endpoint::Referrers { name: parse_name(name)?, digest: Digest::parse(last).ok_or_else(bad)? })
        }
        "uploads" => {
            let name = parse_name(name.strip_suffix("/blobs").ok_or_else(nothing)?)?;
            if last.is_empty() {
                return Ok(Endpoint::UploadStart { name });
            }
            let bad = || not_found(Code::BlobUploadUnknown, "no registry gives uploads such an identifier");
            is_upload_id(last).then(|| Endpoint::Upload { name, uuid: last.to_owned() }).ok_or_else(bad)
        }
        _ => Err(nothing()),
    }
}

fn parse_name(name: &str) -> Result<RepositoryName, Unknown> {
    RepositoryName::parse(name).ok_or(not_found(
        Code::NameInvalid,
        "this is no repository name: lower-case letters and digits, separated by . _ __ - or /, at most 255 in all",
    ))
}

/// distribution's `[a-zA-Z0-9-_.=]+`, less what a path reader could take for a step up.
fn is_upload_id(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'=');
    text.len() <= MAX_UPLOAD_ID_BYTES && text.bytes().all(fits) && !text.starts_with('.') && !text.contains("..")
}

fn not_found(code: Code, message: &'static str) -> Unknown {
    Unknown::NotFound { code, message }
}

fn serialise<'a>(path: &str, pairs: impl Iterator<Item = &'a str>) -> String {
    let mut target = path.to_owned();
    for (index, pair) in pairs.enumerate() {
        target.push(if index == 0 { '?' } else { '&' });
        target.push_str(pair);
    }
    target
}

#[cfg(test)]
mod tests;
