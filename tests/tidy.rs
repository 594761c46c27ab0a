//! House rules that no linter knows, as tests over the source tree.

#![allow(clippy::unwrap_used, reason = "a file that cannot be read fails the test")]

use std::path::{Path, PathBuf};

const LINES_MAX: usize = 600;
const WIDTH_MAX: usize = 120;

/// Words that mark work left undone. Put together here, so that this file does not hold them.
const UNDONE: [&str; 3] = [concat!("to", "do"), concat!("fix", "me"), concat!("xx", "x")];

/// Places that belong to one machine or one network, never to the project.
const PLACES: [&str; 8] = [
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("deb.debian", ".org"),
    concat!("docker", ".io"),
    concat!("fastdl", ".mongodb"),
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
];

#[test]
fn source_files_are_small_enough_to_be_read_at_once() {
    let mut faults = Vec::new();
    for (file, text) in read(&["src", "tests", "examples", "benches"], &["rs"]) {
        let lines = text.lines().count();
        if lines > LINES_MAX {
            faults.push(format!("{}: {lines} lines; at most {LINES_MAX}", file.display()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn lines_are_narrow_enough() {
    let mut faults = Vec::new();
    for (file, text) in read(&["src", "tests", "examples", "benches"], &["rs"]) {
        // One row of a table a line: wrapped, the table could not be read.
        if file.ends_with("src/config/keys.rs") {
            continue;
        }
        for (number, line) in (1..).zip(text.lines()) {
            if line.chars().count() > WIDTH_MAX {
                faults.push(format!("{}:{number}: wider than {WIDTH_MAX}", file.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn nothing_is_marked_as_undone() {
    let mut faults = Vec::new();
    for (file, text) in read(&["src", "tests", "examples", "benches", "scripts"], &["rs", "sh"]) {
        for (number, line) in (1..).zip(text.lines()) {
            let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if words.map(str::to_lowercase).any(|word| UNDONE.contains(&word.as_str())) {
                faults.push(format!("{}:{number}: {}", file.display(), line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_module_says_what_it_is() {
    let sources = read(&["src", "tests", "examples", "benches"], &["rs"]);
    assert!(sources.len() > 5, "only {} files: the tree was misread", sources.len());
    let silent = sources.iter().filter(|(_, text)| !text.starts_with("//! "));
    let faults: Vec<String> = silent.map(|(file, _)| file.display().to_string()).collect();
    assert!(faults.is_empty(), "without a first line of module documentation: {faults:?}");
}

#[test]
fn no_machine_or_registry_is_named() {
    let folders =
        ["src", "tests", "examples", "benches", "scripts", "docs", "packaging", ".ci", "."];
    let kinds = ["rs", "sh", "md", "toml", "yml", "yaml", "service", "run", "Makefile"];
    let mut faults = Vec::new();
    for (file, text) in read(&folders, &kinds) {
        for place in PLACES.iter().filter(|place| text.contains(**place)) {
            faults.push(format!("{} names {place}", file.display()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The tables of docs/oplog.md name tests, and none that are not there.
#[test]
fn every_test_that_the_documentation_names_exists() {
    let files = read(&["src", "tests"], &["rs"]);
    let is_there = |name: &str| {
        let name = name.trim_end_matches('*');
        files
            .iter()
            .any(|(file, text)| file.to_string_lossy().contains(name) || text.contains(name))
    };
    let docs = read(&["docs"], &["oplog.md"]);
    let (_, scenarios) = docs[0].1.split_once("## Scenarios").unwrap();
    let rows = scenarios.lines().filter_map(|line| line.trim_end_matches('|').rsplit_once('|'));
    let names = rows.flat_map(|(_, tests)| tests.split('`').skip(1).step_by(2));
    let names: Vec<&str> = names.map(|name| name.rsplit("::").next().unwrap()).collect();
    assert!(names.len() > 100, "only {} names: the tables were misread", names.len());
    let missing: Vec<&&str> = names.iter().filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty(), "docs/oplog.md names tests that are not there: {missing:?}");
}

/// The files below these folders (of the top folder, only itself) whose name ends with one of `kinds`.
fn read(folders: &[&str], kinds: &[&str]) -> Vec<(PathBuf, String)> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in folders {
        list(&top.join(folder), *folder != ".", &mut files);
    }
    let wanted = |file: &PathBuf| {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        kinds.iter().any(|kind| name == *kind || name.ends_with(&format!(".{kind}")))
    };
    let texts = files.into_iter().filter(wanted).map(|file| {
        let text = std::fs::read_to_string(&file).unwrap();
        (file.strip_prefix(top).unwrap().to_owned(), text)
    });
    texts.collect()
}

fn list(folder: &Path, deep: bool, files: &mut Vec<PathBuf>) {
    // Not every folder exists yet.
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_file() {
            files.push(path);
        } else if deep && path.is_dir() {
            list(&path, deep, files);
        }
    }
}
