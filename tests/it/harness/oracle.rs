//! Are two deployments equal? Contents by the server's own `dbHash`, options and indexes by their specifications.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};
use futures_util::TryStreamExt;
use mongodb::error::ErrorKind;
use mongodb::{Client, Cursor};

use super::daemon::{Daemon, resume_point};
use super::replica_set::ReplicaSet;
use super::wait::wait_for;

/// What the servers and snapsync keep for themselves.
const NOT_USER_DATA: [&str; 4] = ["admin", "config", "local", "snapsync"];
/// Staging and replaced collections of snapsync, which are in the target's databases.
const STAGING: &str = "snapsync_tmp_";
/// A TTL index is held back with at least this many seconds. Not one exact value: 2147483647 is the server's limit,
/// but 4.4 refuses more seconds than have passed since 1970.
const TTL_HELD_BACK_MIN: i64 = 1_000_000_000;

/// Panics, naming collections and `_id`s, unless every user database is equal on both sides. Allows what snapsync
/// holds back until cutover. Both sides must be quiet: see [`quiesce`].
pub async fn assert_equal(source: &ReplicaSet, target: &ReplicaSet) {
    let mut comparison = Comparison::new(source.client(), target.client());
    comparison.other_version = source.version() != target.version();
    if let Err(difference) = comparison.run().await {
        panic!("source and target differ:\n{difference}");
    }
}

/// Waits until the daemon is live, copies nothing again, and has applied everything the source has committed by now.
/// The source must be quiet from here on, else the two differ again by the time they are compared.
///
/// # Panics
/// If the daemon halts, or does not come so far.
pub async fn quiesce(daemon: &mut Daemon, source: &ReplicaSet) {
    let newest = source.majority_ts().await;
    let description = format!("live at {}:{}", newest.time, newest.increment);
    let reached = |status: &serde_json::Value| {
        let follows = status["state"] == "live" && status["copying"] == serde_json::json!([]);
        status["state"] == "halted" || (follows && resume_point(status) >= newest)
    };
    let status = daemon.wait_status(&description, Duration::from_secs(90), reached).await;
    assert_ne!(status["state"], "halted", "{}", status["reason"]);
}

/// The user databases of a deployment, sorted.
pub async fn user_databases(client: &Client) -> BTreeSet<String> {
    let names = client.list_database_names().await.expect("list the databases");
    names.into_iter().filter(|name| !NOT_USER_DATA.contains(&name.as_str())).collect()
}

/// The exact number of documents in `database.collection`.
pub async fn documents_in(client: &Client, namespace: &str) -> u64 {
    let (database, collection) = namespace.split_once('.').expect("database.collection");
    let collection = client.database(database).collection::<Document>(collection);
    collection.count_documents(doc! {}).await.expect("count")
}

/// A comparison of two deployments, for tests that select, rename, or look after cutover.
#[derive(Debug, Clone)]
pub struct Comparison<'a> {
    source: &'a Client,
    target: &'a Client,
    /// Where a source namespace goes; `None` where it is not selected.
    mapping: fn(&str) -> Option<String>,
    strict: bool,
    /// Newer servers state numbers in the options of an index as other types than older ones.
    other_version: bool,
}

/// One collection or view: its `listCollections` entry, its indexes, and its hash where the server gives one.
#[derive(Debug, Clone, Default)]
struct Entry {
    kind: String,
    options: Document,
    indexes: BTreeMap<String, Document>,
    hash: Option<String>,
}

impl<'a> Comparison<'a> {
    /// Of everything under the same names.
    pub fn new(source: &'a Client, target: &'a Client) -> Self {
        Self {
            source,
            target,
            mapping: |namespace| Some(namespace.to_owned()),
            strict: false,
            other_version: false,
        }
    }

    /// With selection and renaming: from a source namespace to the target's, or `None` if it is not selected. What a
    /// view is on is renamed with it, but not what its pipeline names.
    pub fn mapping(mut self, mapping: fn(&str) -> Option<String>) -> Self {
        self.mapping = mapping;
        self
    }

    /// Nothing may be held back, as after cutover.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Numbers among options may be of other types, as commands that change options state them.
    pub fn restated(mut self) -> Self {
        self.other_version = true;
        self
    }

