//! What has to hold before anything is written: topology, versions, privileges, and that source and target are two.
//! Reads only; used by the start of the daemon and by `snapsync check`.

use std::collections::BTreeSet;

use bson::{Document, doc};

use crate::config::{Config, Uri};
use crate::mongo::{Deployment, Error, Failure, ServerFacts, Side, Version, run, strangers};
use crate::source::{start, tail};
use crate::status::bar::span;

/// What became of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// Works, but somebody should know.
    Warn,
    /// Has to be mended first.
    Fail,
}

/// One check.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it went.
    pub verdict: Verdict,
    /// What was found, and the mend where one is needed.
    pub text: String,
}

impl Check {
    /// A check with its verdict.
    #[must_use]
    pub fn new(name: impl Into<String>, verdict: Verdict, text: impl Into<String>) -> Self {
        Self { name: name.into(), verdict, text: text.into() }
    }
}

/// The oldest server that can be followed.
const OLDEST_SOURCE: Version = Version(4, 2, 0);
/// The oldest server that can be written to: those before it take no comment with a definition, by which one whose
/// answer was lost is found again.
const OLDEST_TARGET: Version = Version(4, 4, 0);
/// From here on untested: accepted with a warning.
const UNTESTED: Version = Version(6, 1, 0);

/// Checks the two deployments. Source and target of a snapshot may be databases of one: then `wants_two` is false.
///
/// # Errors
/// A server was not reached, or refused the credentials.
pub async fn check(
    source: &Deployment,
    target: &Deployment,
    config: &Config,
    wants_two: bool,
) -> Result<(Vec<Check>, ServerFacts, ServerFacts), Error> {
    let source_facts = facts(source, &config.source.uri).await?;
    let target_facts = facts(target, &config.target.uri).await?;
    let mut checks = vec![
        topology(Side::Source, &source_facts),
        topology(Side::Target, &target_facts),
        version(Side::Source, source_facts.version),
        version(Side::Target, target_facts.version),
        version_order(&source_facts, &target_facts),
    ];
    if wants_two {
        checks.push(two_deployments(&source_facts, &target_facts));
    }
    // What follows asks for things that only a replica set has.
    if checks.iter().all(|check| check.verdict != Verdict::Fail) {
        checks.push(readable(source).await?);
        checks.extend(granted(source, config, SOURCE_ACTIONS, &["useUUID"]).await?);
        checks.extend(granted(target, config, TARGET_ACTIONS, &[]).await?);
    }
    Ok((checks, source_facts, target_facts))
}

/// What a deployment is. When no member of the replica set is found although all hosts answer, that is said instead.
async fn facts(deployment: &Deployment, uri: &Uri) -> Result<ServerFacts, Error> {
    match ServerFacts::ask(deployment).await {
        Err(error) if error.is_unreachable() => match strangers(uri).await {
            Some(text) => Err(Error::other(deployment.side, "find the replica set", text)),
            None => Err(error),
        },
        facts => facts,
    }
}

fn topology(side: Side, facts: &ServerFacts) -> Check {
    let name = format!("{side} topology");
    let fail = |text: &str| Check::new(&name, Verdict::Fail, text);
    if facts.hello.is_mongos() {
        return fail(&format!(
            "the {side} is a mongos; sharded clusters are not supported yet: give the URI of a \
             replica set"
        ));
    }
    match facts.hello.replica_set() {
        None => fail(&format!(
            "the {side} is a standalone server, which has no oplog; start it with --replSet rs0 \
             (replication.replSetName) and run rs.initiate() once: that makes it a replica set of \
             one member and keeps its data"
        )),
        Some(_) if facts.is_shard => fail(&format!(
            "the {side} is a single shard of a sharded cluster; sharded clusters are not supported \
             yet"
        )),
        Some(set) => Check::new(&name, Verdict::Pass, format!("replica set {set}")),
    }
}

