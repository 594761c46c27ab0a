//! The dependency policy of `deny.toml`, enforced with nothing but cargo itself: licences, banned crates, sources.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "test helpers panic with what is wrong"
)]

use std::collections::BTreeSet;
use std::process::Command;

#[test]
fn every_dependency_keeps_the_policy() {
    let policy = Policy::read();
    let packages = packages(&policy.targets);
    assert!(packages.len() > 50, "only {} packages: the list was misread", packages.len());
    let faults: Vec<String> = packages.iter().filter_map(|package| policy.fault(package)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_policy_can_fail() {
    let policy = Policy::read();
    let fault = |line: &str| policy.fault(&Package::parse(line)).unwrap_or_default();
    assert_eq!(fault("good v1.0.0|MIT OR GPL-3.0|"), "");
    assert_eq!(fault("derive v1.0.0 (proc-macro)|MIT| (*)"), "");
    assert_eq!(fault("snapsync v0.1.0 (/some/folder)|Apache-2.0|"), "");
    assert!(fault("ring v0.17.14|MIT|").contains("banned"));
    assert!(fault("viral v1.0.0|GPL-3.0|").contains("GPL-3.0"));
    assert!(fault("nameless v1.0.0||").contains("no licence"));
    assert!(fault("forked v1.0.0 (https://somewhere/forked#0123)|MIT|").contains("source"));
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"];
    let allowed: Vec<String> = allowed.map(str::to_owned).to_vec();
    let cases = [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("MIT/GPL-3.0", true),
        ("(GPL-3.0 OR MIT) AND Apache-2.0", true),
        ("GPL-3.0 OR MIT AND LGPL-3.0", false),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
        ("MIT WITH LLVM-exception", false),
        ("", false),
        ("MIT OR", false),
        ("(MIT", false),
        ("MIT MIT", false),
    ];
    for (expression, expected) in cases {
        assert_eq!(Licence::new(expression, &allowed).allows(), expected, "{expression:?}");
    }
}

/// The parts of `deny.toml` that are enforced here.
struct Policy {
    targets: Vec<String>,
    licences: Vec<String>,
    banned: Vec<String>,
}

impl Policy {
    fn read() -> Self {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml");
        let table: toml::Table = std::fs::read_to_string(file).unwrap().parse().unwrap();
        let list = |section: &str, key: &str| table[section][key].as_array().unwrap().clone();
        let text = |value: &toml::Value| value.as_str().unwrap().to_owned();
        Self {
            targets: list("graph", "targets").iter().map(text).collect(),
            licences: list("licenses", "allow").iter().map(text).collect(),
            banned: list("bans", "deny").iter().map(|entry| text(&entry["crate"])).collect(),
        }
    }

    /// What is wrong with a package, if anything is.
    fn fault(&self, package: &Package) -> Option<String> {
        let Package { name, version, licence, foreign } = package;
        if self.banned.contains(name) {
            return Some(format!("{name} {version} is banned by deny.toml"));
        }
        if licence.is_empty() {
            return Some(format!("{name} {version} has no licence expression"));
        }
        if !Licence::new(licence, &self.licences).allows() {
            return Some(format!(
                "{name} {version} has the licence {licence:?}, which deny.toml does not allow"
            ));
        }
        foreign.then(|| format!("{name} {version} does not have its source in cargo's registry"))
    }
}

/// A package as `cargo tree` shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    /// Empty if there is none.
    licence: String,
    /// Whether it comes from git. (`cargo tree` names a folder too, and nothing for cargo's own registry.)
    foreign: bool,
}

impl Package {
    /// Reads `name v1.0.0 (where it comes from)|licence|`.
    fn parse(line: &str) -> Self {
        let mut parts = line.split('|');
        let (what, licence) = (parts.next().unwrap(), parts.next().unwrap());
        let mut words = what.split(' ');
        let name = words.next().unwrap().to_owned();
        let version = words.next().unwrap().to_owned();
        let foreign = words.any(|word| word.contains("://") || word.starts_with("(registry"));
        Self { name, version, licence: licence.to_owned(), foreign }
    }
}

/// Every package that is built for any of the targets. From `cargo tree`, because `cargo metadata` lists optional
/// dependencies that no feature turns on.
fn packages(targets: &[String]) -> BTreeSet<Package> {
    let mut all = BTreeSet::new();
    for target in targets {
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--locked", "--prefix", "none", "--edges", "normal,build,dev"])
            .args(["--format", "{p}|{l}|", "--target", target])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        all.extend(text.lines().filter(|line| !line.is_empty()).map(Package::parse));
    }
    all
}

/// An SPDX expression being read: `OR` binds looser than `AND`, `WITH` belongs to its licence, an old `/` means `OR`.
struct Licence<'a> {
    tokens: Vec<String>,
    next: usize,
    allowed: &'a [String],
}

impl<'a> Licence<'a> {
    fn new(expression: &str, allowed: &'a [String]) -> Self {
        let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let tokens = spaced.split_whitespace().map(str::to_owned).collect();
        Self { tokens, next: 0, allowed }
    }

    /// False also for what cannot be read.
    fn allows(mut self) -> bool {
        self.any() == Some(true) && self.next == self.tokens.len()
    }

    fn any(&mut self) -> Option<bool> {
        let mut allowed = self.all()?;
        while self.take("OR") {
            allowed |= self.all()?;
        }
        Some(allowed)
    }

    fn all(&mut self) -> Option<bool> {
        let mut allowed = self.one()?;
        while self.take("AND") {
            allowed &= self.one()?;
        }
        Some(allowed)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            let allowed = self.any()?;
            return self.take(")").then_some(allowed);
        }
        let mut name = self.tokens.get(self.next)?.clone();
        self.next += 1;
        if self.take("WITH") {
            name = format!("{name} WITH {}", self.tokens.get(self.next)?);
            self.next += 1;
        }
        Some(self.allowed.contains(&name))
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.tokens.get(self.next).is_some_and(|next| next == token);
        self.next += usize::from(found);
        found
    }
}
