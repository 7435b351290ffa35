//! The strict layer over httparse: heads, framing, chunks, fields.