    /// Waits up to `timeout` for equality.
    ///
    /// # Panics
    /// With the last difference if it does not come about.
    pub async fn wait(&self, timeout: Duration) {
        wait_for("source and target to be equal", timeout, || self.run()).await;
    }

    /// `Err` describes the differences: collections first, then the first differing `_id`s.
    pub async fn run(&self) -> Result<(), String> {
        let (source, target) = tokio::join!(read(self.source), read(self.target));
        let mut found = String::new();
        let mut expected = BTreeSet::new();
        for (name, theirs) in &source {
            let Some(target_name) = (self.mapping)(name) else { continue };
            match target.get(&target_name) {
                None => note(&mut found, &format!("{target_name}: missing on the target")),
                Some(ours) => {
                    self.compare(name, &target_name, theirs, ours, &mut found).await;
                }
            }
            expected.insert(target_name);
        }
        for name in target.keys().filter(|name| !expected.contains(*name)) {
            note(&mut found, &format!("{name}: only on the target"));
        }
        if found.is_empty() { Ok(()) } else { Err(found) }
    }

    async fn compare(
        &self,
        name: &str,
        target_name: &str,
        source: &Entry,
        target: &Entry,
        found: &mut String,
    ) {
        if source.kind != target.kind {
            note(found, &format!("{target_name}: {} became {}", source.kind, target.kind));
        }
        let mut wanted = source.options.clone();
        if !self.strict {
            wanted = allow_held_back(&source.options, &target.options);
            // A collection (unlike an index) does not expire documents if it says nothing.
            if !target.options.contains_key("expireAfterSeconds") {
                wanted.remove("expireAfterSeconds");
            }
        }
        // What a view is on has its name in the same database.
        if let Ok(on) = source.options.get_str("viewOn")
            && let Some((database, _)) = name.split_once('.')
            && let Some(on) = self.view_on(database, on)
        {
            wanted.insert("viewOn", on);
        }
        // The validator of buckets is the server's own.
        if self.other_version
            && name.contains(".system.buckets.")
            && let Some(validator) = target.options.get("validator")
        {
            wanted.insert("validator", validator.clone());
        }
        if !same(&wanted, &target.options) {
            let text = format!("{target_name}: options {wanted} became {}", target.options);
            note(found, &text);
        }
        self.compare_indexes(target_name, source, target, found);
        // The hash leaves out some system collections, such as the buckets of time series, and it says nothing of
        // the order in a capped collection: these are read.
        let capped = source.options.get_bool("capped").unwrap_or(false);
        let unhashed = source.kind == "collection" && source.hash.is_none();
        if source.hash == target.hash && !unhashed && !capped {
            return;
        }
        let (mut theirs, mut ours) =
            tokio::join!(contents(self.source, name), contents(self.target, target_name));
        let views = name.ends_with(".system.views");
        if views {
            theirs = theirs.iter().filter_map(|(_, view)| self.renamed_view(view)).collect();
        }
        // What the view of a time-series collection does is the server's own, too.
        if self.other_version && views {
            for side in [&mut theirs, &mut ours] {
                side.retain(|(_, view)| {
                    !view.get_str("viewOn").is_ok_and(|on| on.starts_with("system.buckets."))
                });
            }
        }
        if let Some(details) = differing_ids(&theirs, &ours) {
            note(found, &format!("{target_name}: contents differ\n{details}"));
        } else if capped && theirs != ours {
            note(found, &format!("{target_name}: the same documents in another order"));
        } else if source.hash != target.hash && !views {
            note(found, &format!("{target_name}: hashes differ, but no document was seen to"));
        }
    }

    /// Where what this view is on goes, without the database.
    fn view_on(&self, database: &str, on: &str) -> Option<String> {
        let on = (self.mapping)(&format!("{database}.{on}"))?;
        on.split_once('.').map(|(_, on)| on.to_owned())
    }

