//! Why no server of a replica set is found: the driver leaves out every server that is not of the set it was told, and
//! then knows nothing but that there is none.

use std::time::Duration;

use bson::{Document, doc};
use mongodb::Client;
use mongodb::options::ClientOptions;

use crate::config::Uri;

/// How long one server may take to say what it is.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);

/// What the hosts of `uri` are instead of members of its `replicaSet`. Only when every one of them answers and is
/// something else: then waiting would not help.
pub async fn strangers(uri: &Uri) -> Option<String> {
    let options = ClientOptions::parse(uri.expose()).await.ok()?;
    let wanted = options.repl_set_name.clone()?;
    let mut found = Vec::new();
    for host in options.hosts.clone() {
        let mut alone = options.clone();
        alone.hosts = vec![host.clone()];
        alone.repl_set_name = None;
        alone.direct_connection = Some(true);
        // Everybody may ask what a server is.
        alone.credential = None;
        alone.server_selection_timeout = Some(ANSWER_TIME_MAX);
        let admin = Client::with_options(alone).ok()?.database("admin");
        let reply = admin.run_command(doc! { "isMaster": 1 }).await.ok()?;
        found.push(format!("{host} {}", stranger(&reply, &wanted)?));
    }
    Some(found.join("; "))
}

/// What a server is, if it will not become a member of `wanted` by itself.
fn stranger(reply: &Document, wanted: &str) -> Option<String> {
    let is = |field: &str| reply.get_bool(field).unwrap_or(false);
    match reply.get_str("setName") {
        Ok(name) if name == wanted => None,
        Ok(name) => Some(format!(
            "belongs to the replica set {name}, not {wanted}; correct replicaSet in the URI"
        )),
        Err(_) if reply.get_str("msg").is_ok_and(|msg| msg == "isdbgrid") => Some(
            "is a mongos; sharded clusters are not supported yet: give the URI of a replica set"
                .to_owned(),
        ),
        // Started as a member: it has not read its configuration yet, or has none.
        Err(_) if is("isreplicaset") => None,
        Err(_) => Some(format!(
            "is a standalone server, which has no oplog; start it with --replSet {wanted} \
             (replication.replSetName) and run rs.initiate() once: that makes it a replica set of \
             one member and keeps its data"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_is_on_its_way_is_no_stranger() {
        assert_eq!(stranger(&doc! { "setName": "rs0", "secondary": true }, "rs0"), None);
        assert_eq!(stranger(&doc! { "isreplicaset": true }, "rs0"), None);
        let says = |reply: Document| stranger(&reply, "rs0").unwrap();
        assert!(says(doc! { "setName": "rs1" }).contains("rs1, not rs0"));
        assert!(says(doc! { "msg": "isdbgrid" }).contains("mongos"));
        assert!(says(doc! { "ismaster": true }).contains("--replSet rs0"));
    }
}
