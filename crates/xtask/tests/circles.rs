//! Inside a crate, too, what is used stands below what uses it: no circle of modules, so that each
//! crate can be read from its bottom up.
//!
//! ```text
//! locks → client (locks.rs: use crate::client::LockMode) → node → tablet → locks
//! ```
//!
//! A file `foo.rs` and its children `foo/*.rs` are one family: a child continues its parent's
//! text, uses its private words and adds methods to its types, so parent and child count as one.
//! Circles between families are refused, and within a family circles between its children. The
//! crate's root has no such right: `lib.rs` is a table of contents, and what it re-exports
//! (`pub use`) belongs to the module that it names. A root that holds items of its own is one
//! family among the others.
//!
//! What is absent: this reads paths (`use`, `crate::…`, `super::…`), not types. A method called
//! on a value whose type is never named leaves no arrow. Tests may use everything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

const FREE: &[&str] =
    &["base", "cluster", "consensus", "gateway", "node", "storage", "transport", "txn"];

/// Those with circles yet, and where they come from. Whichever is free moves up.
const NOT_YET: &[(&str, &str)] = &[
    (
        "query",
        "What the root keeps for itself is used by those it calls: planner, rewrite, functions.",
    ),
    (
        "sql",
        "A session holds the engine, the engine its sessions and plans; views and wide use both.",
    ),
    (
        "sim",
        "In `machine` the hosts among the threads hold disks, and a disk asks whose thread it serves.",
    ),
    ("xtask", "The root holds how cargo is called, which the benchmarks that it lists use."),
];

/// A word of a file's code, or one character between words, and its line.
#[derive(Clone, Debug)]
struct Token {
    text: String,
    line: usize,
}

/// The code of a file without comments, literals and what is built for tests only.
fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let word = |at: usize| chars.get(at).is_some_and(|c| c.is_alphanumeric() || *c == '_');
    let starts =
        |at: usize, what: &str| what.chars().eq(chars[at..].iter().copied().take(what.len()));
    let (mut tokens, mut at, mut line) = (Vec::new(), 0, 1);
    while at < chars.len() {
        let from = at;
        // A raw string's quote: behind `r`, `br` or `cr` and hashes.
        let raw = ["r", "br", "cr"].into_iter().find_map(|prefix| {
            let hashes = chars[at..].iter().skip(prefix.len()).take_while(|c| **c == '#').count();
            let quote = at + prefix.len() + hashes;
            (starts(at, prefix) && chars.get(quote) == Some(&'"')).then_some((quote, hashes))
        });
        if let Some((quote, hashes)) = raw {
            let end = format!("\"{}", "#".repeat(hashes));
            at = quote + 1;
            while !starts(at, &end) {
                at += 1;
            }
            at += end.len();
        } else if starts(at, "//") {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "/*") {
            while !starts(at, "*/") {
                at += 1;
            }
            at += 2;
        } else if chars[at] == '"' {
            at += 1;
            while chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if chars[at] == '\'' && chars[at + 1] == '\\' {
            at += 3;
            while chars[at] != '\'' {
                at += 1;
            }
            at += 1;
        } else if chars[at] == '\'' && chars.get(at + 2) == Some(&'\'') {
            at += 3;
        } else if word(at) {
            while word(at) {
                at += 1;
            }
            tokens.push(Token { text: chars[from..at].iter().collect(), line });
        } else {
            at += if starts(at, "::") { 2 } else { 1 };
            if !chars[from].is_whitespace() {
                tokens.push(Token { text: chars[from..at].iter().collect(), line });
            }
        }
        line += chars[from..at].iter().filter(|c| **c == '\n').count();
    }
    without_tests(tokens)
}

fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut rest = &tokens[..];
    while let Some(token) = rest.first() {
        if is(rest, &["#", "[", "cfg", "(", "test", ")", "]"]) {
            // The item ends with its block, or with a semicolon outside of brackets.
            let mut depth = 0;
            let end = rest.iter().skip(7).position(|token| {
                match token.text.as_str() {
                    "{" | "(" | "[" => depth += 1,
                    "}" | ")" | "]" => depth -= 1,
                    _ => {}
                }
                depth == 0 && matches!(token.text.as_str(), "}" | ";")
            });
            rest = &rest[7 + end.expect("an item behind #[cfg(test)]") + 1..];
        } else {
            kept.push(token.clone());
            rest = &rest[1..];
        }
    }
    kept
}

fn is(tokens: &[Token], texts: &[&str]) -> bool {
    tokens.len() >= texts.len() && tokens.iter().zip(texts).all(|(token, text)| token.text == *text)
}

/// A module's way from the root of its crate; the root's own is empty.
type Name = Vec<String>;

struct Module {
    file: PathBuf,
    lines: Vec<String>,
    children: BTreeSet<String>,
    /// The paths that it names, with their lines; those that it only hands on left out.
    paths: Vec<(Vec<String>, usize)>,
    /// What a `use` brings into it: the name, and the path that it stands for.
    imports: BTreeMap<String, Vec<String>>,
}