fn version(side: Side, version: Version) -> Check {
    let name = format!("{side} version");
    let oldest = match side {
        Side::Source => OLDEST_SOURCE,
        Side::Target => OLDEST_TARGET,
    };
    if version < oldest {
        let text =
            format!("MongoDB {version} is too old for a {side}: {oldest} or later is needed");
        Check::new(name, Verdict::Fail, text)
    } else if version >= UNTESTED {
        let text = format!("MongoDB {version} has not been tested with this version of snapsync");
        Check::new(name, Verdict::Warn, text)
    } else {
        Check::new(name, Verdict::Pass, format!("MongoDB {version}"))
    }
}

fn version_order(source: &ServerFacts, target: &ServerFacts) -> Check {
    let name = "version order";
    let major = |facts: &ServerFacts| (facts.version.0, facts.version.1);
    let feature = |facts: &ServerFacts| facts.feature_version.unwrap_or(major(facts));
    if major(target) < major(source) || feature(target) < feature(source) {
        let (from, to) = (feature(source), feature(target));
        let text = format!(
            "the target (MongoDB {}, feature compatibility {}.{}) is older than the source \
             (MongoDB {}, feature compatibility {}.{}): upgrade the target, or raise its feature \
             compatibility version",
            target.version, to.0, to.1, source.version, from.0, from.1
        );
        return Check::new(name, Verdict::Fail, text);
    }
    Check::new(name, Verdict::Pass, "the target is as new as the source, or newer")
}

/// Whether these are one deployment, asked twice.
#[must_use]
pub fn are_one(source: &ServerFacts, target: &ServerFacts) -> bool {
    let same_process = source.hello.process_id().is_some()
        && source.hello.process_id() == target.hello.process_id();
    let same_set = source.hello.replica_set() == target.hello.replica_set()
        && source.hello.hosts() == target.hello.hosts()
        && source.hello.process_id().is_none();
    same_process || same_set
}

fn two_deployments(source: &ServerFacts, target: &ServerFacts) -> Check {
    let name = "two deployments";
    if are_one(source, target) {
        let text = "source and target are the same deployment; correct one of the two URIs";
        return Check::new(name, Verdict::Fail, text);
    }
    Check::new(name, Verdict::Pass, "source and target are different deployments")
}

/// Reads what the copy and the tail read. The roles that grant this cannot be told from a list of privileges alone.
async fn readable(source: &Deployment) -> Result<Check, Error> {
    let name = "source oplog";
    let oplog = tail::window_wall_ms(source).await;
    let transactions = start::choose(source).await.map(drop);
    match oplog.and_then(|window| transactions.map(|()| window)) {
        Ok(Some((oldest, newest))) => {
            let reach = newest.saturating_sub(oldest).max(0).unsigned_abs();
            let reach = span(std::time::Duration::from_millis(reach));
            Ok(Check::new(name, Verdict::Pass, format!("readable; it reaches back {reach}")))
        }
        Ok(None) => Ok(Check::new(name, Verdict::Fail, "the oplog is empty")),
        Err(error) if error.failure == Failure::Privilege => {
            let text = format!("{error}; grant the role `backup` on the source");
            Ok(Check::new(name, Verdict::Fail, text))
        }
        Err(error) => Err(error),
    }
}

const SOURCE_ACTIONS: &[&str] = &["find", "listCollections", "listIndexes", "collStats"];
const TARGET_ACTIONS: &[&str] = &[
    "find",
    "insert",
    "update",
    "remove",
    "createCollection",
    "dropCollection",
    "dropDatabase",
    "createIndex",
    "dropIndex",
    "collMod",
    "listCollections",
    "listIndexes",
    "renameCollectionSameDB",
    "bypassDocumentValidation",
    "convertToCapped",
    "dbStats",
];

/// What lease and mirror want of their own database.
const LEASE_ACTIONS: &[&str] = &["find", "insert", "update", "remove", "createCollection"];

/// What works without these, and what does not.
const OPTIONAL: &[(Side, &str, &str)] = &[
    (
        Side::Source,
        "replSetGetConfig",
        "a copy of its files under another initiation is not told apart",
    ),
    (
        Side::Target,
        "replSetGetConfig",
        "a copy of its files under another initiation is not told apart",
    ),
    (Side::Target, "inprog", "how far index builds are is not seen"),
];

