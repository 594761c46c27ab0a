//! The dependency policy of `deny.toml`, enforced with nothing but `cargo metadata`: licences, banned crates, sources.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "test helpers panic with what is wrong"
)]

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

#[test]
fn every_dependency_keeps_the_policy() {
    let policy = Policy::read();
    let packages = packages(&policy.targets);
    assert!(packages.len() > 50, "only {} packages: the metadata was misread", packages.len());
    let faults: Vec<String> =
        packages.values().filter_map(|package| policy.fault(package)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_policy_can_fail() {
    let policy = Policy::read();
    let package = |name: &str, license: Value, source: Value| serde_json::json!({"name": name, "version": "1.0.0", "license": license, "source": source});
    let registry = || Value::from("registry+somewhere");
    let fault = |package: &Value| policy.fault(package).unwrap_or_default();
    assert_eq!(fault(&package("good", "MIT OR GPL-3.0".into(), registry())), "");
    assert!(fault(&package("ring", "MIT".into(), registry())).contains("banned"));
    assert!(fault(&package("viral", "GPL-3.0".into(), registry())).contains("GPL-3.0"));
    assert!(fault(&package("nameless", Value::Null, registry())).contains("no licence"));
    assert!(fault(&package("forked", "MIT".into(), "git+somewhere".into())).contains("source"));
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
        assert_eq!(Licence::new(expression, &allowed).is_allowed(), expected, "{expression:?}");
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

    /// What is wrong with a package of `cargo metadata`, if anything is.
    fn fault(&self, package: &Value) -> Option<String> {
        let name = package["name"].as_str().unwrap();
        let what = format!("{name} {}", package["version"].as_str().unwrap());
        if self.banned.iter().any(|banned| banned == name) {
            return Some(format!("{what} is banned by deny.toml"));
        }
        let Some(licence) = package["license"].as_str() else {
            return Some(format!("{what} has no licence expression"));
        };
        if !Licence::new(licence, &self.licences).is_allowed() {
            return Some(format!(
                "{what} has the licence {licence:?}, which deny.toml does not allow"
            ));
        }
        // The package itself has no source.
        match package["source"].as_str() {
            Some(source) if !source.starts_with("registry+") => {
                Some(format!("{what} has the source {source:?}, which is not the registry"))
            }
            _ => None,
        }
    }
}

/// Every package that is built for any of the targets, by its id.
fn packages(targets: &[String]) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for target in targets {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", target])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
        for package in metadata["packages"].as_array_mut().unwrap() {
            all.insert(package["id"].as_str().unwrap().to_owned(), package.take());
        }
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
    fn is_allowed(mut self) -> bool {
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
