//! Subjects: tokens separated by dots. `*` matches one token, `>` one or more at the end.

/// Whether no token is empty or contains blanks or control characters, and `>` is only at the end.
pub(crate) fn is_valid(subject: &[u8]) -> bool {
    let mut tokens = subject.split(|byte| *byte == b'.').peekable();
    while let Some(token) = tokens.next() {
        let misplaced = token == b">" && tokens.peek().is_some();
        if token.is_empty() || misplaced || token.iter().any(|byte| matches!(byte, 0..=b' ' | 0x7F)) {
            return false;
        }
    }
    true
}

/// Whether a subject is valid and has no wildcards, so that a message can be sent to it.
pub(crate) fn is_literal(subject: &[u8]) -> bool {
    is_valid(subject) && !has_wildcards(subject)
}

/// Whether a token is a wildcard.
pub(crate) fn has_wildcards(subject: &[u8]) -> bool {
    subject.split(|byte| *byte == b'.').any(|token| matches!(token, b"*" | b">"))
}

/// Whether a literal subject matches a filter.
pub(crate) fn matches(filter: &[u8], subject: &[u8]) -> bool {
    walk(filter, subject, false)
}

/// Whether some subject matches both filters.
pub(crate) fn overlaps(one: &[u8], other: &[u8]) -> bool {
    walk(one, other, true)
}

/// Whether every subject that matches `part` also matches `filter`.
pub(crate) fn covers(filter: &[u8], part: &[u8]) -> bool {
    let mut filter = filter.split(|byte| *byte == b'.');
    let mut part = part.split(|byte| *byte == b'.');
    loop {
        match (filter.next(), part.next()) {
            (Some(b">"), Some(_)) | (None, None) => return true,
            (Some(b"*"), Some(token)) if token != b">" => {}
            (Some(wanted), Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
}

fn walk(filter: &[u8], subject: &[u8], both_ways: bool) -> bool {
    let mut filter = filter.split(|byte| *byte == b'.');
    let mut subject = subject.split(|byte| *byte == b'.');
    loop {
        match (filter.next(), subject.next()) {
            (Some(b">"), Some(_)) => return true,
            (Some(_), Some(b">")) if both_ways => return true,
            (Some(b"*"), Some(_)) => {}
            (Some(_), Some(b"*")) if both_ways => {}
            (Some(wanted), Some(token)) if wanted == token => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_tokens_make_a_subject() {
        for good in ["a", "a.b", "$JS.API.INFO", "a.*.b", "a.>", ">", "a*.b", "_INBOX.x"] {
            assert!(is_valid(good.as_bytes()), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a.>.b", "a b", "a\tb", "a\r"] {
            assert!(!is_valid(bad.as_bytes()), "{bad}");
        }
        assert!(is_literal(b"a*.b") && !is_literal(b"a.*") && !is_literal(b"a.>"));
    }

    #[test]
    fn wildcards_stand_for_tokens() {
        for (filter, subject, expected) in [
            ("a.b", "a.b", true),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("*.*.c", "a.b.c", true),
            ("a", "b", false),
            ("a.b", "a.*", false),
        ] {
            assert_eq!(matches(filter.as_bytes(), subject.as_bytes()), expected, "{filter} {subject}");
        }
        for (filter, part, expected) in [
            ("a.>", "a.*", true),
            ("a.>", "a.b.>", true),
            ("a.*", "a.>", false),
            ("a.*", "a.*", true),
            ("a.b", "a.*", false),
            (">", ">", true),
            ("*", ">", false),
        ] {
            assert_eq!(covers(filter.as_bytes(), part.as_bytes()), expected, "{filter} {part}");
        }
        for (one, other, expected) in
            [("a.*", "*.b", true), ("a.>", "a.b.*", true), ("a.b", "a.c", false), ("a.*", "a.b.c", false)]
        {
            assert_eq!(overlaps(one.as_bytes(), other.as_bytes()), expected, "{one} {other}");
            assert_eq!(overlaps(other.as_bytes(), one.as_bytes()), expected, "{other} {one}");
        }
    }
}
