//! Who is asking: credentials, challenges, htpasswd files, principals.
