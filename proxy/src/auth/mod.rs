//! Who is asking: credentials, client certificates, challenges, htpasswd files, principals.
//!
//! Everything here is a pure function of bytes. The slow part, [`htpasswd::Htpasswd::verify`], belongs on a helper
//! thread: it spends the time of the most expensive hash in the file, on purpose, for known and unknown users alike.

pub mod apr1;
pub mod certificate;
pub mod challenge;
pub mod credentials;
pub mod htpasswd;
pub mod principal;

pub use certificate::ClientCertificate;
pub use credentials::{Basic, CredentialsError, Secret};
pub use htpasswd::Htpasswd;
pub use principal::Principal;
