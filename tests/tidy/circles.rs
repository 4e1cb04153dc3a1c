//! No file needs another that needs it.
//!
//! A file is a module. What it needs is read from its imports and from paths that begin with `crate`,
//! `super` or `self`; a name that a module passes on with `pub use` leads to where it comes from. Unit
//! tests are left out, and so is a module's use of its own children by their bare names: a parent and
//! its children are read together.

use std::collections::{BTreeMap, BTreeSet};

use super::{files, read};

/// Folders with the modules of one crate each.
const CRATES: [&str; 6] = ["api/src", "api/cli", "worker/src", "models/src", "queue/src", "queue/broker/src"];

/// What a file says of others.
#[derive(Default)]
struct Module {
    needs: Vec<Vec<String>>,
    /// Names that it passes on, and their paths.
    passes_on: BTreeMap<String, Vec<String>>,
}

type Modules = BTreeMap<Vec<String>, Module>;

#[test]
fn no_file_needs_one_that_needs_it() {
    for folder in CRATES {
        let modules = modules(folder);
        let needs: BTreeMap<_, BTreeSet<_>> = modules
            .iter()
            .map(|(name, module)| {
                let found = module.needs.iter().filter_map(|path| resolve(&modules, path, 0));
                (name.clone(), found.filter(|other| other != name).collect())
            })
            .collect();
        for name in modules.keys() {
            if let Some(way) = way_back(&needs, name) {
                let way: Vec<String> = way.iter().map(|part| part.join("::")).collect();
                panic!("{folder}: a circle: {}", way.join(" needs "));
            }
        }
    }
}

#[test]
fn a_circle_is_found() {
    let mut modules = Modules::new();
    for (name, text) in [
        ("a", "use super::b::{Thing, other as another};"),
        ("b", "pub(crate) use self::c::Thing;\nfn f() { crate::d::g(); }"),
        ("c", "struct Thing; // use crate::a;"),
        ("d", "#[cfg(test)]\nmod tests {\n    use crate::a;\n}"),
    ] {
        modules.insert(vec![name.to_owned()], parse(text, &[name.to_owned()]));
    }
    modules.insert(Vec::new(), Module::default());
    let needs = |name: &str| {
        let found = modules[&vec![name.to_owned()]].needs.iter().filter_map(|path| resolve(&modules, path, 0));
        found.map(|path| path.join("::")).collect::<Vec<_>>()
    };
    assert_eq!(needs("a"), ["b", "b"], "`c` is not a child of `b` here, so the name leads to `b` itself");
    assert_eq!(needs("b"), ["d"]);
    assert!(needs("c").is_empty() && needs("d").is_empty(), "comments and tests do not count");
}

/// The modules below a folder, by their paths in the crate.
fn modules(folder: &str) -> Modules {
    let mut modules = Modules::new();
    for file in files().iter().filter(|name| name.ends_with(".rs") && !name.ends_with("tests.rs")) {
        let Some(inside) = file.strip_prefix(&format!("{folder}/")) else { continue };
        let mut path: Vec<String> = inside.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if path.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
            path.pop();
        }
        let module = parse(&read(file), &path);
        modules.insert(path, module);
    }
    modules
}

/// Reads what a module of this path needs and passes on.
fn parse(text: &str, own: &[String]) -> Module {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let mut module = Module::default();
    let mut rest = String::new();
    for statement in code.split_inclusive(';') {
        // The last statement before a `;` may stand behind a block's end.
        let start = statement.rfind("\n\n").map_or(0, |at| at + 2);
        let words = statement[start..].trim().trim_end_matches(';');
        let words = words.rsplit_once('}').filter(|(_, tail)| tail.contains("use ")).map_or(words, |(_, tail)| tail);
        let is_public = words.trim_start().starts_with("pub");
        let import = words.split_once("use ").filter(|(before, _)| {
            let before = before.trim();
            before.is_empty() || before.starts_with("pub") || before.starts_with("#[")
        });
        let Some((_, tree)) = import else {
            rest.push_str(statement);
            continue;
        };
        for (path, name) in expand(tree, "") {
            let path = absolute(own, &path);
            if is_public {
                module.passes_on.insert(name, path);
            } else {
                module.needs.push(path);
            }
        }
    }
    for word in rest.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')) {
        if ["crate::", "super::", "self::"].iter().any(|start| word.starts_with(start)) {
            module.needs.push(absolute(own, word));
        }
    }
    module
}

/// All paths of an import, each with the name that it gets.
fn expand(tree: &str, before: &str) -> Vec<(String, String)> {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in tree.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().expect("it begins with one").push(c);
    }
    let mut paths = Vec::new();
    for part in parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty()) {
        if let Some((head, inner)) = part.split_once('{') {
            let inner = inner.rsplit_once('}').map_or(inner, |(inner, _)| inner);
            paths.extend(expand(inner, &format!("{before}{}", head.trim())));
        } else {
            let (path, alias) = part.split_once(" as ").map_or((part, None), |(path, alias)| (path, Some(alias)));
            let path = format!("{before}{}", path.trim());
            let path = path.strip_suffix("::self").unwrap_or(&path).to_owned();
            let last = path.rsplit("::").next().unwrap_or_default().to_owned();
            paths.push((path, alias.map_or(last, |alias| alias.trim().to_owned())));
        }
    }
    paths
}

/// A path from the crate's root; one that begins with another word may be a child's, or another crate's.
fn absolute(own: &[String], path: &str) -> Vec<String> {
    let mut base = own.to_vec();
    let mut words = path.split("::").filter(|word| !word.is_empty()).peekable();
    if words.peek() == Some(&"crate") {
        words.next();
        base.clear();
    }
    while let Some(word) = words.next_if(|word| ["super", "self"].contains(word)) {
        if word == "super" {
            base.pop();
        }
    }
    base.extend(words.map(str::to_owned));
    base
}

/// The module that a path leads to.
fn resolve(modules: &Modules, path: &[String], depth: u32) -> Option<Vec<String>> {
    let found = (0..=path.len()).rev().find(|length| modules.contains_key(&path[..*length]))?;
    let (name, rest) = path.split_at(found);
    if let Some(passed) = rest.first().and_then(|first| modules[name].passes_on.get(first)).filter(|_| depth < 8) {
        let further: Vec<String> = passed.iter().chain(&rest[1..]).cloned().collect();
        return resolve(modules, &further, depth + 1);
    }
    Some(name.to_vec())
}

/// The shortest way from a module back to itself.
fn way_back<'a>(
    needs: &'a BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
    start: &'a Vec<String>,
) -> Option<Vec<&'a Vec<String>>> {
    let mut ways = vec![vec![start]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            for next in needs.get(*way.last()?)? {
                let mut further = way.clone();
                further.push(next);
                if next == start {
                    return Some(further);
                }
                if seen.insert(next) {
                    longer.push(further);
                }
            }
        }
        ways = longer;
    }
    None
}
