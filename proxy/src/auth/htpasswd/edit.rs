//! Editing the text of an htpasswd file without touching what was not meant.

/// The text with `user`'s line replaced, or added at the end. Every other line, comment and line end stays byte for
/// byte; should the user have been there twice, the first line is replaced and the others go.
///
/// `user` and `hash` must be valid ([`crate::auth::principal::check_name`], [`super::Hash::parse`]): they are written as
/// they are.
pub fn with_user(text: &str, user: &str, hash: &str) -> String {
    let mut out = String::with_capacity(text.len() + user.len() + hash.len() + 2);
    let mut written = false;
    for line in text.split_inclusive('\n') {
        if !is_of(line, user) {
            out.push_str(line);
        } else if !written {
            push_line(&mut out, user, hash, line_end(line));
            written = true;
        }
    }
    if !written {
        let end = text.split_inclusive('\n').next().map_or("\n", line_end);
        let end = if end.is_empty() { "\n" } else { end };
        if !out.is_empty() && !out.ends_with('\n') {
            out.push_str(end);
        }
        push_line(&mut out, user, hash, end);
    }
    out
}

/// The text without any line of `user`; everything else stays byte for byte.
pub fn without_user(text: &str, user: &str) -> String {
    text.split_inclusive('\n').filter(|line| !is_of(line, user)).collect()
}

fn is_of(line: &str, user: &str) -> bool {
    line.strip_prefix(user).is_some_and(|rest| rest.starts_with(':')) && !line.starts_with('#')
}

fn push_line(out: &mut String, user: &str, hash: &str, end: &str) {
    out.push_str(user);
    out.push(':');
    out.push_str(hash);
    out.push_str(end);
}

/// A CR alone ends no line: what is written behind it would still be on that line.
fn line_end(line: &str) -> &str {
    let text = line.strip_suffix('\n').map_or(line, |text| text.strip_suffix('\r').unwrap_or(text));
    &line[text.len()..]
}
