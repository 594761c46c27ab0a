//! What a snapshot came to: for people, for programs, and as the document beside the collections. Pure.

use bson::{Bson, DateTime, Document, doc};
use serde::Serialize;

use crate::position::Ts;
use crate::status::WallTime;

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Everything that was wanted is in its place.
    Complete,
    /// Some collections have been replaced, others have failed and are what they were.
    Partial,
    /// Nothing has been replaced.
    Failed,
}

impl Status {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Partial => "partial",
            Self::Failed => "failed",
        }
    }
}

/// What became of one collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It took the place of the old one.
    Replaced,
    /// So it did, and it has no documents.
    Empty,
    /// It is not on the source, and not on the target any more.
    Absent,
    /// The old one is still there, if there was one.
    Failed,
}

/// One collection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Collection {
    /// Its name, the same in both databases.
    pub collection: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Documents in it.
    pub documents: Option<u64>,
    /// Whether the source was seen to have as many at that moment.
    pub verified: bool,
    /// Attempts that failed.
    pub failed_attempts: u32,
    /// What came in the way.
    pub error: Option<String>,
}

/// One side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// What people call it.
    pub cluster: String,
    /// The database.
    pub database: String,
    /// Its hosts, as the connection string has them.
    pub host: String,
}

/// The moment that all collections are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// The optime of the source.
    pub ts: Ts,
    /// Its wall time.
    pub wall: WallTime,
}

/// What a snapshot came to.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How it went.
    pub status: Status,
    /// Why it went no further.
    pub reason: Option<String>,
    /// What it is of.
    pub source: Side,
    /// Where it is.
    pub target: Side,
    /// Whether these are two deployments.
    pub cross_cluster: bool,
    /// `None` if it did not come to that.
    pub moment: Option<Moment>,
    /// When it began.
    pub started_at: WallTime,
    /// When it ended.
    pub finished_at: WallTime,
    /// In order of name.
    pub collections: Vec<Collection>,
}

impl Report {
    /// How it went, from what became of each.
    pub(super) fn status(reason: Option<&str>, collections: &[Collection]) -> Status {
        let failed = collections.iter().any(|one| one.outcome == Outcome::Failed);
        let replaced =
            collections.iter().any(|one| matches!(one.outcome, Outcome::Replaced | Outcome::Empty));
        match (failed || reason.is_some(), replaced) {
            (false, _) => Status::Complete,
            (true, true) => Status::Partial,
            (true, false) => Status::Failed,
        }
    }

    /// What is in the snapshot.
    fn held(&self) -> impl Iterator<Item = (&str, u64)> {
        let held = self.collections.iter();
        let held = held.filter(|one| matches!(one.outcome, Outcome::Replaced | Outcome::Empty));
        held.map(|one| (one.collection.as_str(), one.documents.unwrap_or(0)))
    }

    /// The document that describes the snapshot, beside its collections.
    #[must_use]
    pub fn metadata(&self) -> Document {
        let number = |n: u64| Bson::Int64(i64::try_from(n).unwrap_or(i64::MAX));
        let names: Vec<&str> = self.held().map(|(name, _)| name).collect();
        let counts: Document =
            self.held().map(|(name, documents)| (name.to_owned(), number(documents))).collect();
        let total = self.held().map(|(_, documents)| documents).sum();
        let seconds = self.finished_at.as_ms().saturating_sub(self.started_at.as_ms()) / 1000;
        let [started, finished] =
            [self.started_at, self.finished_at].map(|at| DateTime::from_millis(at.as_ms()));
        let method = match self.moment {
            Some(Moment { ts, wall }) => {
                format!("snapsync: copy and oplog up to {ts}, all as of {wall}")
            }
            None => "snapsync: copy and oplog".to_owned(),
        };
        let count = u64::try_from(names.len()).unwrap_or(u64::MAX);
        doc! {
            "_id": "latest",
            "createdAt": finished,
            "startedAt": started,
            "finishedAt": finished,
            "durationSeconds": seconds,
            "sourceCluster": &self.source.cluster,
            "sourceDatabase": &self.source.database,
            "sourceHost": &self.source.host,
            "targetCluster": &self.target.cluster,
            "targetDatabase": &self.target.database,
            "targetHost": &self.target.host,
            "collections": names,
            "collectionsCount": number(count),
            "documentCounts": counts,
            "totalDocuments": number(total),
            "method": method,
            "crossCluster": self.cross_cluster,
            "status": self.status.as_str(),
        }
    }