fn read(dir: &Path, name: &[String], file: PathBuf, modules: &mut BTreeMap<Name, Module>) {
    let source = std::fs::read_to_string(&file);
    let source = source.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let tokens = tokens(&source);
    let mut module = Module {
        lines: source.lines().map(str::to_owned).collect(),
        file,
        children: BTreeSet::new(),
        paths: Vec::new(),
        imports: BTreeMap::new(),
    };
    let mut at = 0;
    while at < tokens.len() {
        let (rest, line) = (&tokens[at..], tokens[at].line);
        if rest.len() > 2 && rest[0].text == "mod" && rest[2].text == ";" {
            module.children.insert(rest[1].text.clone());
            at += 3;
        } else if rest[0].text == "use" {
            let hands_on = at > 0 && matches!(tokens[at - 1].text.as_str(), "pub" | ")");
            at += 1;
            let mut imports = Vec::new();
            tree(&tokens, &mut at, Vec::new(), &mut imports);
            for (alias, path) in imports {
                // What is only handed on is no use of it.
                if !hands_on || tokens.iter().filter(|token| token.text == alias).count() > 1 {
                    module.paths.push((path.clone(), line));
                }
                module.imports.insert(alias, path);
            }
        } else if is(&rest[1..], &["::"]) && (at == 0 || tokens[at - 1].text != "::") {
            let mut path = vec![rest[0].text.clone()];
            at += 1;
            while is(&tokens[at..], &["::"]) && tokens.get(at + 1).is_some_and(named) {
                path.push(tokens[at + 1].text.clone());
                at += 2;
            }
            module.paths.push((path, line));
        } else {
            at += 1;
        }
    }
    for child in module.children.clone() {
        let name: Name = name.iter().cloned().chain([child]).collect();
        let mut file = dir.to_owned();
        file.extend(&name);
        let file = match file.is_dir() && file.join("mod.rs").exists() {
            true => file.join("mod.rs"),
            false => file.with_extension("rs"),
        };
        read(dir, &name, file, modules);
    }
    modules.insert(name.to_owned(), module);
}

