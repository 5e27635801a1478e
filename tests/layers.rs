//! The rooms of `src` stand in the order of `src/lib.rs`, and each imports only rooms that stand before it. The files
//! of one room form no circles.
//!
//! The compiler allows both. Text is searched instead of a compiler's data, so that the test needs no other tool: the
//! `use` declarations and the paths that begin with `crate`, `super` or `self`, without comments and test modules.

use regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

/// Imports of a later room that are allowed, with the reason.
const ALLOWED_IMPORTS: &[(&str, &str, &str)] = &[];

/// Pairs of files of one room that may import each other, with the reason.
const ALLOWED_CIRCLES: &[(&str, &str, &str)] = &[];

/// The most exceptions that [`ALLOWED_CIRCLES`] may hold.
const MAX_CIRCLES: usize = 2;

/// A `use` declaration, with its tree.
static DECLARATION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?m)^\s*(?:pub(?:\([^)]*\))?\s+)?use\s+([^;]+);").expect("a valid regex"));
/// A path that begins with a keyword.
static INLINE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\b(?:crate|super|self)(?:::\w+)+").expect("a valid regex"));

/// A module's path below the crate, such as `["http", "server"]`.
type ModulePath = Vec<String>;

/// A file of `src` with the paths that it names.
struct Module {
    /// Path below `src`, for messages.
    file: String,
    /// Paths below the crate that the file names.
    paths: BTreeSet<ModulePath>,
    /// Names that the file imports, and the paths that they stand for.
    imports: BTreeMap<String, ModulePath>,
}

/// Every module of `src` but tests, by its path.
fn modules() -> BTreeMap<ModulePath, Module> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of src") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "tests" {
                    folders.push(path);
                }
                continue;
            }
            if !name.ends_with(".rs") || ["tests.rs", "lib.rs", "main.rs"].contains(&&*name) {
                continue;
            }
            let file = path.strip_prefix(&root).expect("the file is below src").display().to_string();
            let stem = file.trim_end_matches(".rs").trim_end_matches("/mod");
            let module: ModulePath = stem.split('/').map(ToString::to_string).collect();
            let (paths, imports) = read(&module, &fs::read_to_string(&path).expect("text"));
            modules.insert(module, Module { file, paths, imports });
        }
    }
    modules
}

/// The paths that a file names, and its imports by name.
fn read(module: &ModulePath, text: &str) -> (BTreeSet<ModulePath>, BTreeMap<String, ModulePath>) {
    let code = without_tests_and_comments(text);
    let mut paths = BTreeSet::new();
    let mut imports = BTreeMap::new();
    for captures in DECLARATION.captures_iter(&code) {
        let tree: String = captures[1].split_whitespace().collect::<Vec<_>>().join(" ");
        for (path, name) in flatten(&tree) {
            let absolute = absolute(module, &path);
            paths.insert(absolute.clone());
            imports.insert(name, absolute);
        }
    }
    let rest = DECLARATION.replace_all(&code, "");
    for found in INLINE.find_iter(&rest) {
        let path: Vec<String> = found.as_str().split("::").map(ToString::to_string).collect();
        paths.insert(absolute(module, &path));
    }
    (paths, imports)
}

/// The code without comments, and without items under `#[cfg(test)]`. Formatted code closes an item at the indentation
/// of its first line.
fn without_tests_and_comments(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with("#[cfg(test)]") {
            let indentation = &line[..line.len() - line.trim_start().len()];
            let end = format!("{indentation}}}");
            for line in lines.by_ref() {
                let opens = line.contains('{') && !line.contains('}');
                if line.starts_with(&end)
                    || (line.ends_with(['}', ';']) && !opens && is_at(line, indentation))
                {
                    break;
                }
            }
            continue;
        }
        code.push_str(line.split("//").next().unwrap_or_default());
        code.push('\n');
    }
    code
}

fn is_at(line: &str, indentation: &str) -> bool {
    line.strip_prefix(indentation).is_some_and(|rest| !rest.starts_with(' '))
}

/// The paths of a `use` tree, each with the name that it brings into scope.
fn flatten(tree: &str) -> Vec<(Vec<String>, String)> {
    let tree = tree.trim();
    if let Some((prefix, rest)) = tree.split_once('{') {
        let prefix: Vec<String> =
            prefix.split("::").map(str::trim).filter(|part| !part.is_empty()).map(String::from).collect();
        let inner = rest.trim_end().strip_suffix('}').expect("a closed tree");
        return split_at_commas(inner)
            .into_iter()
            .flat_map(flatten)
            .map(|(path, name)| {
                if path == ["self"] {
                    (prefix.clone(), prefix.last().cloned().unwrap_or_default())
                } else {
                    (prefix.iter().cloned().chain(path).collect(), name)
                }
            })
            .collect();
    }
    if tree.is_empty() {
        return Vec::new();
    }
    let (path, alias) = tree.split_once(" as ").map_or((tree, None), |(path, alias)| (path, Some(alias)));
    let path: Vec<String> = path.split("::").map(|part| part.trim().to_string()).collect();
    let name = alias.map_or_else(|| path.last().cloned().unwrap_or_default(), ToString::to_string);
    vec![(path, name)]
}