    /// The same for people.
    #[must_use]
    pub fn text(&self) -> String {
        let of = |side: &Side| format!("{}.{}", side.cluster, side.database);
        let (source, target, status) = (of(&self.source), of(&self.target), self.status.as_str());
        let mut text = format!("snapshot of {source} in {target}: {status}\n");
        let mut line = |line: String| text.push_str(&(line + "\n"));
        if let Some(Moment { ts, wall }) = self.moment {
            line(format!("all collections as of {wall} (optime {ts})"));
        }
        for one in &self.collections {
            let name = &one.collection;
            let documents = one.documents.unwrap_or(0);
            let unverified = if one.verified { "" } else { ", not compared with the source" };
            match one.outcome {
                Outcome::Replaced => line(format!("{name}: {documents} documents{unverified}")),
                Outcome::Empty => line(format!("{name}: empty on the source{unverified}")),
                Outcome::Absent => line(format!("{name}: not on the source")),
                Outcome::Failed => {
                    let why = one.error.as_deref().unwrap_or("it was not come to");
                    line(format!("{name}: FAILED, {why}"));
                }
            }
        }
        if let Some(reason) = &self.reason {
            line(format!("ended early: {reason}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(collection: &str, outcome: Outcome, documents: u64) -> Collection {
        Collection {
            collection: collection.to_owned(),
            outcome,
            documents: Some(documents),
            verified: true,
            failed_attempts: 0,
            error: (outcome == Outcome::Failed).then(|| "refused".to_owned()),
        }
    }

    fn report(collections: Vec<Collection>) -> Report {
        let side = |cluster: &str, database: &str| Side {
            cluster: cluster.to_owned(),
            database: database.to_owned(),
            host: format!("{cluster}.example.net:27017"),
        };
        Report {
            status: Report::status(None, &collections),
            reason: None,
            source: side("Cluster0", "shop"),
            target: side("Preview", "shop_snapshot"),
            cross_cluster: true,
            moment: Some(Moment { ts: Ts { t: 5, i: 1 }, wall: WallTime::from_ms(5_000) }),
            started_at: WallTime::from_ms(1_000),
            finished_at: WallTime::from_ms(61_500),
            collections,
        }
    }

    #[test]
    fn the_metadata_has_exactly_these_fields_and_only_what_is_held() {
        let report = report(vec![
            one("a", Outcome::Replaced, 3),
            one("b", Outcome::Empty, 0),
            one("c", Outcome::Failed, 9),
            one("d", Outcome::Absent, 0),
        ]);
        let metadata = report.metadata();
        let fields: Vec<&str> = metadata.keys().map(String::as_str).collect();
        let named = "_id createdAt startedAt finishedAt durationSeconds sourceCluster sourceDatabase sourceHost \
                     targetCluster targetDatabase targetHost collections collectionsCount documentCounts \
                     totalDocuments method crossCluster status";
        assert_eq!(fields.join(" "), named);
        assert_eq!(metadata.get("collections"), Some(&Bson::from(vec!["a", "b"])));
        assert_eq!(
            metadata.get_document("documentCounts").unwrap(),
            &doc! { "a": 3_i64, "b": 0_i64 }
        );
        assert_eq!(metadata.get_i64("totalDocuments").unwrap(), 3);
        assert_eq!(metadata.get_i64("collectionsCount").unwrap(), 2);
        assert_eq!(metadata.get_i64("durationSeconds").unwrap(), 60);
        assert_eq!(metadata.get_str("status").unwrap(), "partial");
        assert!(metadata.get_str("method").unwrap().contains("5:1"));
        assert!(matches!(metadata.get("createdAt"), Some(Bson::DateTime(_))));
    }

    #[test]
    fn complete_is_only_what_lacks_nothing() {
        use Outcome::{Absent, Empty, Failed, Replaced};
        let status = |reason, outcomes: &[Outcome]| {
            let collections: Vec<_> =
                outcomes.iter().map(|outcome| one("a", *outcome, 0)).collect();
            Report::status(reason, &collections)
        };
        assert_eq!(status(None, &[Replaced, Empty, Absent]), Status::Complete);
        assert_eq!(status(None, &[Replaced, Failed]), Status::Partial);
        assert_eq!(status(None, &[Failed, Absent]), Status::Failed);
        assert_eq!(status(Some("deadline"), &[Replaced]), Status::Partial);
        assert_eq!(status(Some("deadline"), &[]), Status::Failed);
    }

    #[test]
    fn people_are_told_the_moment_and_what_failed() {
        let text =
            report(vec![one("a", Outcome::Replaced, 3), one("c", Outcome::Failed, 9)]).text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "snapshot of Cluster0.shop in Preview.shop_snapshot: partial",
                "all collections as of 1970-01-01T00:00:05.000Z (optime 5:1)",
                "a: 3 documents",
                "c: FAILED, refused",
            ]
        );
    }
}
