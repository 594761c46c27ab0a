//! What kind of server answers: topology, version, optimes.

use std::fmt;

use bson::{Document, doc};

use super::client::Deployment;
use super::command::run;
use super::error::{Error, unwanted_reply};
use crate::position::{OpTime, Ts};

/// A server version, such as 6.0.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// Reads `major.minor.patch` with anything after it ("6.0.5-rc1").
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(|c: char| !c.is_ascii_digit());
        let mut next = || parts.next()?.parse().ok();
        Some(Self(next()?, next()?, next().unwrap_or(0)))
    }
}

/// The primary's answer to `hello`.
#[derive(Debug, Clone)]
pub struct Hello {
    reply: Document,
}

impl Hello {
    /// Asks the primary.
    ///
    /// # Errors
    /// The call failed.
    pub async fn ask(deployment: &Deployment) -> Result<Self, Error> {
        // `isMaster` is understood by every version; `hello` only from 4.4.2 on.
        let reply = run(deployment, "admin", "ask who is primary", doc! { "isMaster": 1 }).await?;
        Ok(Self { reply })
    }

    /// The replica set's name; `None` for a standalone and for mongos.
    #[must_use]
    pub fn replica_set(&self) -> Option<&str> {
        self.reply.get_str("setName").ok()
    }

    /// Whether a mongos answered.
    #[must_use]
    pub fn is_mongos(&self) -> bool {
        self.reply.get_str("msg").is_ok_and(|msg| msg == "isdbgrid")
    }

    /// The members' addresses, sorted.
    #[must_use]
    pub fn hosts(&self) -> Vec<String> {
        let hosts = self.reply.get_array("hosts").map(Vec::as_slice).unwrap_or_default();
        let mut hosts: Vec<String> =
            hosts.iter().filter_map(|host| host.as_str()).map(str::to_owned).collect();
        hosts.sort_unstable();
        hosts
    }

    /// Identity of the very process that answered (4.4 and later).
    #[must_use]
    pub fn process_id(&self) -> Option<bson::oid::ObjectId> {
        self.reply.get_document("topologyVersion").ok()?.get_object_id("processId").ok()
    }

    /// The election term that the primary writes in.
    #[must_use]
    pub fn term(&self) -> Option<i64> {
        let last = self.reply.get_document("lastWrite").ok()?;
        last.get_document("opTime").ok()?.get_i64("t").ok()
    }

    /// The newest optime that this member has written. It may lie beyond a hole in the oplog.
    ///
    /// # Errors
    /// The reply has none: not a replica set.
    pub fn newest_optime(&self, deployment: &Deployment) -> Result<Ts, Error> {
        let ts = self.reply.get_document("lastWrite").and_then(|last| last.get_document("opTime"));
        let ts = ts.and_then(|optime| optime.get_timestamp("ts"));
        ts.map(Ts::from)
            .map_err(|_| unwanted_reply(deployment.side, "read the newest optime", "lastWrite"))
    }

    /// The newest majority-committed optime and its wall time in milliseconds since 1970. Unlike `lastWrite.opTime` it
    /// never lies beyond a hole in the oplog.
    ///
    /// # Errors
    /// The reply has none: not a replica set, or one that has not elected anybody yet.
    pub fn majority_optime(&self, deployment: &Deployment) -> Result<(OpTime, i64), Error> {
        let missing =
            || unwanted_reply(deployment.side, "read the majority optime", "majorityOpTime");
        let last = self.reply.get_document("lastWrite").map_err(|_| missing())?;
        let optime = last.get_document("majorityOpTime").map_err(|_| missing())?;
        let ts = optime.get_timestamp("ts").map_err(|_| missing())?;
        let term = optime.get_i64("t").unwrap_or(-1);
        let wall = last.get_datetime("majorityWriteDate").map_err(|_| missing())?;
        Ok((OpTime::new(Ts::from(ts), term), wall.timestamp_millis()))
    }
}

/// What `check` and the start need to know of a deployment.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// The primary's answer to `hello`.
    pub hello: Hello,
    /// Server version of the primary.
    pub version: Version,
    /// Feature compatibility version, such as (6, 0).
    pub feature_version: Option<(u32, u32)>,
    /// Whether the server is a shard of a cluster.
    pub is_shard: bool,
}

impl ServerFacts {
    /// Asks the primary for everything.
    ///
    /// # Errors
    /// A call failed. What the user may not read is left out, never an error.
    pub async fn ask(deployment: &Deployment) -> Result<Self, Error> {
        let hello = Hello::ask(deployment).await?;
        let info = run(deployment, "admin", "read the version", doc! { "buildInfo": 1 }).await?;
        let version = info
            .get_str("version")
            .ok()
            .and_then(Version::parse)
            .ok_or_else(|| unwanted_reply(deployment.side, "read the version", "version"))?;
        let feature_version = feature_version(deployment).await?;
        let is_shard = is_shard(deployment).await?;
        Ok(Self { hello, version, feature_version, is_shard })
    }
}

async fn feature_version(deployment: &Deployment) -> Result<Option<(u32, u32)>, Error> {
    let command = doc! { "getParameter": 1, "featureCompatibilityVersion": 1 };
    match run(deployment, "admin", "read the feature compatibility version", command).await {
        Ok(reply) => {
            let text = reply
                .get_document("featureCompatibilityVersion")
                .and_then(|value| value.get_str("version"))
                .unwrap_or_default();
            Ok(Version::parse(text).map(|version| (version.0, version.1)))
        }
        Err(error) if error.is_unreachable() => Err(error),
        Err(_) => Ok(None),
    }
}

async fn is_shard(deployment: &Deployment) -> Result<bool, Error> {
    match run(deployment, "admin", "read the sharding state", doc! { "shardingState": 1 }).await {
        Ok(reply) => Ok(reply.get_bool("enabled").unwrap_or(false)),
        Err(error) if error.is_unreachable() => Err(error),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(Version::parse("4.2.10") > Version::parse("4.2.9"));
        assert_eq!(Version::parse("6.0.5-rc1"), Some(Version(6, 0, 5)));
        assert_eq!(Version::parse("6.0"), Some(Version(6, 0, 0)));
        assert_eq!(Version::parse("x"), None);
    }
}
