//! The verdict: the only room that can make a permit.
