//! The configuration: file, environment and flags resolved into one checked value.
