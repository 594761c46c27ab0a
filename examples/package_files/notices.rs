//! The licences of the libraries that are linked into the program. Most of them want their text to go with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Names that files with licences and notices begin with.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// Every text once, with the libraries that come with it.
pub(crate) fn collect() -> String {
    let linked = linked();
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--locked", "--format-version", "1"])).unwrap();
    let mut list = String::new();
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let name = format!("{} {}", text("name"), text("version"));
        if !linked.contains(&name) || text("name") == env!("CARGO_PKG_NAME") {
            continue;
        }
        list += &format!("{name}: {}\n", text("license"));
        for found in texts_in(Path::new(&text("manifest_path")).parent().unwrap()) {
            texts.entry(found).or_default().push(name.clone());
        }
    }
    let mut notices =
        format!("Libraries that are linked into snapsync, and their licences:\n\n{list}");
    for (text, names) in texts {
        notices += &format!("\n{}\n{}\n\n{text}\n", "=".repeat(78), names.join(", "));
    }
    notices
}

/// `name version` of everything that the program is made of; the tools that build it are not.
fn linked() -> BTreeSet<String> {
    let tree =
        cargo(&["tree", "--locked", "--prefix", "none", "--edges", "normal", "--format", "{p}"]);
    let name = |line: &str| {
        let mut words = line.split(' ');
        let (name, version) = (words.next()?, words.next()?);
        (!line.contains("(proc-macro)"))
            .then(|| format!("{name} {}", version.trim_start_matches('v')))
    };
    tree.lines().filter_map(name).collect()
}

fn texts_in(folder: &Path) -> BTreeSet<String> {
    let mut texts = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().to_uppercase();
        if path.is_file()
            && NAMES.iter().any(|begin| name.starts_with(begin))
            && let Ok(text) = std::fs::read_to_string(&path)
        {
            texts.insert(text.trim().replace("\r\n", "\n"));
        }
    }
    texts
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("run cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
