//! Filters with values, looked up by literal subject, token by token.

use std::collections::HashMap;

/// A tree of tokens; each filter may hold any number of values.
#[derive(Debug)]
pub(crate) struct SubjectTree<T> {
    root: Node<T>,
}

#[derive(Debug)]
struct Node<T> {
    literal: HashMap<Box<[u8]>, Node<T>>,
    /// `*`.
    any: Option<Box<Node<T>>>,
    /// Values of filters that end here.
    here: Vec<T>,
    /// Values of filters that end with a `>` below here.
    below: Vec<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { literal: HashMap::new(), any: None, here: Vec::new(), below: Vec::new() }
    }
}

impl<T> Default for SubjectTree<T> {
    fn default() -> Self {
        Self { root: Node::default() }
    }
}

impl<T> Node<T> {
    fn is_empty(&self) -> bool {
        self.literal.is_empty() && self.any.is_none() && self.here.is_empty() && self.below.is_empty()
    }
}

impl<T: PartialEq> SubjectTree<T> {
    /// Adds a value under a valid filter.
    pub(crate) fn insert(&mut self, filter: &[u8], value: T) {
        let mut node = &mut self.root;
        for token in filter.split(|byte| *byte == b'.') {
            node = match token {
                b">" => {
                    node.below.push(value);
                    return;
                }
                b"*" => node.any.get_or_insert_default(),
                // Look up before insertion, so that a known token is not copied.
                token if node.literal.contains_key(token) => node.literal.get_mut(token).expect("it was just found"),
                token => node.literal.entry(token.into()).or_default(),
            };
        }
        node.here.push(value);
    }

    /// Removes one value of a filter, and the branch if it was the last.
    pub(crate) fn remove(&mut self, filter: &[u8], value: &T) {
        let tokens: Vec<&[u8]> = filter.split(|byte| *byte == b'.').collect();
        remove(&mut self.root, &tokens, value);
    }

    /// Calls `found` with the values of every filter that the literal subject matches.
    pub(crate) fn find<'a>(&'a self, subject: &[u8], found: &mut impl FnMut(&'a T)) {
        find(&self.root, Some(subject), found);
    }

    /// Whether any filter matches.
    pub(crate) fn has(&self, subject: &[u8]) -> bool {
        let mut any = false;
        self.find(subject, &mut |_| any = true);
        any
    }
}

/// Walks the tokens of `rest`; `None` is after the last.
fn find<'a, T>(node: &'a Node<T>, rest: Option<&[u8]>, found: &mut impl FnMut(&'a T)) {
    let Some(rest) = rest else {
        node.here.iter().for_each(found);
        return;
    };
    node.below.iter().for_each(&mut *found);
    let (token, rest) = match memchr::memchr(b'.', rest) {
        Some(dot) => (&rest[..dot], Some(&rest[dot + 1..])),
        None => (rest, None),
    };
    if let Some(next) = node.literal.get(token) {
        find(next, rest, found);
    }
    if let Some(next) = &node.any {
        find(next, rest, found);
    }
}

fn remove<T: PartialEq>(node: &mut Node<T>, tokens: &[&[u8]], value: &T) {
    let drop_from = |values: &mut Vec<T>| {
        if let Some(position) = values.iter().position(|found| found == value) {
            values.swap_remove(position);
        }
    };
    match tokens {
        [] => drop_from(&mut node.here),
        [b">"] => drop_from(&mut node.below),
        [b"*", rest @ ..] => {
            if let Some(next) = &mut node.any {
                remove(next, rest, value);
                if next.is_empty() {
                    node.any = None;
                }
            }
        }
        [token, rest @ ..] => {
            if let Some(next) = node.literal.get_mut(*token) {
                remove(next, rest, value);
                if next.is_empty() {
                    node.literal.remove(*token);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(tree: &SubjectTree<u32>, subject: &str) -> Vec<u32> {
        let mut values = Vec::new();
        tree.find(subject.as_bytes(), &mut |value| values.push(*value));
        values.sort_unstable();
        values
    }

    #[test]
    fn a_subject_finds_every_filter_that_stands_for_it() {
        let filters = ["a.b", "a.*", "a.>", ">", "*.b", "a", "a.b"];
        let mut tree = SubjectTree::default();
        for (value, filter) in filters.iter().enumerate() {
            tree.insert(filter.as_bytes(), value as u32);
        }
        assert_eq!(found(&tree, "a.b"), [0, 1, 2, 3, 4, 6]);
        assert_eq!(found(&tree, "a"), [3, 5]);
        assert_eq!(found(&tree, "a.x.y"), [2, 3]);
        for (value, filter) in filters.iter().enumerate() {
            tree.remove(filter.as_bytes(), &(value as u32));
        }
        assert!(tree.root.is_empty(), "no branch is left behind");
    }
}