/// Compares the privileges of the user with what is needed. Without authentication everything is granted.
async fn granted(
    deployment: &Deployment,
    config: &Config,
    actions: &[&str],
    cluster_actions: &[&str],
) -> Result<Vec<Check>, Error> {
    let side = deployment.side;
    let name = format!("{side} privileges");
    let Some(privileges) = privileges(deployment).await? else {
        return Ok(vec![unauthenticated(deployment, name).await?]);
    };
    let privileges: Vec<&Document> = privileges.iter().collect();
    let mut missing = BTreeSet::new();
    let own = (crate::target::lease::DATABASE.to_owned(), LEASE_ACTIONS);
    let needed = needed_databases(side, config).into_iter().map(|database| (database, actions));
    for (database, actions) in needed.chain((side == Side::Target).then_some(own)) {
        for action in actions.iter().filter(|action| !grants(&privileges, &database, action)) {
            let place = if database.is_empty() { "any database" } else { &database };
            missing.insert(format!("{action} on {place}"));
        }
    }
    for action in cluster_actions.iter().filter(|action| !grants_cluster(&privileges, action)) {
        missing.insert(format!("{action} on the cluster"));
    }
    if missing.is_empty() {
        return Ok(vec![sufficient(side, name, &privileges)]);
    }
    let missing: Vec<String> = missing.into_iter().collect();
    let roles = match side {
        Side::Source => "`backup` and `readAnyDatabase`",
        Side::Target => "`readWriteAnyDatabase`, `dbAdminAnyDatabase` and `restore`",
    };
    let missing = missing.join(", ");
    let text = format!(
        "the user on the {side} lacks privileges: {missing}; the roles {roles} grant them, and so do the smaller ones \
         in docs/privileges.md"
    );
    Ok(vec![Check::new(name, Verdict::Fail, text)])
}

fn sufficient(side: Side, name: String, privileges: &[&Document]) -> Check {
    let lacks =
        |(of, action, _): &&(Side, &str, &str)| *of == side && !grants_cluster(privileges, action);
    let lacking = OPTIONAL.iter().filter(lacks);
    let lacking: Vec<String> =
        lacking.map(|(_, action, effect)| format!("without {action} {effect}")).collect();
    if lacking.is_empty() {
        return Check::new(name, Verdict::Pass, "sufficient");
    }
    Check::new(name, Verdict::Warn, format!("sufficient; {}", lacking.join("; ")))
}

/// What of these actions the user may not do on the cluster; `None` if there is no authentication.
///
/// # Errors
/// The call failed.
pub async fn missing_on_cluster(
    deployment: &Deployment,
    actions: &[&str],
) -> Result<Option<Vec<String>>, Error> {
    let Some(privileges) = privileges(deployment).await? else { return Ok(None) };
    let privileges: Vec<&Document> = privileges.iter().collect();
    let missing = actions.iter().filter(|action| !grants_cluster(&privileges, action));
    Ok(Some(missing.map(ToString::to_string).collect()))
}

/// The privileges of the user; `None` if there is none.
async fn privileges(deployment: &Deployment) -> Result<Option<Vec<Document>>, Error> {
    let command = doc! { "connectionStatus": 1, "showPrivileges": true };
    let reply = run(deployment, "admin", "read the user's privileges", command).await?;
    let info = reply.get_document("authInfo").cloned().unwrap_or_default();
    if info.get_array("authenticatedUsers").is_ok_and(Vec::is_empty) {
        return Ok(None);
    }
    let privileges = info.get_array("authenticatedUserPrivileges").cloned().unwrap_or_default();
    Ok(Some(privileges.into_iter().filter_map(|found| found.as_document().cloned()).collect()))
}