    /// A document of `system.views` as it has to be on the target, if it does, after the text of its `_id`.
    fn renamed_view(&self, view: &RawDocument) -> Option<(String, RawDocumentBuf)> {
        let mut renamed = Document::try_from(view).expect("a view");
        let name = renamed.get_str("_id").expect("the name of a view").to_owned();
        let target_name = (self.mapping)(&name)?;
        let database = name.split_once('.').map_or("", |(database, _)| database);
        let on = renamed.get_str("viewOn").ok().and_then(|on| self.view_on(database, on));
        if let Some(on) = on {
            renamed.insert("viewOn", on);
        }
        renamed.insert("_id", target_name);
        let renamed = RawDocumentBuf::try_from(&renamed).expect("a view");
        Some((format!("{:?}", renamed.get("_id").ok().flatten().expect("_id")), renamed))
    }

    fn compare_indexes(&self, name: &str, source: &Entry, target: &Entry, found: &mut String) {
        for (index, spec) in &source.indexes {
            match target.indexes.get(index) {
                None => note(found, &format!("{name}: index {index} is missing")),
                Some(ours) => {
                    let restated =
                        if self.other_version { restated(spec, ours) } else { spec.clone() };
                    let held_back = !self.strict && same(&allow_held_back(&restated, ours), ours);
                    if !same(&restated, ours) && !held_back {
                        note(found, &format!("{name}: index {spec} became {ours}"));
                    }
                }
            }
        }
        for index in target.indexes.keys().filter(|index| !source.indexes.contains_key(*index)) {
            note(found, &format!("{name}: index {index} is only on the target"));
        }
    }
}

/// Equal to the byte, but for the order of the outermost fields, which says nothing in a specification. (`==` ignores
/// the order of fields at every depth, so that the keys of two different indexes would be equal.)
fn same(a: &Document, b: &Document) -> bool {
    let bytes = |value: &Bson| bson::serialize_to_vec(&doc! {"": value}).expect("BSON");
    a.len() == b.len()
        && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| bytes(value) == bytes(other)))
}

fn note(found: &mut String, text: &str) {
    found.push_str(text);
    found.push('\n');
}

/// The source's specification with the numbers among its options as the target states them, where they are equal.
fn restated(source: &Document, target: &Document) -> Document {
    let number = |value: &Bson| match value {
        Bson::Int32(n) => Some(f64::from(*n)),
        #[expect(clippy::cast_precision_loss, reason = "options are small")]
        Bson::Int64(n) => Some(*n as f64),
        Bson::Double(n) => Some(*n),
        _ => None,
    };
    let restate = |(key, value): (&String, &Bson)| {
        let same = |theirs: &&Bson| number(theirs).is_some() && number(theirs) == number(value);
        (key.clone(), target.get(key).filter(same).unwrap_or(value).clone())
    };
    source.iter().map(restate).collect()
}

/// The source's specification with those values of the target that may differ until cutover: a TTL that never expires
/// anything, a capped limit that is wider.
fn allow_held_back(source: &Document, target: &Document) -> Document {
    let mut allowed = source.clone();
    let number = |document: &Document, key: &str| match document.get(key) {
        Some(Bson::Int32(n)) => Some(i64::from(*n)),
        Some(Bson::Int64(n)) => Some(*n),
        #[expect(clippy::cast_possible_truncation, reason = "limits are whole numbers")]
        Some(Bson::Double(n)) => Some(*n as i64),
        _ => None,
    };
    let take = |allowed: &mut Document, key: &str| {
        if let Some(value) = target.get(key) {
            allowed.insert(key, value.clone());
        }
    };
    if source.contains_key("expireAfterSeconds")
        && number(target, "expireAfterSeconds") >= Some(TTL_HELD_BACK_MIN)
    {
        take(&mut allowed, "expireAfterSeconds");
    }
    // Nor does a clustered collection, which says so with its index.
    if source.get_bool("clustered").unwrap_or(false) && !target.contains_key("expireAfterSeconds") {
        allowed.remove("expireAfterSeconds");
    }
    if source.get_bool("capped").unwrap_or(false) {
        for limit in ["size", "max"] {
            if number(target, limit) > number(source, limit) && source.contains_key(limit) {
                take(&mut allowed, limit);
            }
        }
    }
    allowed
}