fn named(token: &Token) -> bool {
    token.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The paths of a `use` from `at` on, each with the name that it brings.
fn tree(
    tokens: &[Token],
    at: &mut usize,
    mut path: Vec<String>,
    imports: &mut Vec<(String, Vec<String>)>,
) {
    loop {
        let token = &tokens[*at];
        *at += 1;
        match token.text.as_str() {
            "::" => {}
            "{" => {
                while tokens[*at].text != "}" {
                    tree(tokens, at, path.clone(), imports);
                    if tokens[*at].text == "," {
                        *at += 1;
                    }
                }
                *at += 1;
                return;
            }
            "as" => {
                imports.push((tokens[*at].text.clone(), path));
                *at += 1;
                return;
            }
            "self" if !path.is_empty() => {}
            text => path.push(text.to_owned()),
        }
        if matches!(tokens[*at].text.as_str(), "," | "}" | ";") {
            imports.push((path.last().unwrap().clone(), path));
            return;
        }
    }
}

/// The module that holds what `path` names when it stands in `from`; none for another crate's.
fn holder(
    modules: &BTreeMap<Name, Module>,
    from: &Name,
    path: &[String],
    depth: usize,
) -> Option<Name> {
    let (first, mut rest) = path.split_first()?;
    let mut at = from.clone();
    match first.as_str() {
        "crate" => at.clear(),
        "self" => {}
        "super" => drop(at.pop()?),
        child if modules[from].children.contains(child) => at.push(child.to_owned()),
        // Imported: the import itself is an arrow.
        _ => return None,
    }
    while let Some((next, after)) = rest.split_first() {
        if next == "super" {
            at.pop()?;
        } else if modules[&at].children.contains(next) {
            at.push(next.clone());
        } else if let Some(import) = modules[&at].imports.get(next)
            && depth < 8
        {
            let whole: Vec<String> = import.iter().chain(after).cloned().collect();
            return holder(modules, &at, &whole, depth + 1);
        } else {
            return Some(at);
        }
        rest = after;
    }
    Some(at)
}

/// Arrows between families: who uses whom, and one line of code that does.
type Arrows = BTreeMap<String, BTreeMap<String, String>>;

/// The arrows between the children of each module that has some, of a library and of the program
/// beside it.
fn levels(dir: &Path) -> Vec<Arrows> {
    let roots = ["lib.rs", "main.rs"].map(|root| dir.join(root));
    roots.into_iter().filter(|root| root.exists()).flat_map(|root| levels_of(dir, root)).collect()
}

fn levels_of(dir: &Path, root: PathBuf) -> Vec<Arrows> {
    let mut modules = BTreeMap::new();
    read(dir, &[], root, &mut modules);
    let mut levels: BTreeMap<Name, Arrows> = BTreeMap::new();
    for (from, module) in &modules {
        for (path, line) in &module.paths {
            let Some(to) = holder(&modules, from, path, 0) else { continue };
            let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            // Parent and child are one, but for the root.
            if *from == to || shared > 0 && (shared == from.len() || shared == to.len()) {
                continue;
            }
            let family = |name: &Name| match name.get(..shared + 1) {
                Some(name) => name.join("::"),
                None => "the root".to_owned(),
            };
            let file = module.file.strip_prefix(dir).unwrap().display();
            let code = format!("{file}:{line}: {}", module.lines[line - 1].trim());
            let arrows = levels.entry(from[..shared].to_vec()).or_default();
            arrows.entry(family(from)).or_default().entry(family(&to)).or_insert(code);
        }
    }
    levels.into_values().collect()
}

/// The shortest circle, one line for each arrow.
fn circle(arrows: &Arrows) -> Option<String> {
    let ways = arrows.keys().filter_map(|start| way_back(arrows, start));
    let way = ways.min_by_key(Vec::len)?;
    let names: Vec<&str> = way.iter().map(|name| name.as_str()).collect();
    let lines = way.windows(2).map(|pair| format!("\n    {}", arrows[pair[0]][pair[1]]));
    Some(names.join(" → ") + &lines.collect::<String>())
}

fn way_back<'a>(arrows: &'a Arrows, start: &'a String) -> Option<Vec<&'a String>> {
    let mut before: BTreeMap<&String, &String> = BTreeMap::new();
    let mut next = VecDeque::from([start]);
    while let Some(at) = next.pop_front() {
        for to in arrows.get(at).into_iter().flat_map(BTreeMap::keys) {
            if !before.contains_key(to) {
                before.insert(to, at);
                next.push_back(to);
            }
        }
    }
    let mut way = vec![start, before.get(start)?];
    while way[way.len() - 1] != start {
        way.push(before[way[way.len() - 1]]);
    }
    way.reverse();
    Some(way)
}

/// The crates, and where their sources are.
fn sources() -> BTreeMap<String, PathBuf> {
    let crates = std::fs::read_dir("..").unwrap().map(|entry| entry.unwrap().path());
    let all = crates.chain([PathBuf::from("../../sim")]).filter(|path| path.join("src").is_dir());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    all.map(|path| (name(&path), path.join("src"))).collect()
}

#[test]
fn no_module_uses_one_that_uses_it() {
    let mut wrong = Vec::new();
    let mut sources = sources();
    let mut circles = |name: &str| -> Vec<String> {
        let dir = sources.remove(name).unwrap_or_else(|| panic!("no crate {name}"));
        levels(&dir).iter().filter_map(circle).collect()
    };
    for name in FREE {
        wrong.extend(circles(name).iter().map(|circle| format!("{name}: {circle}")));
    }
    for (name, _) in NOT_YET {
        if circles(name).is_empty() {
            wrong.push(format!("{name} has no circles any more: move it to FREE"));
        }
    }
    wrong.extend(sources.keys().map(|name| format!("{name} is in neither list")));
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The reading above, on a crate of four files.
#[test]
fn a_circle_is_found_and_printed() {
    let dir = std::env::temp_dir().join(format!("atoll-circles-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("locks")).unwrap();
    let files = [
        ("lib.rs", "mod client;\nmod locks;\npub use client::LockMode;\n"),
        ("client.rs", "use crate::locks::{Table, grant};\npub enum LockMode { Shared }\n"),
        (
            "locks.rs",
            "//! As [`crate::client`] says.\nmod grant;\npub use grant::grant;\n\
             #[cfg(test)]\nmod tests {\n    use crate::client::Nobody;\n}\n\
             pub struct Table(&'static str);\nconst C: char = '\"';\n\
             const S: &str = \"crate::client::Nobody\";\n",
        ),
        ("locks/grant.rs", "use super::Table;\npub fn grant(_: Table) {}\n"),
    ];
    for (file, text) in files {
        std::fs::write(dir.join(file), text).unwrap();
    }
    let none: Vec<String> = levels(&dir).iter().filter_map(circle).collect();
    assert_eq!(none, Vec::<String>::new(), "a child may use its parent, a test may use everything");

    let upwards = "use super::Table;\npub fn grant(_: crate::LockMode) {}\n";
    std::fs::write(dir.join("locks/grant.rs"), upwards).unwrap();
    let found: Vec<String> = levels(&dir).iter().filter_map(circle).collect();
    let expected = "client → locks → client\n    \
                    client.rs:1: use crate::locks::{Table, grant};\n    \
                    locks/grant.rs:2: pub fn grant(_: crate::LockMode) {}";
    assert_eq!(found, [expected]);
    std::fs::remove_dir_all(dir).unwrap();
}