async fn unauthenticated(deployment: &Deployment, name: String) -> Result<Check, Error> {
    match crate::mongo::listing::databases(deployment).await {
        Ok(_) => Ok(Check::new(name, Verdict::Pass, "no authentication on this deployment")),
        Err(error) if error.failure == Failure::Privilege => {
            let side = deployment.side;
            let text = format!(
                "the {side} wants authentication and its URI has no user; add user and password"
            );
            Ok(Check::new(name, Verdict::Fail, text))
        }
        Err(error) => Err(error),
    }
}

/// Databases that have to be accessible; "" for any.
fn needed_databases(side: Side, config: &Config) -> Vec<String> {
    let mut databases = config.sync.selection.named_databases(side == Side::Target);
    if databases.is_empty() {
        databases.push(String::new());
    }
    databases
}

fn grants(privileges: &[&Document], database: &str, action: &str) -> bool {
    privileges.iter().any(|privilege| {
        let resource = privilege.get_document("resource");
        let covers = resource.is_ok_and(|resource| {
            let any = resource.get_bool("anyResource").unwrap_or(false);
            let name = resource.get_str("db");
            let whole = resource.get_str("collection").is_ok_and(str::is_empty);
            any || (whole && name.is_ok_and(|name| name.is_empty() || name == database))
        });
        covers && has_action(privilege, action)
    })
}

fn grants_cluster(privileges: &[&Document], action: &str) -> bool {
    privileges.iter().any(|privilege| {
        let resource = privilege.get_document("resource");
        let covers = resource.is_ok_and(|resource| {
            resource.get_bool("cluster").unwrap_or(false)
                || resource.get_bool("anyResource").unwrap_or(false)
        });
        covers && has_action(privilege, action)
    })
}

fn has_action(privilege: &Document, action: &str) -> bool {
    let actions = privilege.get_array("actions").map(Vec::as_slice).unwrap_or_default();
    actions.iter().any(
        |granted| matches!(granted.as_str(), Some(name) if name == action || name == "anyAction"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_privilege_covers_its_database_or_all() {
        let own = doc! { "resource": { "db": "shop", "collection": "" }, "actions": ["find"] };
        let any = doc! { "resource": { "db": "", "collection": "" }, "actions": ["find"] };
        let one = doc! { "resource": { "db": "shop", "collection": "a" }, "actions": ["find"] };
        assert!(grants(&[&own], "shop", "find"));
        assert!(!grants(&[&own], "crm", "find"));
        assert!(!grants(&[&own], "shop", "insert"));
        assert!(grants(&[&any], "crm", "find"));
        assert!(!grants(&[&one], "shop", "find"));
        assert!(!grants(&[&own], "", "find"));
    }

    #[test]
    fn what_is_optional_is_a_warning() {
        let actions = |actions: &[&str]| doc! { "resource": { "cluster": true }, "actions": actions.to_vec() };
        let all = actions(&["replSetGetConfig", "inprog"]);
        let of = |side, privilege: &Document| sufficient(side, String::new(), &[privilege]);
        assert_eq!(of(Side::Target, &all).verdict, Verdict::Pass);
        let one = actions(&["replSetGetConfig"]);
        assert_eq!(of(Side::Source, &one).verdict, Verdict::Pass);
        let lacking = of(Side::Target, &one);
        assert_eq!(lacking.verdict, Verdict::Warn);
        assert_eq!(lacking.text, "sufficient; without inprog how far index builds are is not seen");
    }

    #[test]
    fn old_and_untested_versions_are_told_apart() {
        assert_eq!(version(Side::Source, Version(4, 0, 28)).verdict, Verdict::Fail);
        assert_eq!(version(Side::Source, Version(4, 2, 0)).verdict, Verdict::Pass);
        assert_eq!(version(Side::Target, Version(4, 2, 24)).verdict, Verdict::Fail);
        assert_eq!(version(Side::Target, Version(4, 4, 0)).verdict, Verdict::Pass);
        assert_eq!(version(Side::Source, Version(4, 4, 0)).verdict, Verdict::Pass);
        assert_eq!(version(Side::Source, Version(6, 0, 27)).verdict, Verdict::Pass);
        assert_eq!(version(Side::Source, Version(7, 0, 0)).verdict, Verdict::Warn);
    }
}
