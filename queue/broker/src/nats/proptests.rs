//! The codec against arbitrary input.

use bytes::{BufMut, BytesMut};
use proptest::prelude::*;

use super::subject::{is_valid, matches};
use super::{Command, Parser, SubjectTree};

fn all(parser: &mut Parser, buffer: &mut BytesMut) -> (Vec<Command>, bool) {
    let mut commands = Vec::new();
    loop {
        match parser.next(buffer) {
            Ok(Some(command)) => commands.push(command),
            Ok(None) => return (commands, true),
            Err(_) => return (commands, false),
        }
    }
}

fn input() -> impl Strategy<Value = Vec<u8>> {
    let word = "[a-c.*>]{1,4}";
    let publish = (word, proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(subject, payload)| {
        let mut bytes = format!("PUB {subject} {}\r\n", payload.len()).into_bytes();
        bytes.extend_from_slice(&payload);
        bytes.extend_from_slice(b"\r\n");
        bytes
    });
    let line = prop_oneof![
        Just(b"PING\r\n".to_vec()),
        word.prop_map(|subject| format!("SUB {subject} 1\r\n").into_bytes()),
        Just(b"HPUB a b 12 14\r\nNATS/1.0\r\n\r\nhi\r\n".to_vec()),
        publish,
        proptest::collection::vec(any::<u8>(), 0..20),
    ];
    proptest::collection::vec(line, 0..12).prop_map(|lines| lines.concat())
}

proptest! {
    /// The same commands result, however the bytes are cut into portions.
    #[test]
    fn portions_make_no_difference(input in input(), cuts in proptest::collection::vec(1_usize..20, 0..40)) {
        let whole = all(&mut Parser::new(64), &mut BytesMut::from(&input[..]));
        let (mut parser, mut buffer, mut rest) = (Parser::new(64), BytesMut::new(), &input[..]);
        let mut commands = Vec::new();
        let mut is_well = true;
        for cut in cuts.into_iter().chain([usize::MAX]) {
            let (portion, left) = rest.split_at(cut.min(rest.len()));
            rest = left;
            buffer.put_slice(portion);
            let (more, well) = all(&mut parser, &mut buffer);
            commands.extend(more);
            is_well = well;
            if !well {
                break;
            }
        }
        prop_assert_eq!((commands, is_well), whole);
    }

    /// The tree finds the same filters as a check of each one.
    #[test]
    fn the_tree_agrees_with_the_filters(
        filters in proptest::collection::vec("[ab*>](\\.[ab*>]){0,3}", 0..12),
        subject in "[ab](\\.[ab]){0,3}",
    ) {
        let mut tree = SubjectTree::default();
        let filters: Vec<_> = filters.iter().filter(|filter| is_valid(filter.as_bytes())).collect();
        filters.iter().enumerate().for_each(|(value, filter)| tree.insert(filter.as_bytes(), value));
        let mut found = Vec::new();
        tree.find(subject.as_bytes(), &mut |value| found.push(*value));
        found.sort_unstable();
        let expected: Vec<_> =
            (0..filters.len()).filter(|value| matches(filters[*value].as_bytes(), subject.as_bytes())).collect();
        prop_assert_eq!(found, expected);
    }
}
