//! The OCI distribution grammar: endpoints, names, accesses, errors.