fn split_at_commas(list: &str) -> Vec<&str> {
    let mut depth = 0;
    list.split(|character| {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0
    })
    .collect()
}

/// A path below the crate. A path that begins with another name is taken as one of a child.
fn absolute(module: &ModulePath, path: &[String]) -> ModulePath {
    let mut base = module.clone();
    let mut rest = path;
    match path.first().map(String::as_str) {
        Some("crate") => return path[1..].to_vec(),
        Some("self") => rest = &path[1..],
        _ => {
            while rest.first().is_some_and(|part| part == "super") {
                base.pop();
                rest = &rest[1..];
            }
        }
    }
    base.into_iter().chain(rest.iter().cloned()).collect()
}

/// The module that declares what a path names; re-exports are followed.
fn resolve(modules: &BTreeMap<ModulePath, Module>, path: &[String], depth: usize) -> Option<ModulePath> {
    let n_parts = (1..=path.len()).rev().find(|n_parts| modules.contains_key(&path[..*n_parts]))?;
    let (found, rest) = path.split_at(n_parts);
    let reexported = rest.first().and_then(|name| modules[found].imports.get(name));
    match reexported {
        Some(target) if depth > 0 && target != path => {
            resolve(modules, target, depth - 1).or_else(|| Some(found.to_vec()))
        }
        _ => Some(found.to_vec()),
    }
}

/// The rooms, in the order of `src/lib.rs`.
fn rooms() -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).expect("text");
    let declaration = Regex::new(r"(?m)^(?:pub )?mod (\w+);").expect("a regex");
    declaration.captures_iter(&text).map(|captures| captures[1].to_string()).collect()
}

#[test]
fn rooms_import_only_earlier_rooms() {
    let rooms = rooms();
    let position = |room: &str| rooms.iter().position(|other| other == room);
    let mut wrong: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for (path, module) in modules() {
        let room = &path[0];
        let own = position(room).unwrap_or_else(|| panic!("lib.rs does not declare {room}"));
        for target in module.paths.iter().filter_map(|path| path.first()) {
            if position(target).is_some_and(|target| target > own) {
                wrong.entry((room.clone(), target.clone())).or_default().push(module.file.clone());
            }
        }
    }
    check_table("imports of a later room", ALLOWED_IMPORTS, wrong);
}

#[test]
fn files_of_one_room_form_no_circles() {
    assert!(ALLOWED_CIRCLES.len() <= MAX_CIRCLES, "{} circles are allowed", ALLOWED_CIRCLES.len());
    let modules = modules();
    let mut edges = BTreeSet::new();
    for (path, module) in &modules {
        for target in module.paths.iter().filter_map(|target| resolve(&modules, target, 4)) {
            let is_line = path.starts_with(&target) || target.starts_with(path);
            if target[0] == path[0] && !is_line {
                edges.insert((&module.file, &modules[&target].file));
            }
        }
    }
    let circles = edges.iter().filter(|(from, to)| from < to && edges.contains(&(*to, *from)));
    let circles = circles.map(|(from, to)| (((*from).clone(), (*to).clone()), Vec::new())).collect();
    check_table("circles between files", ALLOWED_CIRCLES, circles);
}

/// Fails if a pair stands in only one of the two: the table of exceptions, or the code.
fn check_table(what: &str, allowed: &[(&str, &str, &str)], found: BTreeMap<(String, String), Vec<String>>) {
    let is_allowed =
        |pair: &(String, String)| allowed.iter().any(|(from, to, _)| *from == pair.0 && *to == pair.1);
    let wrong: Vec<String> = found
        .iter()
        .filter(|(pair, _)| !is_allowed(pair))
        .map(|((from, to), files)| format!("{from} -> {to} {}", files.join(", ")))
        .collect();
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
    for (from, to, _) in allowed {
        let pair = (from.to_string(), to.to_string());
        assert!(found.contains_key(&pair), "{what}: {from} -> {to} is gone; remove it from the table");
    }
}

#[test]
fn the_reader_finds_paths() {
    let module = ["http".to_string(), "server".to_string()].to_vec();
    let text = "\
use super::{access::{self, Policy as P}, body};
pub(crate) use crate::time::DAY_MS;
// use crate::cli;
fn f() -> crate::prom::Labels { self::inner::g() }
#[cfg(test)]
use crate::train;
#[cfg(test)]
mod tests {
    use crate::pipeline;
}
";
    let (paths, imports) = read(&module, text);
    let paths: Vec<String> = paths.iter().map(|path| path.join("::")).collect();
    let expected = [
        "http::access",
        "http::access::Policy",
        "http::body",
        "http::server::inner::g",
        "prom::Labels",
        "time::DAY_MS",
    ];
    assert_eq!(paths, expected);
    assert_eq!(imports["P"].join("::"), "http::access::Policy");
}