/// Every collection and view in the user databases.
async fn read(client: &Client) -> BTreeMap<String, Entry> {
    let mut all = BTreeMap::new();
    for database in user_databases(client).await {
        let hashes = hashes(client, &database).await;
        let command = doc! {"listCollections": 1};
        let listed = cursor(client, &database, command).await.try_collect().await;
        let listed: Vec<Document> = listed.expect("list the collections");
        for item in listed {
            let name = item.get_str("name").expect("a name").to_owned();
            if name.starts_with(STAGING) {
                continue;
            }
            let kind = item.get_str("type").unwrap_or("collection").to_owned();
            let indexes = match kind.as_str() {
                "collection" => indexes(client, &database, &name).await,
                _ => Some(BTreeMap::new()),
            };
            // Renamed or dropped since it was listed: then it is not there, and the other side has it or not.
            let Some(indexes) = indexes else { continue };
            let options = item.get_document("options").cloned().unwrap_or_default();
            let hash = hashes.get_str(&name).ok().map(str::to_owned);
            all.insert(format!("{database}.{name}"), Entry { kind, options, indexes, hash });
        }
    }
    all
}

async fn hashes(client: &Client, database: &str) -> Document {
    let reply = client.database(database).run_command(doc! {"dbHash": 1}).await.expect("dbHash");
    reply.get_document("collections").expect("the hashes of collections").clone()
}

/// The indexes of a collection, if it is there.
async fn indexes(
    client: &Client,
    database: &str,
    name: &str,
) -> Option<BTreeMap<String, Document>> {
    const NAMESPACE_NOT_FOUND: i32 = 26;
    let opened = client.database(database).run_cursor_command(doc! {"listIndexes": name}).await;
    let opened = match opened.map_err(|error| *error.kind) {
        Err(ErrorKind::Command(error)) if error.code == NAMESPACE_NOT_FOUND => return None,
        opened => opened.expect("list the indexes"),
    };
    let listed: Vec<Document> = opened.try_collect().await.expect("list the indexes");
    let named = |mut spec: Document| {
        // Servers before 4.4 say where the index is.
        spec.remove("ns");
        (spec.get_str("name").unwrap_or_default().to_owned(), spec)
    };
    Some(listed.into_iter().map(named).collect())
}

async fn cursor(client: &Client, database: &str, command: Document) -> Cursor<Document> {
    client.database(database).run_cursor_command(command).await.expect("open a cursor")
}

/// The documents of a collection in their natural order, each after the text of its `_id`.
type Contents = Vec<(String, RawDocumentBuf)>;

/// The first few documents that are on one side only or differ, for the failing test's message; `None` if there are
/// none.
fn differing_ids(source: &Contents, target: &Contents) -> Option<String> {
    const SHOWN: usize = 5;
    let by_id = |side: &Contents| side.iter().cloned().collect::<BTreeMap<_, _>>();
    let (theirs, ours) = (by_id(source), by_id(target));
    let mut ids: Vec<&String> = theirs.keys().chain(ours.keys()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.retain(|id| theirs.get(*id) != ours.get(*id));
    if ids.is_empty() {
        return None;
    }
    let show = |side: Option<&RawDocumentBuf>| match side {
        Some(document) => Document::try_from(document.as_ref())
            .map_or_else(|error| error.to_string(), |document| document.to_string()),
        None => "missing".to_owned(),
    };
    let mut text =
        format!("  {} documents on the source, {} on the target", source.len(), target.len());
    for id in ids.into_iter().take(SHOWN) {
        let (theirs, ours) = (show(theirs.get(id)), show(ours.get(id)));
        write!(text, "\n  source: {theirs}\n  target: {ours}").expect("write to a string");
    }
    Some(text)
}

/// At most 500,000 documents, which is more than tests have.
async fn contents(client: &Client, namespace: &str) -> Contents {
    let (database, collection) = namespace.split_once('.').expect("database.collection");
    let collection = client.database(database).collection::<RawDocumentBuf>(collection);
    let found = collection.find(doc! {}).limit(500_000).await;
    let mut documents = found.expect("read a collection");
    let mut all = Contents::new();
    while let Some(document) = documents.try_next().await.expect("read on") {
        let id = document.get("_id").ok().flatten().map(|id| format!("{id:?}"));
        all.push((id.unwrap_or_default(), document));
    }
    all
}
